"""The page about the agent: whatever strangers wrote on the chain stays text."""

import copy
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.agent_page import render

DOCUMENT: dict[str, Any] = {
    "agent": "eip155:84532:0x8a:0",
    "as_of": 1_790_000_000,
    "serves": {
        "manifest_digest": "sha256:1",
        "keyset_digest": "sha256:2",
        "payment_key": "0xaa",
        "key_slot": "tee.key.main",
        "expires_at": 1_790_000_000,
        "tee_type": "simulated",
        "hardware": False,
        "is_paid": [{"network": "eip155:84532", "asset": "0xab", "pay_to": "0xbb"}],
        "links": {"manifest": "/.well-known/tee-manifest.json"},
    },
    "agrees": {"manifest": True, "key": False},
    "chain": {
        "reachable": True,
        "block": 7,
        "owner": "0xcc",
        "wallet": None,
        "uri": "https://agent.example/",
        "manifest": {"digest": "sha256:1", "stale": True},
        "keys": [
            {"slot": "tee.key.main", "payment_key": "0xaa", "keyset_digest": "sha256:3", "expires_at": 1 << 52,
             "stale": True, "block": 3},
            {"slot": "tee.key.old", "payment_key": None, "keyset_digest": None, "expires_at": None, "stale": False,
             "block": 3},
        ],
        "validations": {
            "standing": {"passed": 1, "failed": 0, "pending": 1, "simulated": 0},
            "list": [
                {"validator": "0xdd", "trusted": True, "request_hash": "0x1", "keyset_digest": None, "response": 0,
                 "tag": "tdx", "evidence_uri": "https://validator.example/e", "block": 5},
                {"validator": "0xdd", "trusted": False, "request_hash": "0x1", "keyset_digest": None, "response": None,
                 "tag": None, "evidence_uri": None, "block": 5},
            ],
        },
        "ratings": {
            "all": {"count": 2, "total": "1", "mean": "0.5"},
            "paid": {"count": 0, "total": "0", "mean": None},
            "list": [
                {"client": "0xee", "value": "1", "tag1": "a", "tag2": "", "paid": False, "revoked": False,
                 "reason": "names no payment"},
            ],
        },
    },
}  # fmt: skip

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "javascript:alert(1)",
    "https://x/\"onmouseover='alert(1)",
    "\x1b[31mred\x07",
    "\u202egnirts",
    "x" * 100_000,
]


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


HONEST = read(render(DOCUMENT))


def poison(value: Any, text: str) -> Any:
    """The document with every string of the chain replaced."""
    if isinstance(value, dict):
        return {key: poison(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item, text) for item in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_the_chain_becomes_markup(text: str) -> None:
    page = render({**DOCUMENT, "chain": poison(DOCUMENT["chain"], text)})
    found = read(page)
    assert found.tags <= HONEST.tags
    assert found.attributes <= HONEST.attributes
    assert all(link.startswith(("https://", "/")) for link in found.links)
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert len(page) < 20_000


@given(st.text(max_size=60))
def test_no_text_at_all_becomes_markup(text: str) -> None:
    found = read(render({**DOCUMENT, "chain": poison(DOCUMENT["chain"], text)}))
    assert found.tags <= HONEST.tags
    assert found.attributes <= HONEST.attributes


def test_nothing_is_fetched_and_nothing_runs() -> None:
    assert HONEST.tags.isdisjoint({"script", "img", "link", "iframe", "object", "form"})
    assert "default-src 'none'" in render(DOCUMENT)


def test_what_differs_what_is_old_and_what_is_simulated_is_said() -> None:
    page = render(DOCUMENT)
    assert "the build it serves is the one on the chain" in page
    assert "the key it serves IS NOT the one on the chain" in page
    assert page.count("written before the agent was sold: not believed") == 2
    assert "no hardware stands behind its keys" in page


def test_pending_is_shown_as_pending_and_zero_as_zero() -> None:
    page = render(DOCUMENT)
    assert "<td>0 tdx</td>" in page
    assert "<td>pending</td>" in page


def test_a_chain_out_of_reach_and_absent_registries_are_said() -> None:
    away = {**DOCUMENT, "chain": {"reachable": False, "reason": "the chain could not be asked"}, "agrees": None}
    assert "not compared: the chain could not be asked" in render(away)
    bare = copy.deepcopy(DOCUMENT)
    bare["chain"] |= {"validations": None, "ratings": None, "keys": []}
    assert "this chain has no validation registry" in render(bare)
    assert "this chain has no reputation registry" in render(bare)
