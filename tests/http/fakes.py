"""A chain, a model, a clock and keys that do as a test tells them, where the real ones cannot be told."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from attestation.digest import digest, jcs
from attestation.enclave.keyring import KeyRing
from service.inference.backend import Completion, Delta, GenerationParams, Message, ModelIdentity, TokenCount
from service.payment.authorization import Authorization, PaymentKey
from service.payment.facilitator import (
    FacilitatorUnavailableError,
    Outcome,
    Settled,
    SettleResult,
    Unused,
    Used,
    Verified,
    VerifyResult,
)
from tests.http.world import NOW
from tests.models import pieces_of


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


STUB_MODEL: Final = ModelIdentity("stub-1", "ab" * 32, "measured", 8_192, None, "stub")


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
    numbered: bool = True
    """Whether answers end with their number."""
    asked: list[GenerationParams] = field(default_factory=list)
    uri: str = "stub:"
    forces_json: bool = True
    identity: ModelIdentity = STUB_MODEL

    async def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        count = sum(len(message.content.split()) for message in messages)
        return TokenCount(count, count)

    async def complete(self, messages: Sequence[Message], params: GenerationParams) -> Completion:
        self.completions += 1
        self.asked.append(params)
        self.working.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        forwarded = jcs([message.to_json() for message in messages])
        text = f"{self.text} ({self.completions})" if self.numbered else self.text
        return Completion(text, "stop", 100, 12, forwarded)

    async def stream(
        self, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Delta | Completion, None]:
        whole = await self.complete(messages, params)
        for piece in pieces_of(whole.text):
            yield Delta(piece)
        yield whole

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
