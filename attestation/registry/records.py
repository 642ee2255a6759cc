"""The two records an agent publishes as ERC-8004 identity metadata, packed to keep a boot cheap.

tee.manifest          32 bytes   sha256 of the build manifest
tee.key.<replica>     61 bytes   version 1 (1) | payment key address (20) | keyset digest (32) | expiry, unix
                                 seconds, big-endian (8)
tee.key.<replica>-2              the same: a replica's keysets use its two slots in turn, so that the record of one
                                 stays when the next is published
"""

import re
from dataclasses import dataclass
from typing import Final

from attestation.encoding import address, hex_bytes
from attestation.errors import MalformedError

MANIFEST_KEY: Final = "tee.manifest"
KEY_PREFIX: Final = "tee.key."
SECOND_SLOT: Final = "--2"
"""Ends the name of a replica's second slot; no replica's own name ends like this."""

MANIFEST_SIZE: Final = 32
KEY_RECORD_SIZE: Final = 61
KEY_RECORD_VERSION: Final = 1
MAX_EXPIRY: Final = (1 << 53) - 1
"""Largest expiry accepted: the largest integer that JSON readers agree on."""

_REPLICA: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_DIGEST: Final = "sha256:"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """Which keyset a replica runs under.

    payment_key: address of the key that signs offers and receipts (0x, 40 lower-case hex characters).
    keyset_digest: ``sha256:<hex>`` of the keyset.
    expires_at: unix seconds; from this second on the record is no longer to be trusted.
    """

    payment_key: str
    keyset_digest: str
    expires_at: int


def key_name(replica: str) -> str:
    """The metadata key of a replica's record.

    Raises:
        MalformedError: not 1 to 32 characters of a-z, 0-9 and inner hyphens.
    """
    if not _REPLICA.fullmatch(replica):
        raise MalformedError("replica", "must be 1 to 32 characters of a-z, 0-9 and inner hyphens")
    return KEY_PREFIX + replica


def encode_manifest(digest: str) -> bytes:
    """The 32 bytes of ``sha256:<hex>``.

    Raises:
        MalformedError: not such a digest.
    """
    return _digest_bytes(digest, "manifest digest")


def parse_manifest(data: bytes) -> str:
    """``sha256:<hex>`` from the bytes of `tee.manifest`.

    Raises:
        MalformedError: not 32 bytes.
    """
    if len(data) != MANIFEST_SIZE:
        raise MalformedError(MANIFEST_KEY, f"must be {MANIFEST_SIZE} bytes, is {len(data)}")
    return _DIGEST + data.hex()


def encode_key(record: KeyRecord) -> bytes:
    """The 61 bytes of a record.

    Raises:
        MalformedError: a field is out of its range.
    """
    payment_key = _payment_key(record.payment_key)
    if not 0 < record.expires_at <= MAX_EXPIRY:
        raise MalformedError("key record expires_at", f"must be 1 to {MAX_EXPIRY}")
    return b"".join(
        (
            bytes((KEY_RECORD_VERSION,)),
            bytes.fromhex(payment_key[2:]),
            _digest_bytes(record.keyset_digest, "key record keyset_digest"),
            record.expires_at.to_bytes(8, "big"),
        )
    )


def parse_key(data: bytes) -> KeyRecord:
    """The record in the bytes of `tee.key.<replica>`.

    Raises:
        MalformedError: wrong size, unknown version, zero address, or an expiry out of range.
    """
    if len(data) != KEY_RECORD_SIZE:
        raise MalformedError("key record", f"must be {KEY_RECORD_SIZE} bytes, is {len(data)}")
    if data[0] != KEY_RECORD_VERSION:
        raise MalformedError("key record version", f"must be {KEY_RECORD_VERSION}, is {data[0]}")
    expires_at = int.from_bytes(data[53:], "big")
    if not 0 < expires_at <= MAX_EXPIRY:
        raise MalformedError("key record expires_at", f"must be 1 to {MAX_EXPIRY}")
    return KeyRecord(
        payment_key=_payment_key("0x" + data[1:21].hex()),
        keyset_digest=_DIGEST + data[21:53].hex(),
        expires_at=expires_at,
    )


def _payment_key(value: str) -> str:
    lower = address(value, "key record payment_key")
    if int(lower, 16) == 0:
        raise MalformedError("key record payment_key", "must not be the zero address")
    return lower


def _digest_bytes(value: str, where: str) -> bytes:
    if not value.startswith(_DIGEST):
        raise MalformedError(where, "must be sha256:<64 lower-case hex characters>")
    return hex_bytes(value.removeprefix(_DIGEST), where, size=32)
