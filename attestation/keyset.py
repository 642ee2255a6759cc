"""The workload keyset: which keys this service signs with, and how the evidence binds them.

Source: aci/1 sections 3.1 (keyset) and 3.2 (attestation binding). Our two additional algorithms are published in
docs/formats.md; a verifier that does not know them ignores those entries (aci/1 section 3.1).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from attestation import encoding
from attestation.digest import jcs_digest, sha256
from attestation.errors import MalformedError

ALGO_RECEIPT: Final = "ed25519"
"""Signs receipts, and nothing else (aci/1 baseline)."""
ALGO_HTTP: Final = "ed25519-rfc9421"
"""Signs HTTP responses (RFC 9421, algorithm ed25519)."""
ALGO_PAYMENT: Final = "secp256k1-eip712"
"""Signs x402 offers and receipts; its address is what the registry publishes."""

PUBLIC_KEY_BYTES: Final[Mapping[str, int]] = MappingProxyType({ALGO_RECEIPT: 32, ALGO_HTTP: 32, ALGO_PAYMENT: 65})
"""Length of `public_key` for the algorithms known here; secp256k1 keys are uncompressed SEC 1 points."""

_NONCE: Final = re.compile(r"[0-9a-f]{64}")
REPORT_DATA_BYTES: Final = 64
"""The report-data slot of every TEE covered here; the 32-byte digest is zero-padded to it (aci/1 section 3.2)."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One entry of `receipt_signing_keys`: a key with exactly one role, named by its `algo`."""

    key_id: str
    algo: str
    public_key: str
    """Lower-case hex, no prefix."""

    def to_json(self) -> dict[str, str]:
        return {"key_id": self.key_id, "algo": self.algo, "public_key": self.public_key}


@dataclass(frozen=True, slots=True)
class Keyset:
    """A parsed keyset together with the exact JSON document it came from.

    The digest is over that document, not over what was understood of it, so a field that is unknown here still counts.
    """

    document: Mapping[str, Any]
    subject: str | None
    not_after: int
    """Unix seconds from which the keyset is no longer accepted."""
    receipt_signing_keys: tuple[PublicKey, ...]
    tls_spki_sha256: tuple[str, ...]
    digest: str = field(init=False)
    """``sha256:<hex>`` over the RFC 8785 form of the document (aci/1 section 3.1)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", jcs_digest(self.document))

    def key(self, algo: str) -> PublicKey:
        """The only key with this algorithm.

        Raises:
            MalformedError: there is none, or more than one.
        """
        keys = [key for key in self.receipt_signing_keys if key.algo == algo]
        if len(keys) != 1:
            raise MalformedError("keyset.receipt_signing_keys", f"must hold exactly one {algo} key, holds {len(keys)}")
        return keys[0]


def build_keyset(
    *, subject: str | None, not_after: int, keys: tuple[PublicKey, ...], tls_spki_sha256: tuple[str, ...] = ()
) -> Keyset:
    """A keyset from its parts; `not_after` is in unix seconds."""
    return parse_keyset(
        {
            "subject": subject,
            "not_after": not_after,
            "receipt_signing_keys": [key.to_json() for key in keys],
            "e2ee_public_keys": [],
            "tls_public_keys": [{"spki_sha256": spki} for spki in tls_spki_sha256],
        }
    )


def parse_keyset(value: Any) -> Keyset:
    """A keyset from its JSON document (aci/1 section 3.1, whose shape is fixed).

    Raises:
        MalformedError: a field is missing, unknown or of the wrong type; a key is used twice or has the wrong length.
    """
    document = encoding.as_object(value, "keyset")
    encoding.only(
        document, "keyset", {"subject", "not_after", "receipt_signing_keys", "e2ee_public_keys", "tls_public_keys"}
    )
    keys = tuple(_parse_key(item) for item in _entries(document, "receipt_signing_keys"))
    for name in ("key_id", "public_key"):
        if len({getattr(key, name) for key in keys}) != len(keys):
            raise MalformedError("keyset.receipt_signing_keys", f"uses one {name} twice; every key has one role")
    _entries(document, "e2ee_public_keys")
    spki = tuple(
        encoding.hex_bytes(entry.get("spki_sha256"), "keyset.tls_public_keys.spki_sha256", size=32).hex()
        for entry in _entries(document, "tls_public_keys")
    )
    return Keyset(
        document=document,
        subject=encoding.text(document["subject"], "keyset.subject", nullable=True),
        not_after=encoding.integer(document["not_after"], "keyset.not_after"),
        receipt_signing_keys=keys,
        tls_spki_sha256=spki,
    )


def _entries(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    entries = document[name]
    if not isinstance(entries, list):
        raise MalformedError(f"keyset.{name}", "must be a list")
    return [encoding.as_object(entry, f"keyset.{name}") for entry in entries]


def _parse_key(entry: dict[str, Any]) -> PublicKey:
    where = "keyset.receipt_signing_keys"
    encoding.only(entry, where, {"key_id", "algo", "public_key"})
    key = PublicKey(*(encoding.text(entry[name], f"{where}.{name}") for name in ("key_id", "algo", "public_key")))
    if (size := PUBLIC_KEY_BYTES.get(key.algo)) is not None:
        encoding.hex_bytes(key.public_key, f"{where}.public_key", size=size)
    return key


def check_nonce(nonce: str) -> str:
    """The nonce, when it is 64 lower-case hex characters (aci/1 section 3.2).

    Raises:
        MalformedError: it is anything else.
    """
    if not _NONCE.fullmatch(nonce):
        raise MalformedError("nonce", "must be exactly 64 lower-case hex characters (32 random bytes)")
    return nonce


def statement(keyset_digest: str, nonce: str | None) -> bytes:
    """The attestation statement's exact bytes (aci/1 section 3.2)."""
    quoted = "null" if nonce is None else f'"{check_nonce(nonce)}"'
    return f'{{"keyset_digest":"{keyset_digest}","nonce":{quoted},"purpose":"aci.report_data.v1"}}'.encode("ascii")


def report_data(keyset_digest: str, nonce: str | None) -> bytes:
    """The 32 bytes that the evidence must bind: SHA-256 of the statement (aci/1 section 3.2)."""
    return sha256(statement(keyset_digest, nonce))


def report_data_slot(data: bytes) -> bytes:
    """`data` as it stands in a TEE's 64-byte report-data slot: zero-padded at the end."""
    return data.ljust(REPORT_DATA_BYTES, b"\0")
