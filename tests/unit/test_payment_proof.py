"""Offers and x402 receipts count only under the attested key, in one spelling, for one meaning."""

from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings

from attestation.enclave.keyring import KeyRing
from attestation.errors import EvidenceError, MalformedError, TollsealError
from attestation.keyset import ALGO_PAYMENT
from attestation.payment_proof import (
    Offer,
    PaymentReceipt,
    address_of,
    authorization_signer,
    check_signer,
    parse_offer,
    parse_payment_receipt,
)
from tests.fuzz import changed
from tests.purchases import PAY_TO, TOKEN, Shop

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SHOP = Shop()
KEY = SHOP.keyset.key(ALGO_PAYMENT).public_key
OFFER = SHOP.offer()
RECEIPT = SHOP.payment_receipt()


def raw(signed: dict[str, Any]) -> bytes:
    return bytes.fromhex(signed["signature"][2:])


def resigned(signed: dict[str, Any], signature: bytes) -> dict[str, Any]:
    return {**signed, "signature": "0x" + signature.hex()}


def test_what_was_signed_is_what_is_read() -> None:
    offer, receipt = parse_offer(OFFER), parse_payment_receipt(RECEIPT)
    assert isinstance(offer, Offer)
    assert isinstance(receipt, PaymentReceipt)
    assert (offer.payload(), receipt.payload()) == (OFFER["payload"], RECEIPT["payload"])
    check_signer(OFFER, "Offer", KEY)
    check_signer(RECEIPT, "Receipt", KEY)


def test_another_key_is_named_beside_the_attested_one() -> None:
    other = Shop()
    with pytest.raises(EvidenceError, match=other.keys.payment_address):
        check_signer(other.offer(), "Offer", KEY)


@pytest.mark.parametrize(("signed", "kind"), [(OFFER, "Offer"), (RECEIPT, "Receipt")])
def test_no_field_changes_under_the_signature(signed: dict[str, Any], kind: str) -> None:
    for name, value in signed["payload"].items():
        other = value + 1 if isinstance(value, int) else value + "0"
        with pytest.raises(EvidenceError):
            check_signer({**signed, "payload": {**signed["payload"], name: other}}, kind, KEY)


def test_an_offer_does_not_pass_for_a_receipt() -> None:
    with pytest.raises(EvidenceError):
        check_signer(OFFER, "Receipt", KEY)


def test_the_mirror_image_of_a_signature_is_refused() -> None:
    good = raw(OFFER)
    mirrored = good[:32] + (ORDER - int.from_bytes(good[32:64])).to_bytes(32) + bytes([55 - good[64]])
    with pytest.raises(EvidenceError, match="canonical form"):
        check_signer(resigned(OFFER, mirrored), "Offer", KEY)


@pytest.mark.parametrize("v", [0, 1, 29, 37, 255])
def test_a_recovery_number_has_one_spelling(v: int) -> None:
    with pytest.raises(EvidenceError, match="canonical form"):
        check_signer(resigned(OFFER, raw(OFFER)[:64] + bytes([v])), "Offer", KEY)


@pytest.mark.parametrize("r", [0, 5, ORDER, 2**256 - 1])
def test_a_signature_that_belongs_to_no_key_is_refused(r: int) -> None:
    with pytest.raises(EvidenceError, match="recovers to no key"):
        check_signer(resigned(OFFER, r.to_bytes(32) + raw(OFFER)[32:]), "Offer", KEY)


@pytest.mark.parametrize("signature", [None, 1, "", "0x", "0x" + "00" * 64, "0x" + "AB" * 65])
def test_a_signature_is_65_bytes_of_lower_case_hex(signature: object) -> None:
    with pytest.raises(MalformedError, match=r"offer\.signature"):
        check_signer({**OFFER, "signature": signature}, "Offer", KEY)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"format": "jws"}, r"offer\.format: must be eip712"),
        ({"acceptIndex": -1}, r"offer\.acceptIndex"),
        ({"acceptIndex": True}, r"offer\.acceptIndex"),
        ({"more": 1}, r"offer\.more"),
        ({"payload": []}, r"offer\.payload"),
        ({"payload": {**OFFER["payload"], "version": 2}}, r"offer\.version: must be 1"),
        ({"payload": {**OFFER["payload"], "validUntil": "1"}}, r"offer\.validUntil"),
        ({"payload": {**OFFER["payload"], "validUntil": 2**256}}, r"offer\.validUntil: does not fit in a uint256"),
        ({"payload": {**OFFER["payload"], "amount": "01"}}, r"offer\.amount"),
        ({"payload": {**OFFER["payload"], "asset": 1}}, r"offer\.asset"),
        ({"payload": {**OFFER["payload"], "more": 1}}, r"offer\.payload\.more"),
    ],
)
def test_an_offer_of_another_shape_is_refused_and_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(MalformedError, match=where):
        parse_offer({**OFFER, **change})


def test_a_receipt_has_no_place_among_the_terms() -> None:
    with pytest.raises(MalformedError, match="acceptIndex: is not a known field"):
        parse_payment_receipt({**RECEIPT, "acceptIndex": 0})


@settings(max_examples=100, deadline=None)
@given(changed(OFFER))
def test_an_offer_is_read_in_full_or_is_malformed(document: Any) -> None:
    try:
        offer = parse_offer(document)
    except MalformedError:
        return
    assert offer.payload() == document["payload"]
    if document["payload"] != OFFER["payload"]:
        with pytest.raises(TollsealError):
            check_signer(document, "Offer", KEY)


@settings(max_examples=100, deadline=None)
@given(changed(RECEIPT))
def test_a_payment_receipt_is_read_in_full_or_is_malformed(document: Any) -> None:
    try:
        receipt = parse_payment_receipt(document)
    except MalformedError:
        return
    assert receipt.payload() == document["payload"]


# The payer's own signature

PAYER = Account.create()
MESSAGE = {
    "from": PAYER.address,
    "to": PAY_TO,
    "value": 10_000,
    "validAfter": 0,
    "validBefore": 1_790_000_900,
    "nonce": b"\5" * 32,
}


def honest_signature() -> bytes:
    kinds = ("address", "address", "uint256", "uint256", "uint256", "bytes32")
    typed = encode_typed_data(
        domain_data={"name": "USDC", "version": "2", "chainId": 84532, "verifyingContract": TOKEN},
        message_types={
            "TransferWithAuthorization": [
                {"name": name, "type": kind} for name, kind in zip(MESSAGE, kinds, strict=True)
            ]
        },
        message_data=MESSAGE,
    )
    return bytes(PAYER.sign_message(typed).signature)


def authorize(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "network": "eip155:84532",
        "asset": TOKEN,
        "token_name": "USDC",
        "token_version": "2",
        "message": MESSAGE,
        "signature": honest_signature(),
    }
    return authorization_signer(**{**arguments, **changes})


def test_the_payer_is_found_from_his_signature() -> None:
    assert authorize() == PAYER.address.lower()


@pytest.mark.parametrize(
    "change",
    [
        {"network": "eip155:8453"},
        {"asset": "0x" + "11" * 20},
        {"token_name": "USD Coin"},
        {"token_version": "1"},
        {"message": {**MESSAGE, "value": 10_001}},
        {"message": {**MESSAGE, "to": TOKEN}},
        {"message": {**MESSAGE, "nonce": b"\6" * 32}},
    ],
)
def test_his_signature_is_for_one_transfer_of_one_token_on_one_chain(change: dict[str, Any]) -> None:
    assert authorize(**change) != PAYER.address.lower()


@pytest.mark.parametrize(
    "network",
    [
        "",
        "eip155",
        "eip155:",
        "eip155:x",
        "solana:1",
        "eip155:-1",
        "eip155:0",
        "eip155:01",
        "eip155:\N{ARABIC-INDIC DIGIT THREE}",
        "eip155:" + "9" * 5000,
        "eip155:\N{SUPERSCRIPT TWO}",
    ],
)
def test_a_payment_on_what_is_no_evm_chain_is_malformed(network: str) -> None:
    with pytest.raises(MalformedError, match=r"payment\.network"):
        authorize(network=network)


def test_a_payment_signed_by_no_key_is_refused() -> None:
    with pytest.raises(EvidenceError, match="the payment's signature recovers to no key"):
        authorize(signature=bytes(64) + b"\x1b")


def test_a_payers_signature_may_count_its_recovery_from_zero() -> None:
    """Facilitators take both, so a buyer whose wallet signs like this has paid."""
    good = honest_signature()
    assert authorize(signature=good[:64] + bytes([good[64] - 27])) == authorize(signature=good)


def test_no_other_form_of_a_payers_signature_counts() -> None:
    good = honest_signature()
    mirrored = good[:32] + (ORDER - int.from_bytes(good[32:64])).to_bytes(32) + bytes([55 - good[64]])
    others = [good[:64] + bytes([v]) for v in (2, good[64] + 8, good[64] + 32)]
    for signature in (mirrored, *others, good[:64], good + b"\0", b""):
        with pytest.raises(EvidenceError, match="the payment's signature is not in canonical form"):
            authorize(signature=signature)


def test_the_address_of_a_key_is_the_one_it_signs_with() -> None:
    keys = KeyRing.generate()
    listed = next(key for key in keys.public_keys() if key.algo == ALGO_PAYMENT)
    assert address_of(listed.public_key) == keys.payment_address


@pytest.mark.parametrize("public_key", ["", "04" + "11" * 63, "02" + "11" * 64, "04" + "AB" * 64, "0x04" + "11" * 63])
def test_only_an_uncompressed_point_has_an_address(public_key: str) -> None:
    with pytest.raises(MalformedError, match="public_key"):
        address_of(public_key)
