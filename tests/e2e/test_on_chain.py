"""What the chain says of the agent is what the service serves: read by raw calls, decoded by hand."""

import hashlib
import json
from typing import Any

import httpx
import pytest
import rfc8785
from eth_account import Account
from eth_keys.datatypes import PublicKey

from tests.e2e.chainside import Registry
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]


@pytest.fixture(scope="module")
def registry(stack: Stack) -> Registry:
    return Registry(stack.dev.rpc, stack.dev.identity_registry)


@pytest.fixture(scope="module")
def keyset(stack: Stack) -> dict[str, Any]:
    report = httpx.get(f"{stack.dev.url}/v1/aci/attestation").json()
    served: dict[str, Any] = report["attestation"]["workload_keyset"]
    return served


def test_the_manifest_on_chain_is_the_served_one(stack: Stack, registry: Registry) -> None:
    served = httpx.get(f"{stack.dev.url}/.well-known/tee-manifest.json").json()
    assert registry.metadata(stack.dev.agent_id, "tee.manifest") == hashlib.sha256(rfc8785.dumps(served)).digest()


def test_the_key_on_chain_is_the_served_keyset(stack: Stack, registry: Registry, keyset: dict[str, Any]) -> None:
    record = registry.metadata(stack.dev.agent_id, "tee.key.main")
    [payment] = [key for key in keyset["receipt_signing_keys"] if key["algo"] == "secp256k1-eip712"]
    address = PublicKey(bytes.fromhex(payment["public_key"])[1:]).to_canonical_address()
    digest = hashlib.sha256(rfc8785.dumps(keyset)).digest()
    assert record == b"\x01" + address + digest + keyset["not_after"].to_bytes(8, "big")
    assert len(record) == 61


def test_registration_and_token_uri_point_at_each_other(stack: Stack, registry: Registry) -> None:
    uri = registry.token_uri(stack.dev.agent_id)
    assert uri == f"{stack.dev.url}/.well-known/agent-registration.json"
    registration = httpx.get(uri).json()
    assert registration["type"] == "https://eips.ethereum.org/EIPS/eip-8004#registration-v1"
    assert registration["registrations"] == [
        {
            "agentId": stack.dev.agent_id,
            "agentRegistry": f"eip155:{stack.dev.chain_id}:{stack.dev.identity_registry.lower()}",
        }
    ]
    assert type(registration["registrations"][0]["agentId"]) is int
    assert registration["x402Support"] is True
    assert registration["active"] is True


def test_simulated_evidence_is_not_registered_as_attestation(stack: Stack) -> None:
    registration = httpx.get(f"{stack.dev.url}/.well-known/agent-registration.json").json()
    assert "tee-attestation" not in registration.get("supportedTrust", [])
    assert "tee-attestation" not in json.dumps(registration)


def test_the_registered_endpoint_is_the_one_that_sells(stack: Stack) -> None:
    registration = httpx.get(f"{stack.dev.url}/.well-known/agent-registration.json").json()
    assert f"{stack.dev.url}/v1/summarize" in [service["endpoint"] for service in registration["services"]]


def test_the_keyset_names_this_agent_and_no_other(stack: Stack, keyset: dict[str, Any]) -> None:
    expected = f"eip155:{stack.dev.chain_id}:{stack.dev.identity_registry.lower()}:{stack.dev.agent_id}"
    assert keyset["subject"] == expected


def test_there_is_one_agent_and_the_service_does_not_own_it(stack: Stack, registry: Registry) -> None:
    assert registry.agents() == 1
    assert registry.owner_of(stack.dev.agent_id) != Account.from_key(stack.dev.operator_key).address.lower()
