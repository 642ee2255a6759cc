"""A keyset has one shape, one digest, and one key for each role."""

from typing import Any

import pytest
from hypothesis import given, settings

from attestation.enclave.keyring import KeyRing
from attestation.errors import EnclaveError, MalformedError
from attestation.keyset import (
    ALGO_HTTP,
    ALGO_PAYMENT,
    ALGO_RECEIPT,
    build_keyset,
    check_nonce,
    parse_keyset,
    report_data,
    report_data_slot,
    statement,
)
from attestation.payment_proof import address_of
from tests.fuzz import changed


@pytest.fixture(scope="module")
def keys() -> KeyRing:
    return KeyRing.generate()


def document(keys: KeyRing) -> dict[str, Any]:
    return dict(build_keyset(subject="eip155:1:0xab:0", not_after=2_000_000_000, keys=keys.public_keys()).document)


def test_each_role_has_its_own_key_under_the_published_ids(keys: KeyRing) -> None:
    listed = {(key.key_id, key.algo) for key in keys.public_keys()}
    assert listed == {("receipt", ALGO_RECEIPT), ("http", ALGO_HTTP), ("payment", ALGO_PAYMENT)}
    assert len({key.public_key for key in keys.public_keys()}) == 3


def test_the_payment_address_is_the_one_of_the_listed_key(keys: KeyRing) -> None:
    listed = parse_keyset(document(keys)).key(ALGO_PAYMENT)
    assert address_of(listed.public_key) == keys.payment_address


def test_two_boots_share_no_key() -> None:
    first, second = KeyRing.generate(), KeyRing.generate()
    assert {key.public_key for key in first.public_keys()}.isdisjoint(key.public_key for key in second.public_keys())


def test_the_digest_covers_what_we_do_not_understand(keys: KeyRing) -> None:
    one = document(keys)
    other = {**one, "e2ee_public_keys": [{"key_id": "k", "algo": "unknown", "public_key": "00"}]}
    assert parse_keyset(one).digest != parse_keyset(other).digest


def test_a_key_with_an_unknown_algorithm_is_ignored(keys: KeyRing) -> None:
    one = document(keys)
    one["receipt_signing_keys"] = [
        *one["receipt_signing_keys"],
        {"key_id": "new", "algo": "ml-dsa-65", "public_key": "not even hex"},
    ]
    assert parse_keyset(one).key(ALGO_RECEIPT).key_id == "receipt"


@pytest.mark.parametrize(
    "change",
    [
        {"not_after": True},
        {"not_after": "2000000000"},
        {"not_after": -1},
        {"subject": 1},
        {"receipt_signing_keys": {}},
        {"receipt_signing_keys": [1]},
        {"receipt_signing_keys": [{"key_id": "a", "algo": ALGO_RECEIPT}]},
        {"receipt_signing_keys": [{"key_id": "a", "algo": ALGO_RECEIPT, "public_key": "00"}]},
        {"receipt_signing_keys": [{"key_id": "a", "algo": ALGO_RECEIPT, "public_key": "AB" * 32}]},
        {"tls_public_keys": [{"spki_sha256": "xyz"}]},
        {"more": 1},
    ],
)
def test_any_other_shape_is_refused(keys: KeyRing, change: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        parse_keyset({**document(keys), **change})


@pytest.mark.parametrize("name", ["key_id", "public_key"])
def test_a_key_in_two_roles_is_refused(keys: KeyRing, name: str) -> None:
    one = document(keys)
    entries = [dict(entry) for entry in one["receipt_signing_keys"]]
    entries[1][name] = entries[0][name]
    with pytest.raises(MalformedError, match="one role"):
        parse_keyset({**one, "receipt_signing_keys": entries})


def test_a_missing_field_is_named(keys: KeyRing) -> None:
    one = document(keys)
    del one["tls_public_keys"]
    with pytest.raises(MalformedError, match="tls_public_keys"):
        parse_keyset(one)


def test_two_keys_for_one_role_are_no_answer(keys: KeyRing) -> None:
    both = (*keys.public_keys(), *KeyRing.generate().public_keys()[:1])
    renamed = (*both[:3], type(both[3])("receipt-2", both[3].algo, both[3].public_key))
    with pytest.raises(MalformedError, match="exactly one"):
        build_keyset(subject=None, not_after=1, keys=renamed).key(ALGO_RECEIPT)


@pytest.mark.parametrize("nonce", ["", "ab" * 31, "ab" * 33, "AB" * 32, "zz" * 32, "ab" * 32 + "\n", '"' * 64])
def test_a_nonce_is_64_lower_case_hex_characters(nonce: str) -> None:
    with pytest.raises(MalformedError):
        check_nonce(nonce)


def test_the_statement_has_exact_bytes() -> None:
    assert statement("sha256:aa", None) == b'{"keyset_digest":"sha256:aa","nonce":null,"purpose":"aci.report_data.v1"}'
    nonce = "0f" * 32
    assert statement("sha256:aa", nonce) == (
        b'{"keyset_digest":"sha256:aa","nonce":"' + nonce.encode() + b'","purpose":"aci.report_data.v1"}'
    )


def test_report_data_is_padded_with_zeros_to_the_slot() -> None:
    data = report_data("sha256:aa", None)
    assert (len(data), report_data_slot(data)) == (32, data + b"\0" * 32)


def test_a_sealed_answer_opens_only_with_this_boots_key_and_for_its_own_payment(keys: KeyRing) -> None:
    sealed = keys.seal(b"answer", context=b"payment 1")
    assert keys.unseal(sealed, context=b"payment 1") == b"answer"
    for ring, data, context in (
        (keys, sealed, b"payment 2"),
        (KeyRing.generate(), sealed, b"payment 1"),
        (keys, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"payment 1"),
        (keys, b"", b"payment 1"),
    ):
        with pytest.raises(EnclaveError):
            ring.unseal(data, context=context)


def test_a_key_ring_shows_no_key_and_cannot_be_pickled(keys: KeyRing) -> None:
    import pickle

    assert repr(keys) == f"<KeyRing payment={keys.payment_address}>"
    with pytest.raises(EnclaveError):
        pickle.dumps(keys)


SHOWN = dict(build_keyset(subject=None, not_after=1, keys=KeyRing.generate().public_keys()).document)


@settings(max_examples=100, deadline=None)
@given(changed(SHOWN))
def test_a_keyset_is_read_in_full_or_is_malformed(value: Any) -> None:
    try:
        keyset = parse_keyset(value)
    except MalformedError:
        return
    assert (keyset.document, keyset.subject, keyset.not_after) == (value, value["subject"], value["not_after"])
    assert [key.to_json() for key in keyset.receipt_signing_keys] == value["receipt_signing_keys"]


def test_a_number_that_readers_do_not_agree_on_makes_no_keyset(keys: KeyRing) -> None:
    with pytest.raises(MalformedError, match="no canonical form"):
        build_keyset(subject=None, not_after=2**53, keys=keys.public_keys())
