"""The simulated enclave cannot be mistaken for hardware, by anybody, in any place."""

import json

import pytest

from attestation.enclave import open_enclave
from attestation.enclave.simulated import SimulatedEnclave
from attestation.errors import EnclaveError, EvidenceError
from attestation.evidence import FORMATS, appraise
from attestation.evidence.appraisal import Appraisal, Inputs

DATA = bytes(range(64))


def check(evidence: object) -> Appraisal:
    return appraise("simulated", evidence, Inputs(now=1))


async def test_the_words_no_hardware_are_inside_what_is_signed() -> None:
    evidence = await SimulatedEnclave("simulated:").evidence(DATA, now=1)
    assert "NO HARDWARE" in json.dumps(evidence["quote"])
    silent = {**evidence, "quote": {**evidence["quote"], "notice": "genuine hardware"}}
    assert "notice" in str(check(silent).failure())


async def test_it_proves_its_report_data_and_no_hardware() -> None:
    claims = check(await SimulatedEnclave("simulated:").evidence(DATA, now=5))
    assert claims.genuine
    assert (claims.report_data, claims.is_hardware, claims.issued_at) == (DATA, False, 5)


async def test_every_boot_has_a_root_of_its_own() -> None:
    first, second = [await SimulatedEnclave("simulated:").evidence(DATA, now=1) for _ in range(2)]
    assert first["root_public_key"] != second["root_public_key"]
    assert not check({**first, "root_public_key": second["root_public_key"]}).genuine


@pytest.mark.parametrize("tee_type", ["tdx", "sev_snp", "nitro", "", "SIMULATED"])
async def test_under_another_name_it_is_refused(tee_type: str) -> None:
    evidence = await SimulatedEnclave("simulated:").evidence(DATA, now=1)
    if tee_type in FORMATS:
        assert not appraise(tee_type, evidence, Inputs(now=1)).genuine
    else:
        with pytest.raises(EvidenceError, match="cannot be checked"):
            appraise(tee_type, evidence, Inputs(now=1))


async def test_changed_report_data_does_not_verify() -> None:
    evidence = await SimulatedEnclave("simulated:").evidence(DATA, now=1)
    assert not check({**evidence, "quote": {**evidence["quote"], "report_data": "00" * 64}}).genuine


@pytest.mark.parametrize("evidence", [None, [], "quote", {}, {"quote": 1}, {"quote": {}, "root_public_key": 1}])
def test_malformed_evidence_is_a_failed_check(evidence: object) -> None:
    assert not check(evidence).genuine


@pytest.mark.parametrize("uri", ["", "simulated", "simulated:x", "tsm", "dstack:///nowhere", "SIMULATED:"])
def test_an_enclave_that_is_not_there_is_a_failed_start(uri: str) -> None:
    with pytest.raises(EnclaveError):
        open_enclave(uri)


@pytest.mark.parametrize("size", [0, 32, 63, 65])
async def test_only_64_bytes_of_report_data_are_taken(size: int) -> None:
    with pytest.raises(EnclaveError):
        await SimulatedEnclave("simulated:").evidence(bytes(size), now=1)


async def test_evidence_of_another_format_is_refused() -> None:
    evidence = await SimulatedEnclave("simulated:").evidence(DATA, now=1)
    other = {**evidence, "quote": {**evidence["quote"], "format": "tdx"}}
    assert "must be simulated" in str(check(other).failure())
