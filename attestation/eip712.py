"""EIP-712 typed data: what an Ethereum key signs, and whose signature it is.

Only flat structs of strings, integers, addresses and 32-byte words: what x402 offers, x402 receipts and EIP-3009
authorizations are made of. A paid call makes two of these hashes and one signature, so they are written out here
instead of going through a general encoder. Source: EIP-712, "Definition of encodeData"; EIP-2 for low s.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

import coincurve
from eth_utils.crypto import keccak

from attestation.errors import EvidenceError, MalformedError
from attestation.money import MAX_UINT256

Fields: TypeAlias = tuple[tuple[str, str], ...]
"""Names and types of a struct's members, in order; types are string, uint256, address and bytes32."""

_HALF_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 // 2
"""Half the order of secp256k1: a signature above it is the mirror image of another (EIP-2, low s)."""

_DOMAIN: Final[Fields] = (("name", "string"), ("version", "string"), ("chainId", "uint256"))
_CONTRACT: Final[Fields] = (("verifyingContract", "address"),)

SIGNATURE_BYTES: Final = 65


@lru_cache(maxsize=256)
def domain_separator(name: str, version: str, chain_id: int, verifying_contract: str | None = None) -> bytes:
    """The 32-byte hash of a domain. `verifying_contract` is left out of domains that have none.

    Raises:
        MalformedError: a value is out of its type's range.
    """
    fields = _DOMAIN if verifying_contract is None else _DOMAIN + _CONTRACT
    values = {"name": name, "version": version, "chainId": chain_id, "verifyingContract": verifying_contract}
    return struct_hash("EIP712Domain", fields, values)


def struct_hash(primary_type: str, fields: Fields, values: Mapping[str, Any]) -> bytes:
    """The 32-byte ``hashStruct`` of a flat struct.

    Args:
        primary_type: the struct's name.
        fields: its members.
        values: by name: str for string and address (0x and 40 hex digits), int for uint256, 32 bytes for bytes32.

    Raises:
        MalformedError: a value is not of its type; the member is named.
    """
    return keccak(_type_hash(primary_type, fields) + b"".join(_encode(name, kind, values) for name, kind in fields))


def typed_digest(separator: bytes, struct: bytes) -> bytes:
    """The 32 bytes that are signed."""
    return keccak(b"\x19\x01" + separator + struct)


def sign_digest(key: coincurve.PrivateKey, digest: bytes) -> bytes:
    """The 65-byte signature r || s || v over a digest; low s, v is 27 or 28, deterministic (RFC 6979)."""
    signature: bytes = key.sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([signature[64] + 27])


def recover(what: str, digest: bytes, signature: bytes) -> str:
    """The address that signed a digest: 0x and 40 lower-case hex characters.

    One message has one signature by one key, in one spelling: low s, and v is 27 or 28.

    Args:
        what: names the signed thing in errors.

    Raises:
        EvidenceError: the signature is not in that form, or recovers to no key.
    """
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        raise EvidenceError(f"the {what}'s signature is not in canonical form")
    if int.from_bytes(signature[32:64]) > _HALF_ORDER:
        raise EvidenceError(f"the {what}'s signature is not in canonical form")
    recoverable = signature[:64] + bytes([signature[64] - 27])
    try:
        key = coincurve.PublicKey.from_signature_and_message(recoverable, digest, hasher=None)
    except Exception as error:  # the library raises bare exceptions for r or s that are out of range or off the curve
        raise EvidenceError(f"the {what}'s signature recovers to no key") from error
    return address_of_point(key.format(compressed=False))


def address_of_point(point: bytes) -> str:
    """The address of an uncompressed secp256k1 point (65 bytes that begin with 4)."""
    return "0x" + keccak(point[1:])[12:].hex()


@lru_cache(maxsize=64)
def _type_hash(primary_type: str, fields: Fields) -> bytes:
    members = ",".join(f"{kind} {name}" for name, kind in fields)
    return keccak(f"{primary_type}({members})".encode())


@lru_cache(maxsize=4096)
def _text_hash(value: str) -> bytes:
    """Most texts that are signed are signed again and again: networks, tokens, addresses of services."""
    return keccak(value.encode())


def _encode(name: str, kind: str, values: Mapping[str, Any]) -> bytes:
    try:
        value = values[name]
        if kind == "string":
            return _text_hash(value)
        if kind == "uint256" and isinstance(value, int) and 0 <= value <= MAX_UINT256:
            return value.to_bytes(32)
        if kind == "address" and value[:2] == "0x" and len(value) == 42:
            return bytes(12) + bytes.fromhex(value[2:])
        if kind == "bytes32" and isinstance(value, bytes) and len(value) == 32:
            return value
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MalformedError(name, f"is not a {kind}") from error
    raise MalformedError(name, f"is not a {kind}")
