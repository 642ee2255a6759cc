"""What strangers and broken disks put where a number or an object belongs ends in a sentence, not in a traceback."""

from pathlib import Path

import pytest

from attestation.digest import jcs
from attestation.errors import MalformedError
from attestation.http_signature import Exchange
from attestation.presenting import _retry_after
from attestation.validator import JOURNAL_FORMAT, Journal


@pytest.mark.parametrize("value", ["9" * 5000, "٣", "-1", "1.5", "soon", ""])
def test_a_pause_that_is_no_small_number_is_the_usual_one(value: str) -> None:
    assert _retry_after(Exchange("GET", "https://a.example/", 503, {"retry-after": value}, b""), 7) == 7


def test_a_pause_that_is_asked_for_is_kept() -> None:
    assert _retry_after(Exchange("GET", "https://a.example/", 503, {"retry-after": "2"}, b""), 7) == 2


@pytest.mark.parametrize("entry", [[], "x", 1, None])
def test_a_journal_whose_entry_is_no_object_is_refused_by_name(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "journal.json"
    document = {"format": JOURNAL_FORMAT, "subject": "me", "next_block": 1, "open": {"0x01": entry}}
    path.write_bytes(jcs(document))
    with pytest.raises(MalformedError, match=r"open\.0x01"):
        Journal.read(path, "me")
