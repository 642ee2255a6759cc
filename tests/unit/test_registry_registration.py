"""The registration file says what the format asks for, and one from a stranger is read with care."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from attestation.digest import jcs
from attestation.errors import MalformedError
from attestation.fetch import data_content
from attestation.registry.registration import (
    MAX_REGISTRATION_SIZE,
    REGISTRATION_TYPE,
    AgentReference,
    Description,
    Service,
    build_registration,
    parse_registration,
    registration_uri,
    services_at,
)

SCHEMA = Path(__file__).parents[1] / "vectors" / "erc8004" / "registration-v1.schema.json"
REGISTRY = "eip155:84532:0x" + "Ab" * 20


def build(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "services": [Service(name="web", endpoint="https://seal.example/v1/summarize", version="1")],
        "registrations": [AgentReference(agent_id=0, agent_registry=REGISTRY)],
        "hardware_attested": True,
    }
    return build_registration(Description("Tollseal", "Summaries"), **(arguments | changes))


def raw(**changes: Any) -> bytes:
    return json.dumps(build() | changes).encode()


def test_the_file_has_the_published_fields() -> None:
    assert build() == {
        "type": "https://eips.ethereum.org/EIPS/eip-8004#registration-v1",
        "name": "Tollseal",
        "description": "Summaries",
        "image": "",
        "services": [{"name": "web", "endpoint": "https://seal.example/v1/summarize", "version": "1"}],
        "x402Support": True,
        "active": True,
        "registrations": [{"agentId": 0, "agentRegistry": REGISTRY}],
        "supportedTrust": ["reputation", "tee-attestation"],
    }


def test_without_hardware_the_file_never_claims_tee_attestation() -> None:
    assert "tee-attestation" not in json.dumps(build(hardware_attested=False))


def test_what_is_built_is_read_back() -> None:
    registration = parse_registration(jcs(build()))

    assert registration.names(REGISTRY, 0)
    assert registration.names(REGISTRY.lower(), 0)
    assert not registration.names(REGISTRY, 1)
    assert not registration.names(REGISTRY.replace("84532", "8453"), 0)
    assert registration.x402_support
    assert registration.supported_trust == ("reputation", "tee-attestation")


def test_unknown_fields_and_missing_lists_are_fine() -> None:
    data = json.dumps({"type": REGISTRATION_TYPE, "name": "x", "endpoints": [], "extra": {"a": 1}}).encode()

    registration = parse_registration(data)

    assert (registration.services, registration.registrations, registration.supported_trust) == ((), (), ())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "registration: must be JSON"),
        (b"\xff{}", "must be UTF-8"),
        (b"[]", "must be a JSON object"),
        (b'{"name":"a","name":"b"}', "occurs twice"),
        (b"{" + b" " * MAX_REGISTRATION_SIZE + b"}", "larger than 65536 bytes"),
        (raw(type="something else"), r"registration\.type"),
        (raw(name=7), r"registration\.name"),
        (raw(name="x" * 5_000), r"registration\.name"),
        (raw(active="yes"), r"registration\.active"),
        (raw(x402Support=1), r"registration\.x402Support"),
        (raw(services={"name": "web"}), r"registration\.services"),
        (raw(services=[{"name": "web"}]), r"registration\.services\.0\.endpoint"),
        (raw(services=[{"name": "w", "endpoint": "e"}] * 65), r"registration\.services"),
        (raw(registrations=[{"agentId": "0", "agentRegistry": REGISTRY}]), r"registrations\.0\.agentId"),
        (raw(registrations=[{"agentId": True, "agentRegistry": REGISTRY}]), r"registrations\.0\.agentId"),
        (raw(registrations=[{"agentId": 0.0, "agentRegistry": REGISTRY}]), r"registrations\.0\.agentId"),
        (raw(registrations=[{"agentId": -1, "agentRegistry": REGISTRY}]), r"registrations\.0\.agentId"),
        (raw(registrations=[{"agentId": 1 << 256, "agentRegistry": REGISTRY}]), r"registrations\.0\.agentId"),
        (raw(registrations=[{"agentId": 0, "agentRegistry": "eip155:1:0x12"}]), r"registrations\.0\.agentRegistry"),
        (raw(registrations=[{"agentId": 0, "agentRegistry": REGISTRY + "\n"}]), r"registrations\.0\.agentRegistry"),
    ],
)
def test_a_malformed_file_is_refused_and_the_field_is_named(data: bytes, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        parse_registration(data)


def schema() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))


@pytest.mark.parametrize("hardware_attested", [True, False])
@pytest.mark.parametrize("agent_id", [0, (1 << 256) - 1])
def test_the_file_is_valid_against_the_published_schema(hardware_attested: bool, agent_id: int) -> None:
    document = build_registration(
        Description("Tollseal", "Summaries", "https://seal.example/agent.svg"),
        services=services_at("https://seal.example", paid=["/v1/summarize"], page="/agent"),
        registrations=[AgentReference(agent_id=agent_id, agent_registry=REGISTRY)],
        hardware_attested=hardware_attested,
    )
    schema().validate(document)
    assert "endpoints" not in document  # the field's former name, which explorers warn about


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "registration-v2"},
        {"name": ""},
        {"services": {}},
        {"services": [{"name": "web"}]},
        {"x402Support": "yes"},
        {"registrations": []},
        {"registrations": [{"agentId": "0", "agentRegistry": REGISTRY}]},
        {"registrations": [{"agentId": 0, "agentRegistry": "eip155:0:0x00"}]},
        {"supportedTrust": ["tee"]},
        {"endpoints": []},
    ],
)
def test_the_schema_can_refuse(changes: dict[str, Any]) -> None:
    assert not schema().is_valid({**build(), "image": "https://seal.example/agent.svg", **changes})


def test_only_what_is_served_is_listed() -> None:
    listed = services_at("https://seal.example", paid=["/v1/a", "/v1/b"], page="/agent")
    assert [(one.name, one.endpoint, one.version) for one in listed] == [
        ("web", "https://seal.example/agent", None),
        ("x402", "https://seal.example/v1/a", "2"),
        ("x402", "https://seal.example/v1/b", "2"),
    ]
    every = services_at("https://seal.example", paid=[], a2a="/.well-known/agent-card.json", mcp="/mcp")
    assert [one.name for one in every] == ["A2A", "MCP"]


def test_the_file_can_stand_in_the_agents_uri_itself() -> None:
    uri = registration_uri(build())
    assert uri == registration_uri(dict(reversed(build().items())))  # one document, one URI
    held = data_content(uri, max_bytes=MAX_REGISTRATION_SIZE)
    assert parse_registration(held).names(REGISTRY, 0)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_without_any_other_error(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_registration(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(sorted(build())), json_values)
def test_any_value_in_any_field_is_read_or_refused_without_any_other_error(field: str, value: Any) -> None:
    with contextlib.suppress(MalformedError):
        parse_registration(json.dumps(build() | {field: value}).encode())
