"""What the tests of the HTTP surface share: a caller who checks every response on arrival, and a look into the ledger.

A response that no check has seen is no response here: `Caller` refuses one that is unsigned, changed or lacks what
every response must carry.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from eth_account import Account
from http_message_signatures import ContentDigest
from x402.schemas import PaymentRequirements

from attestation.http_signature import Exchange, verify_response
from attestation.keyset import ALGO_HTTP, Keyset
from tests.payments import as_document, as_header, pay

SUMMARIZE: Final = "/v1/summarize"
PRICE: Final = 10_000
"""Atomic units: one cent, the price that settings have by default."""

NOW: Final = 1_790_000_000
FAR: Final = 1 << 40
"""A `valid_before` beyond any test."""

DOCUMENT: Final = (
    "The harbour commission met on Tuesday to decide what becomes of the old grain terminal. Its engineers had "
    "measured the quay walls in spring and found cracks as wide as a thumb. Repairing them would cost eleven million, "
    "replacing them twice that. Fishermen asked for a cold store; the museum wants the machinery. A vote is expected "
    "in March."
)


class Unsigned(AssertionError):  # noqa: N818 - what it says about a response
    """A response without its signature."""


def exchange_of(response: httpx.Response, *, url: str | None = None) -> Exchange:
    """A response and its request as a signature sees them."""
    headers: dict[str, str] = {}
    for name, value in response.headers.multi_items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    request = response.request
    payment = request.headers.get("payment-signature")
    return Exchange(
        method=request.method,
        url=url or str(request.url),
        status=response.status_code,
        headers=headers,
        body=response.content,
        request_headers={} if payment is None else {"payment-signature": payment},
        request_body=request.content,
    )


def check_response(exchange: Exchange, keyset: Keyset, *, now: int) -> None:
    """What every response of every endpoint has to carry, whatever its status."""
    if "signature" not in exchange.headers:
        raise Unsigned(f"{exchange.method} {exchange.url} -> {exchange.status}: {exchange.body[:200]!r}")
    assert exchange.headers["content-digest"] == ContentDigest.create(exchange.body)
    assert exchange.headers["x-aci-version"] == "aci/1"
    assert exchange.headers["x-aci-keyset-digest"] == keyset.digest
    verify_response(exchange, keyset.key(ALGO_HTTP), now=now)


def problem_of(response: httpx.Response, status: int, kind: str, field_: str | None = None) -> dict[str, Any]:
    """The problem in a response, which must be of this kind and name this field (RFC 9457)."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["type"]) == (status, f"urn:tollseal:problem:{kind}"), response.text
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem.get("field") == field_, response.text
    # The same in the words of OpenAI's API (aci/1 section 10).
    assert problem["error"]["message"] == problem["detail"]
    assert (problem["error"]["code"], problem["error"]["param"]) == (kind, field_)
    return problem


def offered(response: httpx.Response) -> PaymentRequirements:
    """The terms in a 402."""
    assert response.status_code == 402, f"{response.status_code}: {response.text}"
    return PaymentRequirements.model_validate(response.json()["accepts"][0])


def request_body(document: object = DOCUMENT, **options: object) -> bytes:
    """The body of a request for a summary."""
    return json.dumps({"document": document, **options}).encode()


def distinct_body(word: object) -> bytes:
    """The body of a request that no other test makes."""
    return request_body(f"{DOCUMENT} Reference {word}.")


@dataclass
class Caller:
    """Sends requests to a service, and checks every response before anybody sees it."""

    http: httpx.AsyncClient
    keyset: Keyset
    buyer_key: str
    clock: Callable[[], int]
    seen: list[Exchange] = field(default_factory=list)
    """Every response that was checked."""

    async def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        response = await self.http.request(method, path, **request)
        exchange = exchange_of(response)
        check_response(exchange, self.keyset, now=self.clock())
        self.seen.append(exchange)
        return response

    async def get(self, path: str, **request: Any) -> httpx.Response:
        return await self.send("GET", path, **request)

    async def ask(
        self, body: Any = None, *, payment: str | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Ask for a summary, of `DOCUMENT` unless another body is given, with or without a payment header."""
        fields = {"content-type": "application/json", **(headers or {})}
        if payment is not None:
            fields["payment-signature"] = payment
        return await self.send("POST", SUMMARIZE, content=request_body() if body is None else body, headers=fields)

    async def terms(self, body: bytes | None = None) -> PaymentRequirements:
        """What a summary costs."""
        return offered(await self.ask(body))

    async def payment(self, body: bytes | None = None, **deviations: Any) -> str:
        """A payment header for a summary, signed by the buyer unless the deviations say otherwise."""
        requirements = await self.terms(body)
        return as_header(as_document(pay(requirements, **{"key": self.buyer_key, **deviations})))

    async def buy(self, body: bytes | None = None) -> httpx.Response:
        """Ask and pay, as buyers do."""
        return await self.ask(body, payment=await self.payment(body))


@dataclass(frozen=True)
class LedgerFile:
    """A ledger's file, read past the product."""

    path: Path

    def rows(self, query: str = "SELECT * FROM payments ORDER BY id") -> list[sqlite3.Row]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query).fetchall()

    def states(self) -> list[str]:
        return [row["state"] for row in self.rows()]

    def state_of(self, nonce: str) -> str | None:
        return next((row["state"] for row in self.rows() if row["nonce"] == nonce.lower()), None)

    def raw(self) -> bytes:
        """All bytes that the database has on disk, its write-ahead log included."""
        return b"".join(file.read_bytes() for file in sorted(self.path.parent.glob(f"{self.path.name}*")))


def texts_of(records: Sequence[Any]) -> Iterator[str]:
    """Everything that log records say: messages, their arguments and tracebacks."""
    for record in records:
        yield record.getMessage()
        yield repr(record.args)
        if record.exc_info:
            yield repr(record.exc_info[1])
        if record.exc_text:
            yield record.exc_text


def new_account() -> str:
    """The private key of an account that nobody knows and that owns nothing."""
    return "0x" + bytes(Account.create().key).hex()
