"""The documents of a validation: what is built is read back, and anything else is refused with its field named."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.digest import jcs
from attestation.errors import MalformedError
from attestation.onchain import AgentReference
from attestation.publishing import content_hash
from attestation.validation import KeyInQuestion, build_request, draw_salt, parse_request

KEY = KeyInQuestion(
    agent=AgentReference(84532, "0x" + "8a" * 20, 0),
    keyset_digest="sha256:" + "22" * 32,
    payment_key="0x" + "aa" * 20,
    key_slot="tee.key.main",
    endpoint="https://agent.example",
)
SALT = "5a" * 32
DOCUMENT = json.loads(build_request(KEY, salt=SALT))


def test_what_is_built_is_read_back() -> None:
    assert parse_request(build_request(KEY, salt=SALT)) == KEY
    purchase = replace(KEY, endpoint=None, bundle={"format": "tollseal.bundle/1"})
    assert parse_request(build_request(purchase, salt=SALT)) == purchase


def test_the_document_is_the_published_vector() -> None:
    data = build_request(KEY, salt=SALT)
    assert data == (
        b'{"agent":"eip155:84532:0x8a8a8a8a8a8a8a8a8a8a8a8a8a8a8a8a8a8a8a8a:0","endpoint":"https://agent.example",'
        b'"format":"tollseal.validation-request/1","key_slot":"tee.key.main","keyset_digest":"sha256:'
        + b"22" * 32
        + b'","payment_key":"0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","salt":"'
        + b"5a" * 32
        + b'"}'
    )
    # keccak256 of nothing, as every EVM tool knows it.
    assert content_hash(b"") == "0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_everything_that_a_request_is_about_changes_its_hash() -> None:
    others = [
        build_request(KEY, salt="5b" * 32),
        build_request(replace(KEY, agent=replace(KEY.agent, agent_id=1)), salt=SALT),
        build_request(replace(KEY, agent=replace(KEY.agent, registry="0x" + "8b" * 20)), salt=SALT),
        build_request(replace(KEY, agent=replace(KEY.agent, chain_id=8453)), salt=SALT),
        build_request(replace(KEY, keyset_digest="sha256:" + "23" * 32), salt=SALT),
        build_request(replace(KEY, payment_key="0x" + "ab" * 20), salt=SALT),
    ]
    assert len({content_hash(data) for data in [*others, build_request(KEY, salt=SALT)]}) == 7


def test_salts_are_not_repeated() -> None:
    assert draw_salt() != draw_salt()
    assert len(bytes.fromhex(draw_salt())) == 32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, r"request\.format"),
        ({"salt": "00"}, r"request\.salt"),
        ({"salt": None}, r"request\.salt"),
        ({"agent": 0}, r"request\.agent"),
        ({"agent": "eip155:84532:0x12:0"}, "agent"),
        ({"keyset_digest": "sha256:zz"}, r"request\.keyset_digest"),
        ({"payment_key": "0x12"}, r"request\.payment_key"),
        ({"key_slot": 7}, r"request\.key_slot"),
        ({"endpoint": 7}, r"request\.endpoint"),
        ({"bundle": {}}, "either an endpoint or a bundle"),
        ({"more": 1}, r"request\.more"),
    ],
)
def test_a_malformed_document_is_refused_and_the_field_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        parse_request(jcs({**DOCUMENT, **changes}))


@pytest.mark.parametrize("field", sorted(DOCUMENT))
def test_no_field_may_be_missing(field: str) -> None:
    with pytest.raises(MalformedError):
        parse_request(jcs({name: value for name, value in DOCUMENT.items() if name != field}))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_without_any_other_error(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_request(data)
