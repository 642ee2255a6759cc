"""What the tests of the HTTP surface are made of: every response checked on arrival, and services without a chain.

A response that no check has seen is no response here: `Caller` refuses one that is unsigned, changed or lacks what every
response must carry. Where a real chain or a real model cannot be told to misbehave, `ScriptedFacilitator` and
`StubBackend` stand in for them; everything between them is the product's own.
"""

import asyncio
import json
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx
from eth_account import Account
from http_message_signatures import ContentDigest
from x402.schemas import PaymentRequirements

from attestation.digest import digest, jcs
from attestation.enclave.keyring import KeyRing
from attestation.enclave.simulated import SimulatedEnclave
from attestation.http_signature import Exchange, verify_response
from attestation.keyset import ALGO_HTTP, Keyset, build_keyset
from attestation.manifest import manifest_digest
from attestation.onchain import AgentReference
from attestation.registry.records import key_name
from service.app import Service, create_app
from service.boot import registration_file
from service.build import compute_manifest
from service.call import Identity, PaidCalls
from service.inference.admission import Admission
from service.inference.backend import Completion, GenerationParams, Message, ModelIdentity, TokenCount
from service.inference.summary import Summarizer
from service.payment.authorization import Authorization, PaymentKey
from service.payment.facilitator import (
    Facilitator,
    FacilitatorUnavailableError,
    Outcome,
    Settled,
    SettleResult,
    Unused,
    Used,
    Verified,
    VerifyResult,
)
from service.payment.ledger import Ledger
from service.settings import Settings
from tests.payments import as_document, as_header, pay

SUMMARIZE: Final = "/v1/summarize"
PRICE: Final = 10_000
"""Atomic units: one cent, the price that settings have by default."""

NOW: Final = 1_790_000_000
FAR: Final = 1 << 40
"""A `valid_before` beyond any test."""

DOCUMENT: Final = (
    "The harbour commission met on Tuesday to decide what becomes of the old grain terminal. Its engineers had measured "
    "the quay walls in spring and found cracks as wide as a thumb. Repairing them would cost eleven million, replacing "
    "them twice that. Fishermen asked for a cold store; the museum wants the machinery. A vote is expected in March."
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


def transaction_of(key: PaymentKey) -> str:
    """The transaction in which `ScriptedFacilitator` executes a payment."""
    return "0x" + digest(repr(key).encode()).removeprefix("sha256:")


@dataclass
class ScriptedFacilitator:
    """A facilitator and its chain, which do as told. Without a script they are honest.

    A scripted settlement executes the transfer when it is `Settled`, or when `executes` says so for an `Unknown` one:
    the buyer was charged, and nobody heard of it.
    """

    verifications: deque[VerifyResult | Exception] = field(default_factory=deque)
    settlements: deque[SettleResult] = field(default_factory=deque)
    outcomes: deque[Outcome] = field(default_factory=deque)
    problems: list[str] = field(default_factory=list)
    executes: Callable[[Authorization], bool] = lambda _: False
    hold: asyncio.Event | None = None
    """When set, settlements wait for it."""
    settling: asyncio.Event = field(default_factory=asyncio.Event)
    chain_time: int = NOW
    calls: list[str] = field(default_factory=list)
    spent: dict[PaymentKey, str] = field(default_factory=dict)
    """What the chain has executed: payment -> transaction."""

    def executed(self, authorization: Authorization) -> Settled:
        assert authorization.key not in self.spent, "a transfer was executed twice"
        self.spent[authorization.key] = transaction_of(authorization.key)
        return Settled(self.spent[authorization.key], authorization.payer, 1)

    async def verify(self, authorization: Authorization) -> VerifyResult:
        self.calls.append("verify")
        result = self.verifications.popleft() if self.verifications else Verified(authorization.payer)
        if isinstance(result, Exception):
            raise result
        return result

    async def settle(self, authorization: Authorization) -> SettleResult:
        self.calls.append("settle")
        self.settling.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.settlements:
            result = self.settlements.popleft()
            if isinstance(result, Settled) or self.executes(authorization):
                self.executed(authorization)
            return result
        if authorization.key in self.spent:
            return Settled(self.spent[authorization.key], authorization.payer, 1)
        return self.executed(authorization)

    async def outcome(self, authorization: Authorization) -> Outcome:
        self.calls.append("outcome")
        if self.outcomes:
            return self.outcomes.popleft()
        transaction = self.spent.get(authorization.key)
        return Unused(self.chain_time) if transaction is None else Used(transaction, 1)

    async def ready(self) -> list[str]:
        return list(self.problems)

    async def close(self) -> None:
        pass

    def count(self, call: str) -> int:
        return self.calls.count(call)


def unavailable() -> FacilitatorUnavailableError:
    return FacilitatorUnavailableError("the chain could not be asked")


@dataclass
class StubBackend:
    """A model that answers at once, unless told otherwise."""

    text: str = "The commission decides in March what becomes of the old terminal."
    failure: Exception | None = None
    """Raised instead of an answer."""
    sick: Exception | None = None
    """Raised by `health`."""
    hold: asyncio.Event | None = None
    """When set, answers wait for it."""
    working: asyncio.Event = field(default_factory=asyncio.Event)
    completions: int = 0
    uri: str = "stub:"
    identity: ModelIdentity = ModelIdentity("stub-1", "ab" * 32, "measured", 8_192, None, "stub")

    async def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        count = sum(len(message.content.split()) for message in messages)
        return TokenCount(count, count)

    async def complete(self, messages: Sequence[Message], params: GenerationParams) -> Completion:
        self.completions += 1
        self.working.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        forwarded = jcs([message.to_json() for message in messages])
        return Completion(f"{self.text} ({self.completions})", "stop", 100, 12, forwarded)

    async def health(self) -> None:
        if self.sick is not None:
            raise self.sick

    async def close(self) -> None:
        pass


class Clock:
    """Unix seconds that pass when a test says so."""

    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


AGENT: Final = AgentReference(84532, "0x" + "8a" * 20, 0)


def identity_of(keys: KeyRing, *, manifest: str = "sha256:" + "5e" * 32, not_after: int = NOW + 86_400) -> Identity:
    """Who answers, under these keys."""
    keyset = build_keyset(subject=str(AGENT), not_after=not_after, keys=keys.public_keys())
    return Identity(keyset=keyset, manifest_digest=manifest, agent=AGENT)


@dataclass
class Bench:
    """A service in this process whose chain and model do as told."""

    service: Service
    facilitator: ScriptedFacilitator
    backend: StubBackend
    clock: Clock
    ledger: LedgerFile
    caller: Caller


def bench_settings(ledger: Path, **more: object) -> Settings:
    return Settings.model_validate(
        {
            "rpc_url": "http://127.0.0.1:1",
            "operator_key": "0x" + "77" * 32,
            "pay_to": "0x" + "22" * 20,
            "agent_owner": "0x" + "44" * 20,
            "enclave": "simulated:",
            "ledger_url": f"sqlite:///{ledger}",
            **more,
        }
    )


@asynccontextmanager
async def bench(
    ledger: Path,
    *,
    keys: KeyRing | None = None,
    facilitator: ScriptedFacilitator | None = None,
    wrap: Callable[[Service], Service] = lambda service: service,
    not_after: int = NOW + 86_400,
    base_url: str = "http://summaries.test",
    **more: object,
) -> AsyncIterator[Bench]:
    """A service without a chain, and somebody to call it. `wrap` may exchange its parts; `more` are settings."""
    settings, clock = bench_settings(ledger, **more), Clock()
    keys, backend, facilitator = keys or KeyRing.generate(), StubBackend(), facilitator or ScriptedFacilitator()
    enclave = SimulatedEnclave("simulated:")
    manifest = compute_manifest(settings, backend.identity, tee_type=enclave.tee_type)
    identity = identity_of(keys, manifest=manifest_digest(manifest), not_after=not_after)
    book = await Ledger.open(settings.ledger_url)
    service = wrap(
        Service(
            settings=settings,
            enclave=enclave,
            keys=keys,
            identity=identity,
            manifest=manifest,
            registration=registration_file(settings, AGENT, hardware_attested=False),
            key_slot=key_name(settings.replica),
            backend=backend,
            summarizer=Summarizer(backend, max_document_bytes=settings.max_document_bytes),
            admission=Admission(settings.slots, settings.queue),
            facilitator=facilitator,
            ledger=book,
            calls=paid_calls(book, facilitator, keys, clock, identity),
            clock=clock,
        )
    )
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as http:
        caller = Caller(http, service.identity.keyset, "0x" + "11" * 32, clock)
        yield Bench(service, facilitator, backend, clock, LedgerFile(ledger), caller)
        await service.calls.drain()
    await book.close()


def paid_calls(
    ledger: Ledger,
    facilitator: Facilitator,
    keys: KeyRing,
    clock: Callable[[], int],
    identity: Identity | None = None,
) -> PaidCalls:
    return PaidCalls(
        ledger=ledger,
        facilitator=facilitator,
        keys=keys,
        identity=identity or identity_of(keys),
        clock=clock,
        window_seconds=60,
    )


class BrokenRing(KeyRing):
    """A key ring whose keys stop working, one role at a time."""

    broken: frozenset[str] = frozenset()
    allowed: int = 0
    """How many signatures of a broken role still succeed."""

    def _use(self, role: str) -> None:
        if role in self.broken:
            if not self.allowed:
                raise RuntimeError("the key does not answer")
            self.allowed -= 1

    def sign_receipt(self, message: bytes) -> bytes:
        self._use("receipt")
        return super().sign_receipt(message)

    def sign_http(self, message: bytes) -> bytes:
        self._use("http")
        return super().sign_http(message)

    def sign_typed_data(self, message: Any) -> bytes:
        self._use("payment")
        return super().sign_typed_data(message)


def with_facilitator(service: Service, facilitator: Facilitator) -> Service:
    """The same service over another facilitator."""
    calls = paid_calls(service.ledger, facilitator, service.keys, service.clock, service.identity)
    return replace(service, facilitator=facilitator, calls=calls)


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
