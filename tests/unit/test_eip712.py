"""What an Ethereum key signs is what every other EIP-712 implementation says it is."""

from typing import Any

import coincurve
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from attestation.eip712 import (
    Fields,
    address_of_point,
    domain_separator,
    recover,
    sign_digest,
    struct_hash,
    typed_digest,
)
from attestation.errors import EvidenceError, MalformedError

KEY = coincurve.PrivateKey(b"\x07" * 32)
ADDRESS = str(Account.from_key(KEY.secret).address)
FIELDS: Fields = (("text", "string"), ("count", "uint256"), ("to", "address"), ("nonce", "bytes32"))
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
GOOD: dict[str, Any] = {"text": "a", "count": 1, "to": "0x" + "ab" * 20, "nonce": b"\1" * 32}

addresses = st.binary(min_size=20, max_size=20).map(lambda data: "0x" + data.hex())
structs = st.fixed_dictionaries(
    {
        "text": st.text(st.characters(exclude_categories=["Cs"])),
        "count": st.integers(min_value=0, max_value=2**256 - 1),
        "to": addresses,
        "nonce": st.binary(min_size=32, max_size=32),
    }
)


@given(
    values=structs,
    name=st.text(st.characters(exclude_categories=["Cs"])),
    version=st.sampled_from(["1", "2", ""]),
    chain_id=st.integers(min_value=0, max_value=2**64),
    contract=st.none() | addresses,
)
def test_digest_and_signature_are_those_of_eth_account(
    values: dict[str, Any], name: str, version: str, chain_id: int, contract: str | None
) -> None:
    domain = {"name": name, "version": version, "chainId": chain_id}
    if contract is not None:
        domain["verifyingContract"] = contract
    types = {"Thing": [{"name": field, "type": kind} for field, kind in FIELDS]}
    theirs = Account.sign_message(encode_typed_data(domain, types, values), KEY.secret)
    digest = typed_digest(domain_separator(name, version, chain_id, contract), struct_hash("Thing", FIELDS, values))
    assert digest == bytes(theirs.message_hash)
    assert sign_digest(KEY, digest) == bytes(theirs.signature)
    assert recover("thing", digest, sign_digest(KEY, digest)) == ADDRESS.lower()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", b"a"),
        ("text", "\ud800"),
        ("count", -1),
        ("count", 2**256),
        ("count", "1"),
        ("to", "ab" * 20),
        ("to", "0x" + "ab" * 19),
        ("to", "0x" + "zz" * 20),
        ("nonce", b"\1" * 31),
        ("nonce", "0x" + "01" * 32),
    ],
)
def test_a_value_that_is_not_of_its_type_is_named(name: str, value: object) -> None:
    with pytest.raises(MalformedError, match=name):
        struct_hash("Thing", FIELDS, {**GOOD, name: value})


def test_a_member_that_is_missing_is_named() -> None:
    with pytest.raises(MalformedError, match="nonce"):
        struct_hash("Thing", FIELDS, {name: value for name, value in GOOD.items() if name != "nonce"})


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        bytes(64),
        bytes(64) + b"\x1b",  # r and s are zero
        (ORDER).to_bytes(32) + (1).to_bytes(32) + b"\x1b",  # r is out of range
        (5).to_bytes(32) + (1).to_bytes(32) + b"\x1b",  # no point has this r
        sign_digest(KEY, b"\2" * 32)[:64] + b"\0",
        sign_digest(KEY, b"\2" * 32) + b"\0",
    ],
)
def test_what_is_no_signature_recovers_to_nobody(signature: bytes) -> None:
    with pytest.raises(EvidenceError):
        recover("thing", b"\2" * 32, signature)


def test_the_mirror_image_of_a_signature_is_refused() -> None:
    signature = sign_digest(KEY, b"\2" * 32)
    mirrored = signature[:32] + (ORDER - int.from_bytes(signature[32:64])).to_bytes(32) + bytes([55 - signature[64]])
    with pytest.raises(EvidenceError, match="canonical form"):
        recover("thing", b"\2" * 32, mirrored)


def test_an_address_is_that_of_its_key() -> None:
    assert address_of_point(KEY.public_key.format(compressed=False)) == ADDRESS.lower()
