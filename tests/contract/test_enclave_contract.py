"""What every enclave promises, whatever hardware stands behind it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2
import pytest

from attestation.digest import jcs
from attestation.enclave import Enclave
from attestation.enclave.dstack import DstackEnclave
from attestation.enclave.nitro import NitroEnclave
from attestation.enclave.rofl import RoflEnclave
from attestation.enclave.simulated import SimulatedEnclave
from attestation.enclave.tsm import TsmEnclave
from attestation.errors import EnclaveError
from tests.enclaves import FakeConfigfs, FakeDstack, FakeNsm, FakeRoflAppd, listening, snp_report, tdx_quote

DATA = bytes(range(64))
OTHER = bytes(range(64, 128))
KINDS = ["simulated", "tdx", "sev_snp", "dstack", "nitro", "rofl"]


@dataclass
class Subject:
    scheme: str
    uri: str
    open: Callable[[str], Enclave]
    tee_type: str
    bound: Callable[[dict[str, Any]], bytes]
    """The report data in the evidence, read where the hardware puts it."""
    asked: Callable[[], int]
    """How often the hardware was asked."""
    remembers: bool = False
    """Whether it may answer from what it already published."""
    nowhere: Callable[[], Enclave] | None = None
    """Opens one whose device is not there; None where there is no device."""


def nitro_bound(evidence: dict[str, Any]) -> bytes:
    bound = cbor2.loads(cbor2.loads(bytes.fromhex(evidence["document"]))[2])["user_data"]
    assert isinstance(bound, bytes)
    return bound


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    kind: str = request.param
    with ExitStack() as stack:
        match kind:
            case "simulated":
                yield Subject(
                    "simulated",
                    "simulated:",
                    SimulatedEnclave,
                    kind,
                    lambda e: bytes.fromhex(e["quote"]["report_data"]),
                    lambda: 0,
                    remembers=True,
                )
            case "tdx" | "sev_snp":
                provider, make = ("tdx_guest", tdx_quote) if kind == "tdx" else ("sev_guest", snp_report)
                tree = FakeConfigfs(tmp_path / "report", provider, make)
                tree.install(monkeypatch)
                yield Subject(
                    "tsm",
                    "tsm:",
                    lambda uri: TsmEnclave(uri, root=tree.root),
                    kind,
                    (lambda e: bytes.fromhex(e["quote"])[568:632])
                    if kind == "tdx"
                    else (lambda e: bytes.fromhex(e["report"])[0x50:0x90]),
                    lambda: tree.reports,
                    nowhere=lambda: TsmEnclave("tsm:", root=tmp_path / "none"),
                )
                assert not tree.entries, "entries were left behind"
            case "dstack":
                agent = FakeDstack()
                stack.enter_context(listening(tmp_path / "dstack.sock", agent))
                yield Subject(
                    "dstack",
                    f"dstack://{tmp_path}/dstack.sock",
                    DstackEnclave,
                    "tdx",
                    lambda e: bytes.fromhex(e["quote"])[568:632],
                    lambda: sum(rpc == "GetQuote" for rpc, _ in agent.requests),
                    nowhere=lambda: DstackEnclave(f"dstack://{tmp_path}/none.sock"),
                )
            case "nitro":
                nsm = FakeNsm(tmp_path / "nsm")
                nsm.install(monkeypatch)
                yield Subject(
                    "nitro",
                    "nitro:",
                    lambda uri: NitroEnclave(uri, device=nsm.device),
                    kind,
                    nitro_bound,
                    lambda: len(nsm.requests),
                    nowhere=lambda: NitroEnclave("nitro:", device=tmp_path / "none"),
                )
            case "rofl":
                appd = FakeRoflAppd(blocks=1)
                stack.enter_context(listening(tmp_path / "appd.sock", appd))
                yield Subject(
                    "rofl",
                    f"rofl://{tmp_path}/appd.sock",
                    lambda uri: RoflEnclave(uri, poll_seconds=0),
                    kind,
                    lambda e: bytes.fromhex(e["report_data"]),
                    lambda: appd.registrations,
                    remembers=True,
                    nowhere=lambda: RoflEnclave(f"rofl://{tmp_path}/none.sock"),
                )


async def test_evidence_binds_the_report_data_that_was_asked_for(subject: Subject) -> None:
    enclave = subject.open(subject.uri)
    for data in (DATA, OTHER, bytes(64), b"\xff" * 64):
        assert subject.bound(await enclave.evidence(data, now=1)) == data


async def test_it_says_what_it_is(subject: Subject) -> None:
    enclave = subject.open(subject.uri)
    assert (enclave.uri, enclave.tee_type) == (subject.uri, subject.tee_type)
    assert enclave.is_hardware is (subject.scheme != "simulated")


async def test_evidence_is_json_that_the_report_can_carry(subject: Subject) -> None:
    evidence = await subject.open(subject.uri).evidence(DATA, now=1)
    assert jcs(evidence)


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 128])
async def test_exactly_64_bytes_are_taken(subject: Subject, size: int) -> None:
    enclave = subject.open(subject.uri)
    before = subject.asked()
    with pytest.raises(EnclaveError, match="64 bytes"):
        await enclave.evidence(bytes(size), now=1)
    assert subject.asked() == before, "the hardware was asked all the same"


async def test_hardware_is_asked_anew_for_every_report(subject: Subject) -> None:
    enclave = subject.open(subject.uri)
    first = await enclave.evidence(DATA, now=1)
    before = subject.asked()
    second = await enclave.evidence(DATA, now=1)
    if subject.remembers:
        assert (first, subject.asked()) == (second, before)
    else:
        assert subject.asked() == before + 1


async def test_calls_at_the_same_time_do_not_mix(subject: Subject) -> None:
    enclave = subject.open(subject.uri)
    data = [bytes([n]) * 64 for n in range(12)]
    evidence = await asyncio.gather(*(enclave.evidence(one, now=1) for one in data))
    assert [subject.bound(one) for one in evidence] == data


async def test_a_missing_device_is_a_failed_start(subject: Subject) -> None:
    if subject.nowhere is None:
        return
    with pytest.raises(EnclaveError, match="is not there") as caught:
        subject.nowhere()
    assert caught.value.hint, "it must say what to do"


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "{scheme}",
        "{scheme}:x",
        "{uri} ",
        " {uri}",
        "{uri}\n",
        "{uri}?a=b",
        "{uri}#a",
        "{upper}",
        "{scheme}://",
        "x:",
        "{scheme}://host/run/a.sock",
        "{scheme}:/run/a.sock",
        "{uri}/",
        "{uri}/..",
        "{uri}%20",
        "{scheme}:////run/a.sock",
        "{scheme}:///run/../run/a.sock",
        "{scheme}:///run/./a.sock",
        "{scheme}:///run/\0.sock",
        "{scheme}:///",
    ],
)
def test_a_uri_with_anything_else_in_it_is_refused(subject: Subject, junk: str) -> None:
    uri = junk.format(scheme=subject.scheme, uri=subject.uri, upper=subject.uri.upper())
    with pytest.raises(EnclaveError) as caught:
        subject.open(uri)
    assert repr(uri) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["DSTACK_SIMULATOR_ENDPOINT", "TAPPD_SIMULATOR_ENDPOINT", "HTTP_PROXY", "ALL_PROXY", "http_proxy"]
)
async def test_the_environment_has_no_say(subject: Subject, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert subject.bound(await subject.open(subject.uri).evidence(DATA, now=1)) == DATA
    if subject.nowhere is not None:
        with pytest.raises(EnclaveError):
            subject.nowhere()
