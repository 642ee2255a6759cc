"""The registration file says what the format asks for, and one from a stranger is read with care."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.digest import jcs
from attestation.errors import MalformedError
from attestation.registry.registration import (
    MAX_REGISTRATION_SIZE,
    REGISTRATION_TYPE,
    AgentReference,
    Description,
    Service,
    build_registration,
    parse_registration,
)

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
