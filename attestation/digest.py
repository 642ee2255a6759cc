"""Hashes and canonical JSON, the only place where either is computed.

Encodings follow aci/1, Appendix A: digest fields are ``sha256:<lower hex>``, fields ending in ``_sha256`` are bare
lower hex, and JSON documents are hashed in their RFC 8785 (JCS) form.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import rfc8785
from eth_utils.crypto import keccak

from attestation.errors import MalformedError

_PLAIN: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))

_MAX_INTEGER: Final = 2**53 - 1

_CHUNK: Final = 1 << 20
"""Bytes read at a time from a file: large enough to be fast, small enough to show progress."""


class CanonicalizationError(MalformedError):
    """The value has no RFC 8785 form (a non-string key, NaN, an integer beyond 2**53, a lone surrogate)."""

    def __init__(self, problem: str) -> None:
        super().__init__("document", f"has no canonical form (RFC 8785): {problem}")


def sha256(data: bytes) -> bytes:
    """The raw 32-byte SHA-256 of `data`."""
    return hashlib.sha256(data).digest()


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of `data` as 64 lower-case hex characters."""
    return hashlib.sha256(data).hexdigest()


def keccak256(data: bytes) -> bytes:
    """The raw 32-byte Keccak-256 of `data`, which ERC-8004 uses for what a URI holds."""
    return keccak(data)


def digest(data: bytes) -> str:
    """The SHA-256 of `data` as ``sha256:<hex>`` (aci/1, Appendix A)."""
    return f"sha256:{sha256_hex(data)}"


def jcs(value: Any) -> bytes:
    """The RFC 8785 canonical form of a JSON value, as UTF-8 bytes.

    Raises:
        CanonicalizationError: the value is outside the I-JSON subset that RFC 8785 covers.
    """
    try:
        if _is_plain(value):
            return _PLAIN.encode(value).encode()
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise CanonicalizationError(str(error)) from error


def _is_plain(value: Any) -> bool:
    """Whether the standard library's encoder writes this value as RFC 8785 wants it, at a tenth of the time.

    So it does but for floats, integers beyond 2**53 and keys outside ASCII, which it sorts differently.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return bool(-_MAX_INTEGER <= value <= _MAX_INTEGER)
    if kind is dict:
        return all(type(key) is str and key.isascii() and _is_plain(item) for key, item in value.items())
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))
    return False


def jcs_digest(value: Any) -> str:
    """``sha256:<hex>`` over the RFC 8785 form of a JSON value."""
    return digest(jcs(value))


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file's content as 64 lower-case hex characters.

    Args:
        path: the file; it is read once, a chunk at a time.
        progress: called with the number of bytes read since the last call.

    Raises:
        OSError: the file cannot be read.
    """
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return state.hexdigest()
