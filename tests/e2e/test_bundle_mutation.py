"""A saved bundle in which anything was changed does not verify, and the check that fails is the one concerned."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestation.policy import Policy
from attestation.verdict import Result, Status, Verdict
from attestation.verifier import Verifier
from tests.e2e.conftest import Bought
from tests.e2e.mutations import everything, same_document, with_payment, with_value
from tests.e2e.stack import DOCUMENT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]

Change = Callable[[Any], bytes]


def judge(data: bytes) -> Verdict:
    """The verdict of the most willing relying party there is: offline, and simulated evidence is fine."""
    return Verifier(Policy(allow_simulated=True), now=int(time.time())).verify_bundle(data)


def first_failure(verdict: Verdict) -> str:
    return next((check.id for check in verdict.checks if check.status is Status.FAIL), "none")


def test_the_unchanged_bundle_is_as_good_as_simulated_evidence_can_be(bought: Bought) -> None:
    verdict = judge(bought.data)
    assert verdict.result is Result.SIMULATED
    assert not [check for check in verdict.checks if check.status is Status.FAIL]


OPTIONAL = "answer.request.headers.payment-signature.resource: left out"
"""x402 leaves it to the client whether a payment repeats what it is for; the receipt says it."""


def test_every_changed_value_fails_the_check_concerned(bought: Bought) -> None:
    count, missed, misnamed = 0, [], []
    for mutation in everything(bought.document):
        verdict = judge(mutation.data)
        count += 1
        if str(mutation) == OPTIONAL:
            assert verdict.result is Result.SIMULATED
        elif verdict.result is not Result.FAILED:
            missed.append(f"{mutation} -> {verdict.result.value}")
        elif first_failure(verdict) not in mutation.expected:
            misnamed.append(f"{mutation} -> {first_failure(verdict)}")
    assert not missed, "\n".join(missed)
    assert not misnamed, "\n".join(misnamed)
    assert count > 2_000, "the walk must have found the bundle's values"


PARTS = {
    "answer": ("answer", "response", "body"),
    "request": ("answer", "request", "body"),
    "payment": ("answer", "request", "headers", "payment-signature"),
    "receipt": ("receipt",),
    "keyset and evidence": ("attestation", "response", "body"),
    "manifest": ("manifest", "response", "body"),
    "terms": ("terms", "response", "body"),
    "offer": ("offer",),
    "x402 receipt": ("x402_receipt",),
    "signatures": ("answer", "response", "headers"),
}


def span(bundle: Any, path: tuple[str, ...]) -> tuple[int, int]:
    """Where in the bundle's file a part stands: first byte, and the one after the last."""
    marked = json.loads(json.dumps(bundle))
    holder = marked
    for step in path[:-1]:
        holder = holder[step]
    text = json.dumps(holder[path[-1]], ensure_ascii=False, indent=2)
    holder[path[-1]] = "\N{SNOWMAN}"
    start = json.dumps(marked, ensure_ascii=False, indent=2).encode().index('"\N{SNOWMAN}"'.encode())
    indent = "\n" + "  " * len(path)
    return start, start + len(text.replace("\n", indent).encode())


@pytest.mark.parametrize("part", PARTS)
def test_any_byte_changed_in_a_part_of_the_file_is_found(bought: Bought, part: str) -> None:
    data = bought.data
    start, end = span(bought.document, PARTS[part])
    assert end - start > 200

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(start, end - 1), st.integers(0, 255))
    def check(position: int, byte: int) -> None:
        changed = data[:position] + bytes([byte]) + data[position + 1 :]
        if not same_document(changed, data):
            assert judge(changed).result is Result.FAILED, (data[position - 20 : position + 20], bytes([byte]))

    check()


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_bytes_inserted_cut_out_or_swapped_anywhere_are_found(bought: Bought, data: st.DataObject) -> None:
    original = bought.data
    position = data.draw(st.integers(0, len(original) - 1))
    size = data.draw(st.integers(0, 40))
    filling = data.draw(st.binary(max_size=4))
    changed = original[:position] + filling + original[position + size :]
    if not same_document(changed, original):
        assert judge(changed).result is Result.FAILED


def test_white_space_between_the_values_of_the_file_is_the_only_free_choice(bought: Bought) -> None:
    for indent in (None, 0, 7):
        assert judge(json.dumps(bought.document, indent=indent).encode()).result is Result.SIMULATED
    reordered = dict(reversed(bought.document.items()))
    assert judge(json.dumps(reordered).encode()).result is Result.SIMULATED


@pytest.fixture(scope="module")
def bought_again(stack: Stack, bought: Bought) -> Any:
    """Another purchase from the same service by the same buyer."""
    path = stack.directory / "again.json"
    done = stack.buy("--save", path, "--allow-simulated", "--max-words", "5", document=DOCUMENT + "It was cold.\n")
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_bytes())


@pytest.mark.parametrize("part", ["terms", "answer", "receipt", "offer", "x402_receipt"])
def test_genuine_parts_of_two_purchases_do_not_make_one(bought: Bought, bought_again: Any, part: str) -> None:
    mixed = {**bought.document, part: bought_again[part]}
    assert judge(json.dumps(mixed).encode()).result is Result.FAILED


def test_a_genuine_answer_does_not_prove_another_request(bought: Bought, bought_again: Any) -> None:
    mixed = bought.document
    for exchange in ("terms", "answer"):
        mixed[exchange]["request"]["body"] = bought_again[exchange]["request"]["body"]
    verdict = judge(json.dumps(mixed).encode())
    assert first_failure(verdict) == "offer.signature", "the terms name the request that they are for"
    assert verdict.check("receipt.request").status is Status.FAIL


def test_a_genuine_payment_does_not_prove_another_answer(bought: Bought, bought_again: Any) -> None:
    mixed = bought.document
    mixed["answer"]["request"]["headers"] = bought_again["answer"]["request"]["headers"]
    assert first_failure(judge(json.dumps(mixed).encode())) == "receipt.payment"


GET_BODY = "a body that nobody sent"
EXTRAS: dict[str, Change] = {
    "a body on the request for the report": lambda b: with_value(b, ("attestation", "request", "body"), GET_BODY),
    "a body on the request for the manifest": lambda b: with_value(b, ("manifest", "request", "body"), GET_BODY),
    "a fragment on the report's URL": lambda b: with_value(
        b, ("attestation", "request", "url"), b["attestation"]["request"]["url"] + "#trusted"
    ),
    "an empty query on the manifest's URL": lambda b: with_value(
        b, ("manifest", "request", "url"), b["manifest"]["request"]["url"] + "?"
    ),
    "a line break in the manifest's URL": lambda b: with_value(
        b, ("manifest", "request", "url"), b["manifest"]["request"]["url"].replace("tee-", "tee-\n")
    ),
    "another case of the URL's scheme": lambda b: with_value(
        b, ("manifest", "request", "url"), b["manifest"]["request"]["url"].replace("http:", "hTtp:")
    ),
    "blanks around a header's value": lambda b: with_value(
        b, ("answer", "response", "headers", "x-aci-version"), " aci/1"
    ),
    "blanks in a signature's parameters": lambda b: with_value(
        b,
        ("answer", "response", "headers", "signature-input"),
        b["answer"]["response"]["headers"]["signature-input"].replace(";created", "; created"),
    ),
    "extensions that the payment echoes but the terms do not have": lambda b: with_payment(
        b, ("extensions",), {"offer-receipt": {"info": {"offers": []}}}
    ),
    "a resource that the payment echoes otherwise than the terms": lambda b: with_payment(
        b, ("resource",), {"url": "http://elsewhere.example/"}
    ),
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_nothing_can_be_slipped_in_where_no_signature_looks(bought: Bought, extra: str) -> None:
    changed = EXTRAS[extra](bought.document)
    assert not same_document(changed, bought.data)
    assert judge(changed).result is Result.FAILED


HOSTILE = {
    "nothing": b"",
    "not JSON": b"\x00\x01\x02",
    "not UTF-8": b'{"format":"\xff"}',
    "a byte-order mark": b"\xef\xbb\xbf{}",
    "a list": b"[]",
    "null": b"null",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "a huge number": b'{"format":' + b"9" * 100_000 + b"}",
    "NaN": b'{"format":NaN}',
    "a name twice": b'{"format":"tollseal.bundle/1","format":"tollseal.bundle/1"}',
    "a lone surrogate": b'{"format":"\\ud800"}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_in_words(kind: str) -> None:
    verdict = judge(HOSTILE[kind])
    assert verdict.result is Result.FAILED
    assert first_failure(verdict) == "bundle.format"
    assert verdict.checks[0].detail


@pytest.mark.parametrize(
    "url", ["http://[", "http://[::1", "//", "", "http://127.0.0.1:99999/v1/aci/attestation", "\x00"]
)
@pytest.mark.parametrize("exchange", ["attestation", "manifest", "terms", "answer"])
def test_a_url_that_is_none_is_a_failed_check(bought: Bought, exchange: str, url: str) -> None:
    assert judge(with_value(bought.document, (exchange, "request", "url"), url)).result is Result.FAILED


def test_the_file_says_what_was_sent_and_nothing_about_the_machine(bought: Bought, stack: Stack) -> None:
    text = bought.data.decode()
    assert stack.dev.buyer_key.removeprefix("0x") not in text
    assert f"{Path.home()}/" not in text
