"""Collateral comes from the source that the verifier named, and is kept no longer than it holds."""

import json
from pathlib import Path
from typing import Any

import dcap_qvl  # type: ignore[import-untyped]  # has stubs, but no py.typed
import pytest

from attestation.collateral_source import collateral_for
from attestation.errors import EvidenceError, MalformedError
from attestation.evidence.collateral import parse_collateral
from tests.evidence_tdx import NOW, TestIntel

VENDOR = TestIntel()
COLLATERAL = VENDOR.collateral()
QUOTE = VENDOR.quote(bytes(64))
SOURCE = "https://pccs.example"


class Source:
    """Stands where the library asks a server."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False

    async def get_collateral(self, url: str, quote: bytes) -> "Source":
        assert quote == QUOTE
        self.asked.append(url)
        if self.fails:
            raise RuntimeError("secret words of a proxy")
        return self

    def to_json(self) -> str:
        return json.dumps(COLLATERAL)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    made = Source()
    monkeypatch.setattr(dcap_qvl, "get_collateral", made.get_collateral)
    return made


async def test_it_is_asked_for_once_while_it_holds(source: Source, tmp_path: Path) -> None:
    ends = parse_collateral(COLLATERAL).expires_at
    for now in (NOW, NOW + 1, ends - 1):
        assert await collateral_for(QUOTE, SOURCE, now=now, cache_dir=tmp_path) == COLLATERAL
    assert source.asked == [SOURCE]
    await collateral_for(QUOTE, SOURCE, now=ends, cache_dir=tmp_path)
    assert source.asked == [SOURCE, SOURCE]


async def test_what_one_source_said_is_not_taken_for_anothers_word(source: Source, tmp_path: Path) -> None:
    await collateral_for(QUOTE, SOURCE, now=NOW, cache_dir=tmp_path)
    await collateral_for(QUOTE, "https://other.example", now=NOW, cache_dir=tmp_path)
    assert source.asked == [SOURCE, "https://other.example"]


async def test_a_source_that_fails_is_named_and_nothing_else_is_told(source: Source, tmp_path: Path) -> None:
    source.fails = True
    with pytest.raises(EvidenceError) as failed:
        await collateral_for(QUOTE, SOURCE, now=NOW, cache_dir=tmp_path)
    assert SOURCE in str(failed.value)
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("kept", [b"", b"{}", b"not json", b'{"pck_crl": "00"}'])
async def test_a_damaged_cache_is_an_error_and_never_collateral(source: Source, tmp_path: Path, kept: bytes) -> None:
    await collateral_for(QUOTE, SOURCE, now=NOW, cache_dir=tmp_path)
    _only_file(tmp_path).write_bytes(kept)
    with pytest.raises(MalformedError):
        await collateral_for(QUOTE, SOURCE, now=NOW, cache_dir=tmp_path)


@pytest.mark.parametrize("quote", [b"", b"\4\0", QUOTE[:600]])
async def test_what_is_no_quote_is_asked_of_nobody(source: Source, tmp_path: Path, quote: bytes) -> None:
    with pytest.raises(MalformedError, match=r"evidence\.quote"):
        await collateral_for(quote, SOURCE, now=NOW, cache_dir=tmp_path)
    assert not source.asked


def _only_file(directory: Path) -> Any:
    [path] = directory.iterdir()
    return path
