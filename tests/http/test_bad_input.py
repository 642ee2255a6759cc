"""Bad input: each mistake has its own clear answer, costs nothing and leaves nothing behind."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from service.inference.document import MIN_DISTINCT_WORDS, MIN_DOCUMENT_WORDS
from tests.http.bench import bench
from tests.http.conftest import Stack
from tests.http.world import DOCUMENT, SUMMARIZE, problem_of, request_body

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

MAX_ERROR_BYTES = 8_192
"""Longest problem a caller gets, however much was wrong."""


@dataclass(frozen=True)
class Mistake:
    """A body that must be refused, and how."""

    body: bytes
    status: int
    kind: str
    names: str
    """The field that is wrong."""
    says: tuple[str, ...] = ()
    """Parts of the detail: the limit, or what is wrong."""
    headers: dict[str, str] = field(default_factory=dict)


def raw(text: str) -> bytes:
    return text.encode()


SHORTEST, LEAST_VARIED = f"at least {MIN_DOCUMENT_WORDS} ", f"at least {MIN_DISTINCT_WORDS} "
TOO_SHORT = "A handful of words is too little for this service, which wants some more of them than that."
MISTAKES = {
    "empty document": Mistake(request_body(""), 422, "empty-document", "document", ("empty",)),
    "white space": Mistake(request_body(" \n\t\u00a0\u2003"), 422, "empty-document", "document", ("white space",)),
    "too short": Mistake(request_body(TOO_SHORT), 422, "document-too-short", "document", ("18 words", SHORTEST)),
    "one word again and again": Mistake(
        request_body("word " * 500),
        422,
        "document-too-short",
        "document",
        ("1 different words", LEAST_VARIED),
    ),
    "binary data": Mistake(request_body("\x00\x01\x02" * 500), 422, "not-text", "document", ("not text",)),
    "too many bytes": Mistake(
        request_body(DOCUMENT + " é" * 350_000), 422, "document-too-large", "document", ("at most 1000000",)
    ),
    "too many tokens": Mistake(
        request_body(DOCUMENT * 40), 422, "document-too-long", "document", ("tokens", "the model takes 8192")
    ),
    "a number as document": Mistake(request_body(7), 422, "invalid-request", "document", ("string",)),
    "a list as document": Mistake(request_body([DOCUMENT]), 422, "invalid-request", "document", ("string",)),
    "null as document": Mistake(request_body(None), 422, "invalid-request", "document", ("string",)),
    "no document": Mistake(raw('{"style":"bullets"}'), 422, "invalid-request", "document", ("required",)),
    "unknown field": Mistake(request_body(tone="dry"), 422, "invalid-request", "tone", ("not permitted",)),
    "unknown style": Mistake(request_body(style="haiku"), 422, "invalid-request", "style", ("paragraph", "headline")),
    "null as style": Mistake(request_body(style=None), 422, "invalid-request", "style"),
    "max_words too small": Mistake(request_body(max_words=4), 422, "invalid-request", "max_words", ("5",)),
    "max_words too large": Mistake(request_body(max_words=601), 422, "invalid-request", "max_words", ("600",)),
    "max_words negative": Mistake(request_body(max_words=-1), 422, "invalid-request", "max_words", ("5",)),
    "max_words a float": Mistake(request_body(max_words=50.0), 422, "invalid-request", "max_words", ("integer",)),
    "max_words a string": Mistake(request_body(max_words="50"), 422, "invalid-request", "max_words", ("integer",)),
    "max_words a bool": Mistake(request_body(max_words=True), 422, "invalid-request", "max_words", ("integer",)),
    "unknown language": Mistake(request_body(language="tlh"), 422, "invalid-option", "language", ("tlh", "en, es")),
    "language in capitals": Mistake(request_body(language="EN"), 422, "invalid-option", "language", ("EN",)),
    "language a number": Mistake(request_body(language=1), 422, "invalid-request", "language", ("string",)),
    "no body": Mistake(b"", 400, "malformed-body", "body", ("JSON",)),
    "not JSON": Mistake(b"document=hello", 400, "malformed-body", "body", ("JSON",)),
    "JSON cut short": Mistake(request_body()[:-1], 400, "malformed-body", "body", ("JSON",)),
    "JSON and more": Mistake(request_body() + b"{}", 400, "malformed-body", "body", ("JSON",)),
    "a JSON array": Mistake(raw(f"[{json.dumps(DOCUMENT)}]"), 400, "malformed-body", "body", ("JSON object",)),
    "a JSON string": Mistake(raw(json.dumps(DOCUMENT)), 400, "malformed-body", "body", ("JSON object",)),
    "JSON null": Mistake(b"null", 400, "malformed-body", "body", ("JSON object",)),
    "a name twice": Mistake(
        raw('{"document":"a","document":' + json.dumps(DOCUMENT) + "}"), 400, "malformed-body", "body", ("twice",)
    ),
    "NaN": Mistake(raw('{"document":' + json.dumps(DOCUMENT) + ',"max_words":NaN}'), 400, "malformed-body", "body"),
    "Infinity": Mistake(
        raw('{"document":' + json.dumps(DOCUMENT) + ',"max_words":-Infinity}'), 400, "malformed-body", "body"
    ),
    "a number beyond floats": Mistake(
        raw('{"document":' + json.dumps(DOCUMENT) + ',"max_words":1e999}'), 400, "malformed-body", "body"
    ),
    "a number of 5000 digits": Mistake(
        raw('{"document":' + json.dumps(DOCUMENT) + ',"max_words":' + "9" * 5_000 + "}"), 400, "malformed-body", "body"
    ),
    "deep nesting": Mistake(b'{"document":' + b"[" * 3_000 + b"]" * 3_000 + b"}", 400, "malformed-body", "body"),
    "not UTF-8": Mistake(b'{"document":"' + b"\xff" * 300 + b'"}', 400, "malformed-body", "body", ("UTF-8",)),
    "UTF-16": Mistake(request_body().decode().encode("utf-16"), 400, "malformed-body", "body", ("UTF-8",)),
    "a byte order mark": Mistake(b"\xef\xbb\xbf" + request_body(), 400, "malformed-body", "body"),
    "over the size limit": Mistake(b" " * 3_004_097, 413, "body-too-large", "body", ("at most 3004096 bytes",)),
    "no content type": Mistake(
        request_body(), 415, "not-json", "content-type", ("application/json",), {"content-type": ""}
    ),
    "a form": Mistake(
        request_body(),
        415,
        "not-json",
        "content-type",
        ("application/json",),
        {"content-type": "application/x-www-form-urlencoded"},
    ),
    "plain text": Mistake(request_body(), 415, "not-json", "content-type", (), {"content-type": "text/plain"}),
    "almost JSON": Mistake(request_body(), 415, "not-json", "content-type", (), {"content-type": "application/jsonp"}),
}


@pytest_asyncio.fixture(loop_scope="session")
async def payment(stack: Stack) -> AsyncIterator[str]:
    """A good payment for a good document; at the end it is still good, and nobody has been charged."""
    rows, earned = len(stack.ledger.rows()), await stack.earned()
    yield await stack.caller.payment()
    assert len(stack.ledger.rows()) == rows, "something was stored"
    assert await stack.earned() == earned, "somebody was charged"


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_named_and_costs_nothing(stack: Stack, payment: str, name: str) -> None:
    mistake = MISTAKES[name]
    for header in (None, payment):
        response = await stack.caller.ask(mistake.body, payment=header, headers=mistake.headers)
        problem = problem_of(response, mistake.status, mistake.kind, mistake.names)
        for part in mistake.says:
            assert part in problem["detail"]
        assert response.headers["cache-control"] == "no-store"
        assert len(response.content) < MAX_ERROR_BYTES


@pytest.mark.parametrize(
    "body",
    [
        b'{"document":"\\ud800 ' + DOCUMENT.encode() + b'"}',
        b'{"document":"' + DOCUMENT.encode() + b' \\udc00\\ud800"}',
        b'{"document":"' + DOCUMENT.encode() + b'","\\ud800":1}',
        b'{"document":"' + DOCUMENT.encode() + b'","style":"\\udfff"}',
        b'{"document":"' + DOCUMENT.encode() + b'","language":"\\udfff"}',
    ],
    ids=["first in document", "last in document", "in a name", "in style", "in language"],
)
async def test_half_a_surrogate_pair_is_no_text(stack: Stack, payment: str, body: bytes) -> None:
    for header in (None, payment):
        response = await stack.caller.ask(body, payment=header)
        assert response.status_code in (400, 422), response.text
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("depth", [10_000, 1_000_000])
async def test_nesting_without_end_does_not_end_the_process(depth: int) -> None:
    """A library of ours raises the interpreter's recursion limit beyond what its stack can hold."""
    program = (
        "import eth_account\n"
        "from attestation.encoding import parse_json\n"
        "from attestation.errors import MalformedError\n"
        f"for text in (b'[' * {depth}, b'{{\"a\":' * {depth}, b'[' * {depth} + b']' * {depth}):\n"
        "    try:\n"
        "        parse_json(text, 'body')\n"
        "    except MalformedError:\n"
        "        print('refused')\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert (process.returncode, output.split()) == (0, [b"refused"] * 3)


async def test_many_mistakes_at_once_get_a_short_answer(stack: Stack, payment: str) -> None:
    unknown = {f"field-{number}": number for number in range(20_000)}
    long_name = request_body(**{"n" * 100_000: 1})
    long_value = request_body(language="x" * 100_000)
    for body in (request_body(**unknown), long_name, long_value):
        response = await stack.caller.ask(body, payment=payment)
        assert response.status_code == 422
        assert len(response.content) < MAX_ERROR_BYTES


async def test_all_mistakes_of_a_request_are_listed(stack: Stack) -> None:
    response = await stack.caller.ask(request_body(7, max_words=0, tone="dry"))
    problem = problem_of(response, 422, "invalid-request", "document")
    assert [error["field"] for error in problem["errors"]] == ["document", "max_words", "tone"]


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65_536):
        yield data[start : start + 65_536]


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_a_body_over_the_limit_is_refused_however_it_is_sent(stack: Stack, payment: str, announced: bool) -> None:
    body = request_body(DOCUMENT + "é" * 1_600_000)
    content: Any = body if announced else chunks(body)
    request = stack.caller.http.build_request(
        "POST", SUMMARIZE, content=content, headers={"content-type": "application/json", "payment-signature": payment}
    )
    assert ("content-length" in request.headers) is announced
    response = await stack.caller.http.send(request)
    assert response.status_code == 413
    assert response.json()["limit"] == 3_004_096
    assert response.headers["connection"] == "close", "the rest of the body was not read"
    assert "signature" in response.headers


async def test_the_largest_document_fits_even_when_every_letter_is_escaped(ledger_path: Any) -> None:
    """1 MB of text that needs 3 MB of JSON is not refused for its JSON."""
    words = DOCUMENT + " " + "é" * ((1_000_000 - len(DOCUMENT) - 1) // 2)
    body = json.dumps({"document": words}, ensure_ascii=True).encode()
    assert len(body) > 2_900_000
    async with bench(ledger_path) as shop:
        assert (await shop.caller.ask(body)).status_code == 402


async def test_a_setting_limits_the_document(ledger_path: Any) -> None:
    async with bench(ledger_path, max_document_bytes=1_000) as shop:
        problem = problem_of(await shop.caller.ask(request_body(DOCUMENT * 3)), 422, "document-too-large", "document")
        assert "at most 1000" in problem["detail"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_a_wrong_method_is_told_the_right_one(stack: Stack, payment: str, method: str) -> None:
    response = await stack.caller.send(
        method,
        SUMMARIZE,
        content=request_body(),
        headers={"content-type": "application/json", "payment-signature": payment},
    )
    problem_of(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/summarize", "/v1/summarize%2F", "/v1/../v1/summarise", "/.env", "/v1/aci/"]
)
async def test_an_unknown_path_is_a_problem(stack: Stack, path: str) -> None:
    problem_of(await stack.caller.get(path), 404, "not-found")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"]
)
async def test_json_is_json_however_it_is_spelled(stack: Stack, content_type: str) -> None:
    assert (await stack.caller.ask(headers={"content-type": content_type})).status_code == 402
