"""A report is believed to be nothing before it has its shape, and it must say what it was asked for."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from attestation.errors import EvidenceError, MalformedError, TollsealError
from attestation.http_signature import Exchange
from attestation.onchain import AgentReference
from attestation.report import PATH, agent_of, attestation_of, key_slot_of, nonce_of, report_of
from tests.fuzz import changed
from tests.purchases import KEY_SLOT, NONCE, ORIGIN, REGISTRY, Shop

REPORT = Shop().attestation()
DOCUMENT: dict[str, Any] = json.loads(REPORT.body)


def serving(document: Any) -> Exchange:
    return replace(REPORT, body=json.dumps(document).encode())


def asked(query: str) -> Exchange:
    return replace(REPORT, url=f"{ORIGIN}{PATH}{query}")


def test_a_report_names_its_agent_its_slot_and_the_nonce_it_answers() -> None:
    assert agent_of(REPORT) == AgentReference(84532, REGISTRY, 0)
    assert (key_slot_of(REPORT), nonce_of(REPORT)) == (KEY_SLOT, NONCE)


@pytest.mark.parametrize(
    "exchange",
    [
        replace(REPORT, status=201),
        replace(REPORT, status=503),
        replace(REPORT, url=f"{ORIGIN}/v1/aci/attestations?nonce={NONCE}"),
        replace(REPORT, request_body=b"{}"),
    ],
)
def test_only_a_200_of_its_path_asked_for_without_a_body_is_a_report(exchange: Exchange) -> None:
    with pytest.raises(EvidenceError, match=f"not a 200 of {PATH}"):
        report_of(exchange)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"api_version": "aci/2"}, r"report\.api_version: must be aci/1"),
        ({"more": 1}, r"report\.more"),
        ({"attestation": []}, r"report\.attestation: must be a JSON object"),
        ({"attestation": {**DOCUMENT["attestation"], "more": 1}}, r"report\.attestation\.more"),
    ],
)
def test_a_report_of_another_shape_is_refused_and_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(MalformedError, match=where):
        attestation_of(serving({**DOCUMENT, **change}))


@pytest.mark.parametrize("query", ["", "?", "?other=1", f"?nonce={NONCE}&nonce={NONCE}"])
def test_a_report_that_answers_no_one_nonce_may_be_old(query: str) -> None:
    with pytest.raises(EvidenceError, match="without a nonce"):
        nonce_of(asked(query))


@pytest.mark.parametrize("nonce", ["", NONCE.upper(), NONCE[2:], "%FF"])
def test_a_nonce_in_another_spelling_is_malformed(nonce: str) -> None:
    with pytest.raises(MalformedError, match="nonce"):
        nonce_of(asked(f"?nonce={nonce}"))


@pytest.mark.parametrize(
    "slot", [None, "main", "tee.manifest", "tee.key.", "tee.key.UPPER", "tee.key.a/b", "tee.key.-"]
)
def test_a_slot_that_holds_no_replicas_key_is_not_looked_up(slot: object) -> None:
    registration = {**DOCUMENT["service_capabilities"]["agent_registration"], "key_slot": slot}
    capabilities = {**DOCUMENT["service_capabilities"], "agent_registration": registration}
    with pytest.raises(MalformedError):
        key_slot_of(serving({**DOCUMENT, "service_capabilities": capabilities}))


def test_a_keyset_that_names_no_agent_belongs_to_none() -> None:
    with pytest.raises(MalformedError, match="agent: must be eip155"):
        agent_of(Shop(subject=None).attestation())


@settings(max_examples=150, deadline=None)
@given(changed(DOCUMENT))
def test_no_report_makes_reading_fail_in_another_way(document: Any) -> None:
    exchange = serving(document)
    for read in (report_of, attestation_of, key_slot_of, agent_of):
        try:
            found = read(exchange)
        except TollsealError:
            continue
        assert found
