"""x402 offers and receipts: the service's signed promise of terms, and its signed word that it was paid.

Source: x402 extension `offer-receipt`, format `eip712`. The EIP-712 domains carry the constant chain id 1 and no
contract, because the signatures are checked off chain whatever network the payment is on.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from attestation import encoding
from attestation.eip712 import Fields, address_of_point, domain_separator, recover, struct_hash, typed_digest
from attestation.errors import EvidenceError, MalformedError
from attestation.money import MAX_UINT256

EXTENSION: Final = "offer-receipt"
"""Key of the extension in a 402's and in a settlement response's `extensions`."""
FORMAT: Final = "eip712"
VERSION: Final = 1

_OFFER_TYPES: Final[Fields] = (
    ("version", "uint256"),
    ("resourceUrl", "string"),
    ("scheme", "string"),
    ("network", "string"),
    ("asset", "string"),
    ("payTo", "string"),
    ("amount", "string"),
    ("validUntil", "uint256"),
)
_RECEIPT_TYPES: Final[Fields] = (
    ("version", "uint256"),
    ("network", "string"),
    ("resourceUrl", "string"),
    ("payer", "string"),
    ("issuedAt", "uint256"),
    ("transaction", "string"),
)
_AUTHORIZATION_TYPES: Final[Fields] = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)
_EVM_CHAIN: Final = re.compile(r"eip155:([1-9][0-9]{0,18})")


class TypedDataSigner(Protocol):
    """Holds the payment key of a keyset."""

    def sign_typed_data(self, digest: bytes) -> bytes:
        """The 65-byte r || s || v signature over the 32-byte digest of EIP-712 typed data, v being 27 or 28."""
        ...


@dataclass(frozen=True, slots=True)
class Offer:
    """Terms that the service has bound itself to."""

    resource_url: str
    scheme: str
    network: str
    """CAIP-2."""
    asset: str
    pay_to: str
    amount: str
    """Atomic units, as decimal text."""
    valid_until: int
    """Unix seconds; 0 means that no end is named."""

    def payload(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "resourceUrl": self.resource_url,
            "scheme": self.scheme,
            "network": self.network,
            "asset": self.asset,
            "payTo": self.pay_to,
            "amount": self.amount,
            "validUntil": self.valid_until,
        }


@dataclass(frozen=True, slots=True)
class PaymentReceipt:
    """The service's word that `payer` paid for `resource_url`."""

    network: str
    resource_url: str
    payer: str
    issued_at: int
    """Unix seconds."""
    transaction: str
    """Transaction hash, or empty where the service does not disclose it."""

    def payload(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "network": self.network,
            "resourceUrl": self.resource_url,
            "payer": self.payer,
            "issuedAt": self.issued_at,
            "transaction": self.transaction,
        }


def sign_offer(offer: Offer, signer: TypedDataSigner, *, accept_index: int) -> dict[str, Any]:
    """A signed offer for the 402's `extensions["offer-receipt"].info.offers`; `accept_index` points into `accepts`."""
    payload = offer.payload()
    return {
        "format": FORMAT,
        "acceptIndex": accept_index,
        "payload": payload,
        "signature": _sign(signer, "Offer", payload),
    }


def sign_payment_receipt(receipt: PaymentReceipt, signer: TypedDataSigner) -> dict[str, Any]:
    """A signed receipt for the settlement response's `extensions["offer-receipt"].info.receipt`."""
    payload = receipt.payload()
    return {"format": FORMAT, "payload": payload, "signature": _sign(signer, "Receipt", payload)}


def parse_offer(value: Any) -> Offer:
    """An offer's content from its signed object; the signature is checked by `check_signer`.

    Raises:
        MalformedError: not a version 1 EIP-712 offer.
    """
    payload = _payload(value, "offer", _OFFER_TYPES, frozenset({"acceptIndex"}))
    encoding.decimal_text(payload["amount"], "offer.amount")
    return Offer(
        resource_url=payload["resourceUrl"],
        scheme=payload["scheme"],
        network=payload["network"],
        asset=payload["asset"],
        pay_to=payload["payTo"],
        amount=payload["amount"],
        valid_until=payload["validUntil"],
    )


def parse_payment_receipt(value: Any) -> PaymentReceipt:
    """A payment receipt's content from its signed object; the signature is checked by `check_signer`.

    Raises:
        MalformedError: not a version 1 EIP-712 receipt.
    """
    payload = _payload(value, "x402 receipt", _RECEIPT_TYPES)
    return PaymentReceipt(
        network=payload["network"],
        resource_url=payload["resourceUrl"],
        payer=payload["payer"],
        issued_at=payload["issuedAt"],
        transaction=payload["transaction"],
    )


def check_signer(value: Mapping[str, Any], primary_type: str, public_key: str) -> None:
    """Check that a signed offer ("Offer") or receipt ("Receipt") comes from the keyset's payment key.

    Args:
        value: the signed object, already parsed by `parse_offer` or `parse_payment_receipt`.
        primary_type: "Offer" or "Receipt".
        public_key: the uncompressed secp256k1 key of the keyset, as hex.

    Raises:
        EvidenceError: it was signed by another key, or changed afterwards.
        MalformedError: the signature is not 65 bytes of lower-case hex.
    """
    signer = signer_of(value, primary_type)
    expected = address_of(public_key)
    if signer != expected:
        raise EvidenceError(f"the {primary_type.lower()} was signed by {signer}, the attested key is {expected}")


def signer_of(value: Mapping[str, Any], primary_type: str) -> str:
    """The address that signed an offer ("Offer") or a receipt ("Receipt"): 0x and 40 lower-case hex characters.

    Raises:
        EvidenceError: nobody did.
        MalformedError: the signature is not 65 bytes of lower-case hex.
    """
    what = primary_type.lower()
    signature = encoding.prefixed_hex_bytes(value.get("signature"), f"{what}.signature", size=65)
    try:
        signed = _digest(primary_type, value["payload"])
    except MalformedError as error:
        raise EvidenceError(f"this is no {what}: {error}") from error
    return recover(what, signed, signature)


def authorization_signer(
    *, network: str, asset: str, token_name: str, token_version: str, message: Mapping[str, Any], signature: bytes
) -> str:
    """The address that signed an EIP-3009 `TransferWithAuthorization`: 0x and 40 lower-case hex characters.

    Args:
        network: CAIP-2, such as ``eip155:84532``.
        asset: the token's address.
        token_name: the token's EIP-712 domain name.
        token_version: the token's EIP-712 domain version.
        message: from, to, value, validAfter, validBefore (integers) and nonce (32 bytes).
        signature: 65 bytes, of which the last may also be 0 for 27 and 1 for 28, as facilitators take it; a contract
            wallet's signature has another form and cannot be recovered.

    Raises:
        EvidenceError: the signature recovers to no key, or tokens do not accept its form.
        MalformedError: the network is not an EVM chain.
    """
    chain_id = _EVM_CHAIN.fullmatch(network)
    if chain_id is None:
        raise MalformedError("payment.network", "must be eip155:<chain id>")
    if signature[64:] in (b"\0", b"\1"):
        signature = signature[:64] + bytes([signature[64] + 27])
    return recover(
        "payment", authorization_digest(int(chain_id[1]), asset, token_name, token_version, message), signature
    )


def authorization_digest(
    chain_id: int, asset: str, token_name: str, token_version: str, message: Mapping[str, Any]
) -> bytes:
    """The 32 bytes that a payer signs for an EIP-3009 `TransferWithAuthorization`; `message` as for its signer.

    Raises:
        MalformedError: a member of the message is not of its type.
    """
    separator = domain_separator(token_name, token_version, chain_id, asset)
    return typed_digest(separator, struct_hash("TransferWithAuthorization", _AUTHORIZATION_TYPES, message))


def address_of(public_key: str) -> str:
    """The EVM address of an uncompressed secp256k1 key in hex: 0x and 40 lower-case characters.

    Raises:
        MalformedError: not such a key.
    """
    data = encoding.hex_bytes(public_key, "public_key", size=65)
    if data[0] != 4:
        raise MalformedError("public_key", "must be an uncompressed secp256k1 point (it begins with 04)")
    return address_of_point(data)


def _payload(
    value: Any, where: str, types: tuple[tuple[str, str], ...], optional: frozenset[str] = frozenset()
) -> dict[str, Any]:
    signed = encoding.as_object(value, where)
    encoding.only(signed, where, {"format", "payload", "signature"}, optional)
    if signed["format"] != FORMAT:
        raise MalformedError(f"{where}.format", f"must be {FORMAT}")
    if "acceptIndex" in signed:
        encoding.integer(signed["acceptIndex"], f"{where}.acceptIndex")
    payload = encoding.as_object(signed["payload"], f"{where}.payload")
    encoding.only(payload, f"{where}.payload", {name for name, _ in types})
    for name, kind in types:
        if kind == "uint256":
            if encoding.integer(payload[name], f"{where}.{name}") > MAX_UINT256:
                raise MalformedError(f"{where}.{name}", "does not fit in a uint256")
        else:
            encoding.text(payload[name], f"{where}.{name}")
    if payload["version"] != VERSION:
        raise MalformedError(f"{where}.version", f"must be {VERSION}")
    return payload


def _digest(primary_type: str, payload: Mapping[str, Any]) -> bytes:
    fields = _OFFER_TYPES if primary_type == "Offer" else _RECEIPT_TYPES
    return typed_digest(
        domain_separator(f"x402 {primary_type.lower()}", "1", 1), struct_hash(primary_type, fields, payload)
    )


def _sign(signer: TypedDataSigner, primary_type: str, payload: Mapping[str, Any]) -> str:
    return "0x" + signer.sign_typed_data(_digest(primary_type, payload)).hex()
