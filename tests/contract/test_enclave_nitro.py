"""Attestation documents from the Nitro Secure Module."""

from pathlib import Path

import cbor2
import pytest

from attestation.enclave.nitro import NitroEnclave
from attestation.errors import EnclaveError
from tests.enclaves import FakeNsm, Make, nitro_document

DATA = bytes(range(64))


@pytest.fixture
def nsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNsm:
    fake = FakeNsm(tmp_path / "nsm")
    fake.install(monkeypatch)
    return fake


def enclave_of(nsm: FakeNsm) -> NitroEnclave:
    return NitroEnclave("nitro:", device=nsm.device)


async def test_the_report_data_is_the_documents_user_data(nsm: FakeNsm) -> None:
    assert await enclave_of(nsm).evidence(DATA, now=1) == {"document": nitro_document(DATA).hex()}
    assert nsm.requests[-1] == {"Attestation": {"user_data": DATA, "nonce": None, "public_key": None}}


async def test_a_document_with_the_cose_tag_is_understood(nsm: FakeNsm) -> None:
    nsm.make = lambda data: cbor2.dumps(cbor2.CBORTag(18, cbor2.loads(nitro_document(data))))
    assert (await enclave_of(nsm).evidence(DATA, now=1))["document"].startswith("d2")


def test_a_device_that_is_no_module_is_a_failed_start(tmp_path: Path) -> None:
    (tmp_path / "nsm").touch()
    with pytest.raises(EnclaveError, match="is not there"):
        NitroEnclave("nitro:", device=tmp_path / "nsm")


async def test_a_refusal_is_said(nsm: FakeNsm) -> None:
    enclave = enclave_of(nsm)
    nsm.answer = cbor2.dumps({"Error": "InternalError"})
    with pytest.raises(EnclaveError, match="InternalError"):
        await enclave.evidence(DATA, now=1)


async def test_an_answer_cut_to_the_buffer_is_refused(nsm: FakeNsm) -> None:
    enclave = enclave_of(nsm)
    nsm.make = lambda data: nitro_document(data) + bytes(0x3000)
    with pytest.raises(EnclaveError, match="no attestation document"):
        await enclave.evidence(DATA, now=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: nitro_document(b"\xee" * 64),
        lambda _: nitro_document(b""),
        lambda _: b"",
        lambda _: b"\xff",
        lambda _: cbor2.dumps([]),
        lambda _: cbor2.dumps(1),
        lambda _: cbor2.dumps([b"", {}, cbor2.dumps([1]), b""]),
        lambda _: cbor2.dumps([b"", {}, cbor2.dumps({}), b""]),
        lambda _: cbor2.dumps([b"", {}, "text", b""]),
    ],
)
async def test_a_document_that_is_none_or_binds_other_data_goes_nowhere(nsm: FakeNsm, make: Make) -> None:
    enclave = enclave_of(nsm)
    nsm.make = make
    with pytest.raises(EnclaveError):
        await enclave.evidence(DATA, now=1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        b"\x81" * 5000,
        cbor2.dumps(1),
        cbor2.dumps("Error"),
        cbor2.dumps({}),
        cbor2.dumps({"Attestation": 1}),
        cbor2.dumps({"Attestation": {"document": 1}}),
        cbor2.dumps({"Attestation": {}}),
        cbor2.dumps(None),
    ],
)
async def test_an_answer_that_is_none_goes_nowhere(nsm: FakeNsm, answer: bytes) -> None:
    enclave = enclave_of(nsm)
    nsm.answer = answer
    with pytest.raises(EnclaveError):
        await enclave.evidence(DATA, now=1)
