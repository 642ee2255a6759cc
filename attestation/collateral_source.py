"""Fetching TDX collateral from a source of the verifier's own choosing, and keeping it while it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import dcap_qvl  # type: ignore[import-untyped]  # has stubs, but no py.typed

from attestation import encoding, report
from attestation.digest import sha256_hex
from attestation.errors import EvidenceError, MalformedError
from attestation.evidence.collateral import parse_collateral
from attestation.http_signature import Exchange

CACHE_DIR: Final = Path.home() / ".cache" / "tollseal" / "collateral"


async def fetch_collateral(
    url: str, attestation: Exchange, *, now: int, cache_dir: Path = CACHE_DIR
) -> Mapping[str, Any] | None:
    """Collateral for the quote in a report, from the PCCS at `url`; None when the evidence is not a TDX quote.

    Raises:
        EvidenceError: the source does not answer with collateral for this platform.
        MalformedError: the report or its quote is malformed.
    """
    found = report.attestation_of(attestation)
    if found["tee_type"] != "tdx":
        return None
    evidence = encoding.as_object(found["evidence"], "evidence")
    return await collateral_for(
        encoding.hex_bytes(evidence.get("quote"), "evidence.quote"), url, now=now, cache_dir=cache_dir
    )


async def collateral_for(quote: bytes, url: str, *, now: int, cache_dir: Path = CACHE_DIR) -> Mapping[str, Any]:
    """Collateral for a quote; see `fetch_collateral`. What is kept is used again until it expires at `now`."""
    try:
        parsed = dcap_qvl.parse_quote(quote)
        platform = f"{parsed.fmspc()}|{parsed.ca()}"
    except ValueError as error:
        raise MalformedError("evidence.quote", "is not a quote") from error
    place = cache_dir / f"{sha256_hex(f'{url}|{platform}'.encode())}.json"
    kept = _kept(place, now)
    if kept is not None:
        return kept
    try:
        text = (await dcap_qvl.get_collateral(url, quote)).to_json()
    except Exception as error:  # the library raises whatever its HTTP client does
        raise EvidenceError(f"{url} gave no collateral for this platform ({type(error).__name__})") from error
    return _keep(place, text)


def _kept(place: Path, now: int) -> Mapping[str, Any] | None:
    if not place.is_file():
        return None
    document = encoding.as_object(encoding.parse_json(place.read_bytes(), "collateral"), "collateral")
    return document if parse_collateral(document).expires_at > now else None


def _keep(place: Path, text: str) -> Mapping[str, Any]:
    document = encoding.as_object(encoding.parse_json(text, "collateral"), "collateral")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    return document
