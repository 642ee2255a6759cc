"""Reports out of configfs-tsm: one entry for each, never disturbed, always taken away again."""

import asyncio
import errno
import ssl
from pathlib import Path

import pytest

from attestation.enclave.tsm import TsmEnclave
from attestation.encoding import b64_bytes
from attestation.errors import EnclaveError
from tests.enclaves import ARK, ASK, VCEK, VLEK, FakeConfigfs, Make, certificate_table, snp_report, tdx_quote

DATA = bytes(range(64))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeConfigfs:
    fake = FakeConfigfs(tmp_path / "report", "tdx_guest", tdx_quote)
    fake.install(monkeypatch)
    return fake


def enclave_of(tree: FakeConfigfs) -> TsmEnclave:
    return TsmEnclave("tsm:", root=tree.root)


def snp(tree: FakeConfigfs, auxblob: bytes | None = None, make: Make = snp_report) -> TsmEnclave:
    tree.provider, tree.make, tree.auxblob = "sev_guest", make, auxblob
    return enclave_of(tree)


def test_the_kernel_says_which_tee_it_is(tree: FakeConfigfs) -> None:
    assert enclave_of(tree).tee_type == "tdx"
    assert snp(tree).tee_type == "sev_snp"
    tree.provider = "arm_cca_guest"
    with pytest.raises(EnclaveError, match="arm_cca_guest"):
        enclave_of(tree)


def test_a_guest_that_cannot_attest_is_a_failed_start(tree: FakeConfigfs) -> None:
    tree.failures = [errno.EIO]
    with pytest.raises(EnclaveError, match="Input/output error"):
        enclave_of(tree)
    assert not tree.entries


def test_a_kernel_without_a_tee_is_a_failed_start(tree: FakeConfigfs) -> None:
    tree.provider = None
    with pytest.raises(EnclaveError, match="No such device"):
        enclave_of(tree)


def test_an_ordinary_directory_is_no_configfs(tmp_path: Path) -> None:
    with pytest.raises(EnclaveError, match="made no report"):
        TsmEnclave("tsm:", root=tmp_path)
    assert not list(tmp_path.iterdir())


async def test_without_permission_it_says_who_may(tree: FakeConfigfs) -> None:
    enclave = enclave_of(tree)
    tree.failures = [errno.EACCES]
    with pytest.raises(EnclaveError) as caught:
        await enclave.evidence(DATA, now=1)
    assert caught.value.hint == "Only root may make reports"


@pytest.mark.parametrize("times", [1, 4])
async def test_a_report_that_another_writer_disturbed_is_made_again(tree: FakeConfigfs, times: int) -> None:
    enclave = enclave_of(tree)
    tree.disturbances = times
    evidence = await enclave.evidence(DATA, now=1)
    assert bytes.fromhex(evidence["quote"]) == tdx_quote(DATA)
    assert not tree.entries


async def test_disturbed_without_end_it_gives_up(tree: FakeConfigfs) -> None:
    enclave = enclave_of(tree)
    tree.disturbances = 1000
    with pytest.raises(EnclaveError, match="something else wrote"):
        await enclave.evidence(DATA, now=1)
    assert not tree.entries


async def test_try_again_is_no_answer(tree: FakeConfigfs) -> None:
    enclave = enclave_of(tree)
    tree.failures = [errno.EAGAIN, errno.EAGAIN]
    assert bytes.fromhex((await enclave.evidence(DATA, now=1))["quote"]) == tdx_quote(DATA)
    assert not tree.entries


async def test_every_report_has_an_entry_of_its_own(tree: FakeConfigfs, monkeypatch: pytest.MonkeyPatch) -> None:
    enclave = enclave_of(tree)
    names: list[str] = []
    make = tree.make

    def remember(data: bytes) -> bytes:
        names.extend(tree.entries)
        return make(data)

    tree.make = remember
    await asyncio.gather(*(enclave.evidence(DATA, now=1) for _ in range(5)))
    assert len(set(names)) == 5
    assert not tree.entries


@pytest.mark.parametrize("version", [4, 5])
async def test_quotes_of_both_versions_are_understood(tree: FakeConfigfs, version: int) -> None:
    tree.make = lambda data: tdx_quote(data, version)
    assert (await enclave_of(tree).evidence(DATA, now=1))["quote"] == tdx_quote(DATA, version).hex()


@pytest.mark.parametrize(
    "make",
    [
        lambda _: tdx_quote(b"\xee" * 64),
        lambda _: b"",
        lambda data: tdx_quote(data, 3),
        lambda data: tdx_quote(data)[:600],
        lambda data: b"aci-stub-quote:" + data,
    ],
)
async def test_a_quote_that_is_none_or_binds_other_data_goes_nowhere(tree: FakeConfigfs, make: Make) -> None:
    enclave = enclave_of(tree)
    tree.make = make
    with pytest.raises(EnclaveError):
        await enclave.evidence(DATA, now=1)


@pytest.mark.parametrize("make", [lambda _: snp_report(b"\xee" * 64), lambda data: snp_report(data)[:-1]])
async def test_a_report_that_is_none_or_binds_other_data_goes_nowhere(tree: FakeConfigfs, make: Make) -> None:
    enclave = snp(tree)
    tree.make = make
    with pytest.raises(EnclaveError):
        await enclave.evidence(DATA, now=1)


async def test_a_tee_does_not_become_another(tree: FakeConfigfs) -> None:
    enclave = enclave_of(tree)
    tree.provider = "sev_guest"
    with pytest.raises(EnclaveError, match="and now for 'sev_guest'"):
        await enclave.evidence(DATA, now=1)


async def test_a_number_that_is_none_is_refused(tree: FakeConfigfs, monkeypatch: pytest.MonkeyPatch) -> None:
    enclave = enclave_of(tree)
    monkeypatch.setattr(tree, "_content", lambda *_: b"many\n")
    with pytest.raises(EnclaveError, match="not a number"):
        await enclave.evidence(DATA, now=1)


async def test_a_kernel_that_takes_half_of_the_data_is_refused(
    tree: FakeConfigfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclave = enclave_of(tree)
    whole = tree._write_
    monkeypatch.setattr(tree, "_write_", None)
    monkeypatch.setattr("os.write", lambda descriptor, data: whole(descriptor, data[:32]))
    with pytest.raises(EnclaveError, match="only a part"):
        await enclave.evidence(DATA, now=1)


@pytest.mark.parametrize("floor", [0, 2])
async def test_under_a_paravisor_the_level_is_the_one_that_is_allowed(tree: FakeConfigfs, floor: int) -> None:
    tree.floor = floor
    await snp(tree).evidence(DATA, now=1)
    assert tree.levels == [floor, floor]


# The certificates that the host puts beside a SEV-SNP report


async def certificates(tree: FakeConfigfs, table: bytes | None, *, vlek: bool = False) -> list[bytes]:
    enclave = snp(tree, table, lambda data: snp_report(data, vlek=vlek))
    return [b64_bytes(one, "certificates") for one in (await enclave.evidence(DATA, now=1))["certificates"]]


@pytest.mark.parametrize("table", [None, b"", bytes(24), bytes(4096)])
async def test_a_host_may_keep_the_certificates_to_itself(tree: FakeConfigfs, table: bytes | None) -> None:
    assert await certificates(tree, table) == []


async def test_certificates_come_leaf_first_whatever_the_hosts_order(tree: FakeConfigfs) -> None:
    table = certificate_table({ARK: b"\x30ark", ASK: b"\x30ask", VLEK: b"\x30vlek", VCEK: b"\x30vcek"})
    assert await certificates(tree, table) == [b"\x30vcek", b"\x30ask", b"\x30ark"]
    assert await certificates(tree, table, vlek=True) == [b"\x30vlek", b"\x30ask", b"\x30ark"]


async def test_an_unknown_entry_is_left_out(tree: FakeConfigfs) -> None:
    crl = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"
    assert await certificates(tree, certificate_table({crl: b"crl", VCEK: b"\x30vcek"})) == [b"\x30vcek"]


async def test_the_guid_is_in_the_order_that_hosts_write(tree: FakeConfigfs) -> None:
    """The bytes in the order of the digits: a mixed-endian reading finds no certificate at all on real hosts."""
    table = certificate_table({VCEK: b"\x30vcek"})
    assert table.startswith(bytes.fromhex("63da758de6644564adc5f4b93be8accd"))
    assert await certificates(tree, table) == [b"\x30vcek"]


async def test_pem_becomes_der(tree: FakeConfigfs) -> None:
    pem = ssl.DER_cert_to_PEM_cert(b"\x30vcek").encode() + b"\0"
    assert await certificates(tree, certificate_table({VCEK: pem})) == [b"\x30vcek"]


@pytest.mark.parametrize(
    "table",
    [
        b"\x01" * 23,
        b"\x01" * 24,
        certificate_table({VCEK: b"\x30vcek"})[:-1],
        certificate_table({VCEK: b"\x30vcek"})[:24],
        certificate_table({VCEK: b"-----BEGIN CERTIFICATE-----\n!!!"}),
        certificate_table({VCEK: b"-----BEGIN CERTIFICATE-----\n\xff"}),
    ],
)
async def test_a_broken_table_is_refused(tree: FakeConfigfs, table: bytes) -> None:
    with pytest.raises(EnclaveError, match="certificate"):
        await certificates(tree, table)
