"""From boot to verdict on hardware evidence of our own making: VERIFIED under its root, refused under the vendor's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from attestation.bundle import Bundle
from attestation.enclave.keyring import KeyRing
from attestation.evidence import appraise
from attestation.evidence.appraisal import EvidencePolicy, Inputs
from attestation.manifest import manifest_digest
from attestation.onchain import AgentReference
from attestation.policy import AllOf, AnyOf, Policy
from attestation.report import attestation_of
from attestation.verdict import Result, Status, Verdict
from attestation.verifier import Verifier
from tests.evidence_snp import NOW as SNP_NOW
from tests.evidence_snp import SnpMachine
from tests.evidence_tdx import NOW as TDX_NOW
from tests.evidence_tdx import DstackGuest, TestIntel
from tests.purchases import Shop, manifest_document


@dataclass
class TdxMachine:
    """An enclave of a TDX machine under a root of its own."""

    vendor: TestIntel = field(default_factory=TestIntel)
    uri = "test:"
    tee_type = "tdx"
    is_hardware = True
    now = TDX_NOW

    @property
    def root(self) -> bytes:
        return self.vendor.root

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:
        return {"quote": self.vendor.quote(report_data).hex(), "collateral": self.vendor.collateral()}


@dataclass
class DstackMachine(TdxMachine):
    """The same machine with a dstack guest on it."""

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:
        evidence = DstackGuest().boot().evidence(self.vendor, report_data)
        return {**evidence, "collateral": self.vendor.collateral()}


@dataclass
class Snp:
    """An enclave of an SEV-SNP machine under a root of its own."""

    machine: SnpMachine = field(default_factory=SnpMachine)
    uri = "test:"
    tee_type = "sev_snp"
    is_hardware = True
    now = SNP_NOW

    @property
    def root(self) -> bytes:
        return self.machine.root

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:
        return self.machine.evidence(report_data)


Machine = TdxMachine | Snp
KINDS = {"tdx": TdxMachine, "dstack": DstackMachine, "sev_snp": Snp}


@dataclass
class Sold:
    """A purchase from a service on such a machine."""

    machine: Machine
    shop: Shop
    bundle: Bundle

    @property
    def measurements(self) -> Mapping[str, str]:
        verifier = Inputs(now=self.shop.now, roots=self.roots)
        evidence = attestation_of(self.bundle.attestation)["evidence"]
        return appraise(self.machine.tee_type, evidence, verifier).measurements

    @property
    def roots(self) -> dict[str, tuple[bytes, ...]]:
        return {self.machine.tee_type: (self.machine.root,)}

    def policy(self, **changes: Any) -> Policy:
        """What this machine satisfies."""
        allowed = EvidencePolicy(measurements={self.machine.tee_type: (self.measurements,)})
        return replace(Policy(evidence=allowed), **changes)

    def judge(
        self, policy: Policy, *, roots: bool = True, bundle: Bundle | None = None, nonce: str | None = None
    ) -> Verdict:
        verifier = Verifier(policy, now=self.shop.now, roots=self.roots if roots else None)
        return verifier.verify_bundle(bundle or self.bundle, nonce=nonce)


@pytest.fixture(scope="module", params=sorted(KINDS))
def sold(request: pytest.FixtureRequest) -> Sold:
    machine = KINDS[request.param]()
    shop = Shop(enclave=machine, now=machine.now, manifest=manifest_document(tee=machine.tee_type))
    return Sold(machine, shop, shop.bundle())


def failed(verdict: Verdict) -> set[str]:
    return {check.id for check in verdict.checks if check.status is Status.FAIL}


def test_under_the_test_root_the_purchase_is_verified(sold: Sold) -> None:
    verdict = sold.judge(sold.policy())
    assert failed(verdict) == set()
    assert (verdict.result, verdict.exit_code) == (Result.VERIFIED, 0)


def test_under_the_vendors_root_it_is_refused(sold: Sold) -> None:
    assert "evidence.genuine" in failed(sold.judge(sold.policy(), roots=False))


def test_without_a_policy_for_measurements_the_default_is_incomplete(sold: Sold) -> None:
    verdict = sold.judge(Policy())
    assert (verdict.result, verdict.exit_code) == (Result.INCOMPLETE, 4)
    assert verdict.check("evidence.policy").status is Status.NOT_VERIFIED


def test_other_measurements_are_refused(sold: Sold) -> None:
    other = {name: value[:-2] + ("00" if value[-2:] != "00" else "01") for name, value in sold.measurements.items()}
    policy = Policy(evidence=EvidencePolicy(measurements={sold.machine.tee_type: (other,)}))
    assert failed(sold.judge(policy)) == {"evidence.policy"}


def test_a_kind_of_hardware_that_is_not_accepted_is_refused(sold: Sold) -> None:
    assert failed(sold.judge(sold.policy(tee_types=frozenset({"nitro"})))) == {"evidence.policy"}


def test_consent_to_simulated_evidence_changes_nothing_for_hardware(sold: Sold) -> None:
    assert sold.judge(sold.policy(allow_simulated=True)).result is Result.VERIFIED


@pytest.mark.parametrize("of", ["keyset", "build"])
def test_what_is_on_the_deny_list_is_refused(sold: Sold, of: str) -> None:
    digest = sold.shop.keyset.digest if of == "keyset" else manifest_digest(sold.shop.manifest)
    check_id = "keyset.binding" if of == "keyset" else "build.manifest"
    assert check_id in failed(sold.judge(sold.policy(denied=frozenset({digest}))))


def test_another_agent_than_the_policys_is_refused(sold: Sold) -> None:
    other = AgentReference(84532, "0x" + "11" * 20, 0)
    assert failed(sold.judge(sold.policy(agent=other))) >= {"registry.agent"}


def test_another_keyset_under_the_same_evidence_is_refused(sold: Sold) -> None:
    twin = Shop(enclave=sold.machine, now=sold.shop.now, manifest=sold.shop.manifest)
    report = json.loads(sold.bundle.attestation.body)
    report["attestation"]["workload_keyset"] = dict(twin.keyset.document)
    report["workload_keyset_digest"] = twin.keyset.digest
    swapped = twin.signed(replace(sold.bundle.attestation, body=json.dumps(report).encode(), headers={}))
    verdict = sold.judge(sold.policy(), bundle=replace(sold.bundle, attestation=swapped))
    assert "keyset.binding" in failed(verdict)


def test_a_replayed_report_is_refused_by_whoever_drew_another_nonce(sold: Sold) -> None:
    assert "keyset.binding" in failed(sold.judge(sold.policy(), nonce="cd" * 32))


def test_an_expired_keyset_is_refused(sold: Sold) -> None:
    shop = Shop(enclave=sold.machine, now=sold.shop.now, manifest=sold.shop.manifest, not_after=sold.shop.now)
    assert "keyset.lifetime" in failed(sold.judge(sold.policy(), bundle=shop.bundle()))


def test_a_receipt_signed_again_is_refused(sold: Sold) -> None:
    forged = sold.shop.receipt(sold.bundle.answer.body, signer=KeyRing.generate())
    assert "receipt.signature" in failed(sold.judge(sold.policy(), bundle=replace(sold.bundle, receipt=forged)))


def test_policies_combine(sold: Sold) -> None:
    good, bad = sold.policy(), sold.policy(tee_types=frozenset({"nitro"}))
    assert AnyOf((bad, good)).judge(sold.judge).acceptable
    assert not AllOf((good, bad)).judge(sold.judge).acceptable
    assert AllOf((good, AnyOf((bad, good)))).judge(sold.judge).acceptable
    assert not AnyOf((bad, bad)).judge(sold.judge).acceptable


def test_a_simulated_bundle_is_refused_by_every_hardware_policy(sold: Sold) -> None:
    simulated = Shop(now=sold.shop.now).bundle()
    assert sold.judge(sold.policy(), bundle=simulated).exit_code == 3
