"""Who answers: the attestation report, the receipts, and what strangers find under `/.well-known`."""

import secrets
from typing import Any

import pytest

from attestation.encoding import b64url_bytes
from attestation.evidence import appraise
from attestation.evidence.appraisal import Inputs
from attestation.http_signature import TAG
from attestation.keyset import ALGO_HTTP, parse_keyset, report_data, report_data_slot
from attestation.manifest import manifest_digest, parse_manifest
from attestation.receipt import parse_receipt
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.publication import Published, published
from attestation.registry.registration import parse_registration
from tests.http.conftest import Stack
from tests.http.world import distinct_body, problem_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

ATTESTATION = "/v1/aci/attestation"
REGISTRATION = "/.well-known/agent-registration.json"


async def on_chain(stack: Stack) -> Published:
    chain = stack.chain
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        return await published(reader, stack.service.identity.registered_agent.agent_id, "main")


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh nonce", "no nonce"])
async def test_the_report_binds_the_keyset_and_the_nonce(stack: Stack, fresh: bool) -> None:
    nonce = secrets.token_hex(32) if fresh else None
    response = await stack.caller.get(ATTESTATION, params={} if nonce is None else {"nonce": nonce})
    assert response.headers["cache-control"] == "no-store"
    report: dict[str, Any] = response.json()
    assert set(report) == {"api_version", "workload_keyset_digest", "attestation", "service_capabilities"}
    assert report["api_version"] == "aci/1"
    attested = report["attestation"]
    assert set(attested) == {"tee_type", "workload_keyset", "report_data", "source_provenance", "evidence"}
    keyset = parse_keyset(attested["workload_keyset"])
    assert keyset.digest == report["workload_keyset_digest"] == stack.caller.keyset.digest
    expected = report_data(keyset.digest, nonce)
    assert attested["report_data"] == expected.hex()
    claims = appraise(attested["tee_type"], attested["evidence"], Inputs(now=1))
    assert claims.report_data == report_data_slot(expected)
    assert (attested["tee_type"], claims.is_hardware) == ("simulated", False)
    assert "NO HARDWARE" in attested["evidence"]["quote"]["notice"]


async def test_two_nonces_get_two_reports_over_the_same_keys(stack: Stack) -> None:
    reports = [(await stack.caller.get(f"{ATTESTATION}?nonce={secrets.token_hex(32)}")).json() for _ in range(2)]
    one, two = (report["attestation"] for report in reports)
    assert one["workload_keyset"] == two["workload_keyset"]
    assert one["report_data"] != two["report_data"]
    assert one["evidence"]["signature"] != two["evidence"]["signature"]


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "00",
        "ab" * 31,
        "ab" * 33,
        "AB" * 32,
        "zz" * 32,
        "0x" + "ab" * 31,
        "ab" * 31 + "a ",
        "ab" * 32 + "\n",
        "null",
    ],
    ids=["empty", "2", "62", "66", "upper case", "no hex", "prefixed", "space", "line end", "null"],
)
async def test_a_nonce_is_64_lower_case_hex_or_a_400(stack: Stack, nonce: str) -> None:
    problem = problem_of(await stack.caller.get(ATTESTATION, params={"nonce": nonce}), 400, "malformed-nonce", "nonce")
    assert "64 lower-case hex" in problem["detail"]


async def test_the_report_says_what_serves(stack: Stack) -> None:
    report = (await stack.caller.get(ATTESTATION)).json()
    capabilities = report["service_capabilities"]
    assert capabilities["supported_e2ee_versions"] == []
    assert capabilities["serving"] == "direct"
    assert capabilities["agent_registration"] == {
        "agent": str(stack.service.identity.agent),
        "key_slot": "tee.key.main",
        "registered": True,
    }
    provenance = report["attestation"]["source_provenance"]
    assert set(provenance) == {"repo_url", "repo_commit", "image_digest", "image_provenance"}


async def test_the_keyset_has_one_key_for_each_role_and_names_the_agent(stack: Stack) -> None:
    keyset = stack.caller.keyset
    assert [(key.key_id, key.algo) for key in keyset.receipt_signing_keys] == [
        ("receipt", "ed25519"),
        ("http", "ed25519-rfc9421"),
        ("payment", "secp256k1-eip712"),
    ]
    chain = stack.chain
    assert keyset.subject == f"eip155:{chain.chain_id}:{chain.identity_registry.lower()}:0"
    assert 0 < keyset.not_after - stack.caller.clock() <= 7 * 86_400


async def test_the_chain_shows_what_is_served(stack: Stack) -> None:
    record = await on_chain(stack)
    assert record.agent_id == 0, "the first agent has the id 0"
    assert record.owner == stack.chain.owner.lower()
    assert record.agent_uri == stack.url + REGISTRATION
    assert record.key is not None
    assert record.key.keyset_digest == stack.caller.keyset.digest
    assert record.key.payment_key == stack.service.keyholder.current.keys.payment_address
    assert record.key.expires_at == stack.caller.keyset.not_after
    assert (record.key_stale, record.manifest_stale) == (False, False)


async def test_one_manifest_is_served_published_and_named_in_receipts(stack: Stack) -> None:
    manifest = parse_manifest((await stack.caller.get("/.well-known/tee-manifest.json")).json())
    digest = manifest_digest(manifest)
    assert (await on_chain(stack)).manifest_digest == digest
    bought = await stack.caller.buy(distinct_body("manifest"))
    receipt = parse_receipt((await stack.caller.get(f"/v1/aci/receipts/{bought.headers['x-receipt-id']}")).json())
    assert receipt.event("build.identified")["manifest_digest"] == digest
    assert manifest["tee"] == "simulated"
    assert manifest["model"]["name"] == bought.json()["model"]
    (accept,) = manifest["payment"]["accepts"]
    assert accept["payTo"] == stack.chain.pay_to
    assert "service/call.py" in manifest["source"]["files"]["payment"]


async def test_the_registration_belongs_to_the_agent_and_claims_no_hardware(stack: Stack) -> None:
    response = await stack.caller.get(REGISTRATION)
    registration = parse_registration(response.content)
    assert registration.names(f"eip155:{stack.chain.chain_id}:{stack.chain.identity_registry}", 0)
    assert registration.x402_support is True
    assert registration.active is True
    assert registration.supported_trust == ("reputation",), "simulated evidence is no TEE attestation"
    assert [service.endpoint for service in registration.services if service.name == "x402"] == [
        f"{stack.url}/v1/summarize",
        f"{stack.url}/v1/chat/completions",
    ]


async def test_the_key_directory_is_a_key_set_with_the_http_key(stack: Stack) -> None:
    response = await stack.caller.get("/.well-known/http-message-signatures-directory")
    assert response.headers["content-type"] == "application/http-message-signatures-directory+json"
    directory = response.json()
    (key,) = directory["keys"]
    attested = stack.caller.keyset.key(ALGO_HTTP)
    assert (key["kty"], key["crv"], key["kid"]) == ("OKP", "Ed25519", attested.key_id)
    assert b64url_bytes(key["x"], "x").hex() == attested.public_key
    assert "d" not in key, "the private half"
    assert directory["purpose"] == TAG


@pytest.mark.parametrize("identifier", ["rcpt-" + "0" * 32, "sum-" + "0" * 32, "%00", "%27%20OR%201=1", "x" * 4_000])
async def test_an_unknown_receipt_is_a_404(stack: Stack, identifier: str) -> None:
    problem_of(await stack.caller.get(f"/v1/aci/receipts/{identifier}"), 404, "not-found")


async def test_health_and_readiness_of_a_running_service(stack: Stack) -> None:
    assert (await stack.caller.get("/healthz")).json() == {"status": "ok"}
    ready = (await stack.caller.get("/readyz")).json()
    assert (ready["ready"], ready["problems"]) == (True, [])
    assert ready["agent"] == str(stack.service.identity.agent)
    assert ready["model"] == stack.model.model


async def test_the_description_of_the_api_shows_every_status_and_the_payment_header(stack: Stack) -> None:
    operation = (await stack.caller.get("/openapi.json")).json()["paths"]["/v1/summarize"]["post"]
    assert {"200", "400", "402", "409", "413", "415", "422", "503"} <= set(operation["responses"])
    assert [parameter["name"] for parameter in operation["parameters"]] == ["PAYMENT-SIGNATURE", "Idempotency-Key"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"document", "style", "max_words", "language", "stream"}
    assert schema["required"] == ["document"]
    assert schema["additionalProperties"] is False
