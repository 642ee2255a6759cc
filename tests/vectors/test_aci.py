"""Our constructions are the ones of aci/1, byte for byte: checked against the published test vectors."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.digest import digest, jcs, sha256_hex
from attestation.errors import EvidenceError
from attestation.evidence import appraise
from attestation.evidence.appraisal import Inputs
from attestation.keyset import parse_keyset, report_data
from attestation.receipt import check_signature, parse_receipt


@pytest.fixture(scope="module")
def vectors(evidence_dir: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((evidence_dir / "aci" / "vectors.json").read_text("utf-8"))
    return document


def test_the_keyset_digest_is_the_published_one(vectors: dict[str, Any]) -> None:
    assert parse_keyset(vectors["keyset"]).digest == vectors["workload_keyset_digest"]


def test_report_data_binds_digest_and_nonce_as_published(vectors: dict[str, Any]) -> None:
    keyset_digest = vectors["workload_keyset_digest"]
    assert report_data(keyset_digest, vectors["nonce"]).hex() == vectors["report_data"]
    assert report_data(keyset_digest, None).hex() == vectors["report_data_without_nonce"]


def test_body_hashes_are_over_exact_bytes(vectors: dict[str, Any]) -> None:
    assert digest(vectors["request_body"].encode()) == vectors["request_body_hash"]
    assert digest(vectors["response_body"].encode()) == vectors["response_body_hash"]


def test_the_published_receipt_verifies_under_the_published_keyset(vectors: dict[str, Any]) -> None:
    assert sha256_hex(jcs(vectors["receipt"])) == vectors["receipt_signing_input_sha256"]
    receipt = parse_receipt({**vectors["receipt"], "signature": vectors["receipt_signature"]})
    check_signature(receipt, parse_keyset(vectors["keyset"]))


def test_a_receipt_signed_with_the_published_seed_is_the_published_one(vectors: dict[str, Any]) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vectors["keys"]["receipt-1"]["seed"]))
    assert key.sign(jcs(vectors["receipt"])).hex() == vectors["receipt_signature"]


def test_a_changed_published_receipt_does_not_verify(vectors: dict[str, Any]) -> None:
    receipt = parse_receipt(
        {**vectors["receipt"], "served_at": 1_750_000_001, "signature": vectors["receipt_signature"]}
    )
    with pytest.raises(EvidenceError, match="does not match"):
        check_signature(receipt, parse_keyset(vectors["keyset"]))


def test_a_stub_instead_of_a_quote_is_refused(evidence_dir: Path) -> None:
    report = json.loads((evidence_dir / "aci" / "aci_report_stub.json").read_text("utf-8"))
    try:
        appraisal = appraise(report["attestation"]["tee_type"], report["attestation"]["evidence"], Inputs(now=1))
    except EvidenceError:
        return
    assert not appraisal.genuine
