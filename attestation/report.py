"""The attestation report: built by the service, read by the verifier.

Source: aci/1 section 4; `service_capabilities.agent_registration` is published in docs/formats.md.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from attestation import encoding
from attestation.errors import EvidenceError, MalformedError
from attestation.http_signature import Exchange
from attestation.keyset import Keyset, check_nonce, parse_keyset, report_data
from attestation.onchain import AgentReference
from attestation.receipt import API_VERSION
from attestation.registry.records import KEY_PREFIX, key_name

PATH: Final = "/v1/aci/attestation"
SERVING_DIRECT: Final = "direct"
"""Inference runs inside the attested workload (aci/1 section 4.1)."""

_REPORT_FIELDS: Final = {"api_version", "workload_keyset_digest", "attestation", "service_capabilities"}
_ATTESTATION_FIELDS: Final = {"tee_type", "workload_keyset", "report_data", "source_provenance", "evidence"}


def build_report(
    keyset: Keyset,
    *,
    nonce: str | None,
    tee_type: str,
    evidence: Mapping[str, Any],
    provenance: Mapping[str, Any],
    serving: str,
    agent_registration: Mapping[str, Any],
) -> dict[str, Any]:
    """A report over a keyset (aci/1 section 4.1); `evidence` must already bind the keyset and the nonce."""
    return {
        "api_version": API_VERSION,
        "workload_keyset_digest": keyset.digest,
        "attestation": {
            "tee_type": tee_type,
            "workload_keyset": dict(keyset.document),
            "report_data": report_data(keyset.digest, nonce).hex(),
            "source_provenance": dict(provenance),
            "evidence": dict(evidence),
        },
        "service_capabilities": {
            "supported_e2ee_versions": [],
            "serving": serving,
            "agent_registration": dict(agent_registration),
        },
    }


def report_of(exchange: Exchange) -> dict[str, Any]:
    """The report in a response of `PATH`, checked for shape only.

    Raises:
        EvidenceError: not a 200 of that path.
        MalformedError: not a report.
    """
    if exchange.status != 200 or exchange.request_body or urlsplit(exchange.url).path != PATH:
        raise EvidenceError(f"this is not a 200 of {PATH}, asked for without a body")
    report = encoding.as_object(encoding.parse_json(exchange.body, "report"), "report")
    encoding.only(report, "report", _REPORT_FIELDS)
    if report["api_version"] != API_VERSION:
        raise MalformedError("report.api_version", f"must be {API_VERSION}")
    return report


def attestation_of(exchange: Exchange) -> dict[str, Any]:
    """The `attestation` member of a report. Raises like `report_of`."""
    attestation = encoding.as_object(report_of(exchange)["attestation"], "report.attestation")
    encoding.only(attestation, "report.attestation", _ATTESTATION_FIELDS)
    return attestation


def nonce_of(exchange: Exchange) -> str:
    """The nonce that a report was asked for with.

    Raises:
        EvidenceError: there was none, so the report proves no freshness (aci/1 section 9.1).
        MalformedError: it is not a nonce.
    """
    nonces = parse_qs(urlsplit(exchange.url).query, keep_blank_values=True).get("nonce", [])
    if len(nonces) != 1:
        raise EvidenceError("the report was asked for without a nonce, so it may be old")
    return check_nonce(nonces[0])


def key_slot_of(exchange: Exchange) -> str:
    """The registry metadata key that a report says holds its replica's key. Raises like `report_of`."""
    capabilities = encoding.as_object(report_of(exchange)["service_capabilities"], "report.service_capabilities")
    registration = encoding.as_object(capabilities.get("agent_registration"), "report.agent_registration")
    slot = encoding.text(registration.get("key_slot"), "report.agent_registration.key_slot")
    if not slot.startswith(KEY_PREFIX):
        raise MalformedError("report.agent_registration.key_slot", f"must begin with {KEY_PREFIX}")
    return key_name(slot.removeprefix(KEY_PREFIX))


def agent_of(exchange: Exchange) -> AgentReference:
    """The agent that a report's keyset names as its subject; nothing is proven yet. Raises like `report_of`."""
    return AgentReference.parse(parse_keyset(attestation_of(exchange)["workload_keyset"]).subject)
