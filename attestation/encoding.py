"""Strict text encodings: exactly one text for every byte string.

A lenient decoder accepts several texts for the same bytes (upper-case hex, stray bits at the end of base64). A changed
artifact would then still verify, so everything here refuses any text but the canonical one.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, overload

from eth_utils.address import to_checksum_address
from pydantic_core import from_json

from attestation.errors import MalformedError

_HEX: Final = re.compile(r"[0-9a-f]*")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
MAX_JSON_DEPTH: Final = 32
"""Deepest nesting accepted in a parsed document; ours need fewer than ten levels."""


def hex_bytes(value: Any, where: str, *, size: int | None = None) -> bytes:
    """Bytes from lower-case hex without a prefix (aci/1, Appendix A).

    Raises:
        MalformedError: not a string, not lower-case hex, or not `size` bytes.
    """
    if not isinstance(value, str) or len(value) % 2 or not _HEX.fullmatch(value):
        raise MalformedError(where, "must be lower-case hex without a prefix")
    data = bytes.fromhex(value)
    if size is not None and len(data) != size:
        raise MalformedError(where, f"must be {size} bytes, is {len(data)}")
    return data


def prefixed_hex_bytes(value: Any, where: str, *, size: int | None = None) -> bytes:
    """Bytes from ``0x`` and lower-case hex, as EVM tools write signatures and hashes.

    Raises:
        MalformedError: not a string of that form, or not `size` bytes.
    """
    if not isinstance(value, str) or not value.startswith("0x"):
        raise MalformedError(where, "must be 0x and lower-case hex")
    return hex_bytes(value[2:], where, size=size)


def address(value: Any, where: str) -> str:
    """An EVM address as 0x and 40 lower-case hex characters, from any spelling of its case.

    Raises:
        MalformedError: not an address.
    """
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise MalformedError(where, "must be an address: 0x and 40 hex characters")
    return value.lower()


def exact_address(value: Any, where: str) -> str:
    """Like `address`, for signed documents: lower case or the EIP-55 spelling, so that no letter can change unnoticed.

    Raises:
        MalformedError: not an address, or in a spelling that is neither.
    """
    lower = address(value, where)
    if value not in (lower, to_checksum_address(lower)):
        raise MalformedError(where, "must be in lower case or in its EIP-55 spelling")
    return lower


def b64(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(data).decode("ascii")


def b64_bytes(value: Any, where: str) -> bytes:
    """Bytes from canonical standard base64 with padding (RFC 4648 sections 3.5 and 4).

    Raises:
        MalformedError: not a string, not base64, or not the canonical text of its bytes.
    """
    if not isinstance(value, str):
        raise MalformedError(where, "must be a base64 string")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError(where, "must be base64") from error
    if b64(data) != value:
        raise MalformedError(where, "must be canonical base64 (its last character carries stray bits)")
    return data


def b64url(data: bytes) -> str:
    """base64url without padding (RFC 4648 section 5), safe in a header."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_bytes(value: Any, where: str) -> bytes:
    """Bytes from canonical base64url without padding.

    Raises:
        MalformedError: not a string, not base64url, or not the canonical text of its bytes.
    """
    if not isinstance(value, str) or "+" in value or "/" in value or "=" in value:
        raise MalformedError(where, "must be base64url without padding")
    standard = value.replace("-", "+").replace("_", "/")
    return b64_bytes(standard + "=" * (-len(standard) % 4), where)


def parse_json(data: bytes | str, where: str) -> Any:
    """A JSON value from UTF-8 bytes or text; duplicate names, NaN, infinity and deep nesting are refused.

    Raises:
        MalformedError: not such a document.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        # The standard parser recurses, and a library below raises the interpreter's recursion limit so far that deep
        # nesting ends the process. This one stops at 200 levels; the standard one then finds names that occur twice.
        from_json(text, allow_inf_nan=False)
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise MalformedError(where, "must be UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise MalformedError(where, f"must be JSON ({error})") from error
    _check_depth(value, where)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        # Two readers may pick different ones, so a signature over one of them proves nothing.
        raise ValueError("a name occurs twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        # It would be written back as Infinity, which is not JSON.
        raise ValueError("a number is out of range")
    return value


def _check_depth(value: Any, where: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise MalformedError(where, f"is nested more than {MAX_JSON_DEPTH} levels deep")


def as_object(value: Any, where: str) -> dict[str, Any]:
    """The value as a JSON object.

    Raises:
        MalformedError: it is something else.
    """
    if not isinstance(value, dict):
        raise MalformedError(where, "must be a JSON object")
    return value


def only(value: Mapping[str, Any], where: str, required: set[str], optional: frozenset[str] = frozenset()) -> None:
    """Check the names of an object.

    Raises:
        MalformedError: a required name is missing, or there is one that is neither required nor optional.
    """
    if missing := sorted(required - value.keys()):
        raise MalformedError(f"{where}.{missing[0]}", "is missing")
    if unknown := sorted(value.keys() - required - optional):
        raise MalformedError(f"{where}.{unknown[0]}", "is not a known field")


@overload
def text(value: Any, where: str, *, nullable: Literal[False] = False) -> str: ...
@overload
def text(value: Any, where: str, *, nullable: Literal[True]) -> str | None: ...
def text(value: Any, where: str, *, nullable: bool = False) -> str | None:
    """The value as a string, or None where that is allowed.

    Raises:
        MalformedError: it is something else.
    """
    if value is None and nullable:
        return None
    if not isinstance(value, str):
        raise MalformedError(where, "must be a string")
    return value


def integer(value: Any, where: str, *, minimum: int = 0) -> int:
    """The value as an integer of at least `minimum`; a boolean is not one.

    Raises:
        MalformedError: it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise MalformedError(where, f"must be an integer of at least {minimum}")
    return value


def decimal_text(value: Any, where: str) -> int:
    """An atomic amount from its canonical decimal text ("0", "10000"; no sign, no leading zero).

    Raises:
        MalformedError: not such a text, or beyond uint256.
    """
    if not isinstance(value, str) or not re.fullmatch(r"0|[1-9][0-9]{0,77}", value) or int(value) >= 1 << 256:
        raise MalformedError(where, "must be a whole number of atomic units, as decimal text")
    return int(value)
