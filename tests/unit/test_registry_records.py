"""The bytes on the chain and the values in the program are the same thing, and nothing else is accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedError
from attestation.registry.records import (
    KEY_RECORD_SIZE,
    MAX_EXPIRY,
    KeyRecord,
    encode_key,
    encode_manifest,
    key_name,
    parse_key,
    parse_manifest,
)

digests = st.binary(min_size=32, max_size=32).map(lambda data: "sha256:" + data.hex())
addresses = st.binary(min_size=20, max_size=20).filter(any).map(lambda data: "0x" + data.hex())
records = st.builds(KeyRecord, addresses, digests, st.integers(1, MAX_EXPIRY))

GOOD = KeyRecord("0x" + "ab" * 20, "sha256:" + "cd" * 32, 1_900_000_000)


def test_the_layout_is_the_published_one() -> None:
    data = encode_key(GOOD)
    assert data.hex() == "01" + "ab" * 20 + "cd" * 32 + "00000000713fb300"
    assert len(data) == KEY_RECORD_SIZE == 61
    assert encode_manifest("sha256:" + "ef" * 32) == b"\xef" * 32


@given(records)
def test_a_key_record_survives_the_chain(record: KeyRecord) -> None:
    assert parse_key(encode_key(record)) == record


@given(digests)
def test_a_manifest_digest_survives_the_chain(digest: str) -> None:
    assert parse_manifest(encode_manifest(digest)) == digest


@given(st.binary(max_size=130))
def test_whatever_parses_is_the_only_encoding_of_what_it_says(data: bytes) -> None:
    try:
        record = parse_key(data)
    except MalformedError:
        return
    assert encode_key(record) == data


@given(records, st.integers(0, KEY_RECORD_SIZE - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_says_something_else(record: KeyRecord, position: int, change: int) -> None:
    data = bytearray(encode_key(record))
    data[position] ^= change
    try:
        changed = parse_key(bytes(data))
    except MalformedError:
        return
    assert changed != record


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "must be 61 bytes, is 0"),
        (encode_key(GOOD)[:-1], "must be 61 bytes, is 60"),
        (encode_key(GOOD) + b"\0", "must be 61 bytes, is 62"),
        (b"\x02" + encode_key(GOOD)[1:], "version: must be 1, is 2"),
        (b"\x01" + bytes(20) + encode_key(GOOD)[21:], "zero address"),
        (encode_key(GOOD)[:53] + bytes(8), "expires_at"),
        (encode_key(GOOD)[:53] + b"\xff" * 8, "expires_at"),
    ],
)
def test_a_malformed_key_record_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        parse_key(data)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_malformed_manifest_record_says_what_is_wrong(size: int) -> None:
    with pytest.raises(MalformedError, match=f"must be 32 bytes, is {size}"):
        parse_manifest(bytes(size))


@pytest.mark.parametrize(
    "record",
    [
        KeyRecord("0x" + "00" * 20, GOOD.keyset_digest, 1),
        KeyRecord("0x" + "ab" * 19, GOOD.keyset_digest, 1),
        KeyRecord(GOOD.payment_key, "cd" * 32, 1),
        KeyRecord(GOOD.payment_key, "sha256:" + "CD" * 32, 1),
        KeyRecord(GOOD.payment_key, GOOD.keyset_digest, 0),
        KeyRecord(GOOD.payment_key, GOOD.keyset_digest, -1),
        KeyRecord(GOOD.payment_key, GOOD.keyset_digest, MAX_EXPIRY + 1),
    ],
)
def test_what_could_not_be_read_back_is_not_written(record: KeyRecord) -> None:
    with pytest.raises(MalformedError):
        encode_key(record)


def test_a_replicas_name_becomes_its_key() -> None:
    assert key_name("main") == "tee.key.main"
    assert key_name("eu-1") == "tee.key.eu-1"


@pytest.mark.parametrize("name", ["", "Main", "a.b", "-a", "a-", "a" * 33, "é", "a b", "a\n"])
def test_a_replicas_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(MalformedError, match="replica"):
        key_name(name)
