"""What the providers hand out, the verifiers accept: under the test root that is named, and under no vendor's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestation.enclave.dstack import DstackEnclave
from attestation.enclave.nitro import NitroEnclave
from attestation.enclave.rofl import RoflEnclave
from attestation.enclave.tsm import TsmEnclave
from attestation.encoding import b64
from attestation.errors import EnclaveError
from attestation.evidence import dstack, nitro, rofl, sev_snp, tdx
from attestation.evidence.appraisal import Appraisal, Inputs
from tests import evidence_nitro, evidence_snp, evidence_tdx
from tests.enclaves import (
    APP_ID,
    ARK,
    ASK,
    RAK,
    VCEK,
    FakeConfigfs,
    FakeDstack,
    FakeNsm,
    FakeRoflAppd,
    certificate_table,
    listening,
)

DATA = bytes(range(64))


def check(
    appraise: Callable[[Any, Inputs], Appraisal], evidence: Any, root: bytes, tee_type: str, now: int, **inputs: Any
) -> None:
    """Accepted under the root that is named, bound to the data that was asked for; refused under the pinned one."""
    appraisal = appraise(evidence, Inputs(now=now, roots={tee_type: (root,)}, **inputs))
    assert appraisal.genuine, appraisal.failure()
    assert appraisal.report_data == DATA
    assert not appraise(evidence, Inputs(now=now, **inputs)).genuine


async def test_a_tdx_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = evidence_tdx.TestIntel()
    tree = FakeConfigfs(tmp_path / "report", "tdx_guest", vendor.quote)
    tree.install(monkeypatch)
    evidence = await TsmEnclave("tsm:", root=tree.root).evidence(DATA, now=1)
    check(tdx.appraise, evidence, vendor.root, "tdx", evidence_tdx.NOW, collateral=vendor.collateral())


async def test_a_sev_snp_guest_with_the_certificates_of_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = evidence_snp.SnpMachine()
    leaf, authority, root = machine.certificates
    table = certificate_table({ARK: root, VCEK: leaf, ASK: authority})
    tree = FakeConfigfs(tmp_path / "report", "sev_guest", machine.report, table)
    tree.install(monkeypatch)
    evidence = await TsmEnclave("tsm:", root=tree.root).evidence(DATA, now=1)
    check(sev_snp.appraise, evidence, machine.root, "sev_snp", evidence_snp.NOW)


async def test_a_nitro_enclave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = evidence_nitro.NitroModule()
    nsm = FakeNsm(tmp_path / "nsm", module.document)
    nsm.install(monkeypatch)
    evidence = await NitroEnclave("nitro:", device=nsm.device).evidence(DATA, now=1)
    check(nitro.appraise, evidence, module.root, "nitro", evidence_nitro.NOW)


async def test_a_dstack_guest(tmp_path: Path) -> None:
    vendor, guest = evidence_tdx.TestIntel(), evidence_tdx.DstackGuest().boot()
    agent = FakeDstack(
        make=lambda data: vendor.quote(data, fields=guest.fields),
        app_compose=guest.compose,
        event_log=json.dumps(guest.log),
    )
    with listening(tmp_path / "dstack.sock", agent):
        evidence = await DstackEnclave(f"dstack://{tmp_path}/dstack.sock").evidence(DATA, now=1)
    check(dstack.appraise, evidence, vendor.root, "tdx", evidence_tdx.NOW, collateral=vendor.collateral())


async def test_a_real_dstack_quote_binds_what_it_binds(tmp_path: Path, evidence_dir: Path) -> None:
    captured = json.loads((evidence_dir / "dstack" / "nearai_20A06F_getquote.json").read_text("utf-8"))
    collateral = json.loads((evidence_dir / "tdx" / "collateral_20A06F_2025-09.json").read_text("utf-8"))
    agent = FakeDstack(make=lambda _: bytes.fromhex(captured["quote"]), event_log=captured["event_log"])
    agent.overrides["Info"] = {"tcb_info": ""}
    with listening(tmp_path / "dstack.sock", agent):
        enclave = DstackEnclave(f"dstack://{tmp_path}/dstack.sock")
        evidence = await enclave.evidence(b"\x01" * 64, now=1)
        with pytest.raises(EnclaveError, match="other report data"):
            await enclave.evidence(DATA, now=1)
    appraisal = dstack.appraise(evidence, Inputs(now=1_757_000_000, collateral=collateral))
    assert appraisal.genuine, appraisal.failure()
    assert appraisal.report_data == b"\x01" * 64


async def test_a_rofl_replica(tmp_path: Path) -> None:
    appd = FakeRoflAppd()
    with listening(tmp_path / "appd.sock", appd):
        evidence = await RoflEnclave(f"rofl://{tmp_path}/appd.sock", poll_seconds=0).evidence(DATA, now=1)
    root = b"\xaa" * 32 + b"\xbb" * 32
    replica = {"app": APP_ID, "node_id": b64(bytes(32)), "rak": b64(RAK), "expiration": 3, "metadata": appd.chain}
    policy = {"enclaves": [b64(bytes(64))], "quotes": {"pcs": {"min_tcb_evaluation_data_number": 18}}}
    snapshot = {
        "format": rofl.SNAPSHOT_FORMAT,
        "chain_context": root[:32].hex(),
        "runtime_id": root[32:].hex(),
        "epoch": 1,
        "fetched_at": 1000,
        "app": {"id": APP_ID, "policy": policy},
        "replicas": [replica],
    }
    check(rofl.appraise, evidence, root, "rofl", 1000, collateral=snapshot)
