"""PaidCall: one paid request, from its authorization to its answer.

    verify -> RESERVE -> inference -> SETTLING -> settle -> SETTLED -> receipt -> out

What a buyer can rely on:
- Nothing is released before the transfer is on the chain, and a failed inference is never charged.
- The same payment with the same request always gets the same answer, and is charged once. With another request it is
  refused, and so is a payment that somebody else is waiting for an answer to.
- When it is not known whether the transfer happened, the buyer is told to come back with the same payment, never to pay
  again. The chain knows.

A streamed answer is settled when the model has begun to answer and nothing has left yet. If it breaks after that, its
receipt says so, and the same payment buys the answer again. A service that is set to settle first (`settle: before`)
charges before inference begins; an answer that then cannot be made is owed.

Calls run as tasks of their own: a buyer who hangs up neither stops nor repeats one. Whoever presents the same payment
meanwhile waits for the same task.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from attestation.http_signature import STREAM_TYPE
from service.answer import (
    Draft,
    Paid,
    PaidAnswer,
    Produce,
    Produced,
    Request,
    SigningTrial,
    Stream,
    new_receipt_id,
    seal,
    settlement_header,
    unseal,
)
from service.broadcast import Broadcast
from service.credentials import Credentials
from service.payment.authorization import Authorization, PaymentKey, payment_key
from service.payment.charging import (
    RETRY_AFTER_SECONDS,
    UNFINISHED,
    Charging,
    ComeBackError,
    PaidCallError,
    PaymentConflictError,
    PaymentRefusedError,
    require_settled,
)
from service.payment.facilitator import Facilitator
from service.payment.ledger import Ledger, LedgerError, NewReceipt, Row, State
from service.payment.settlement import Kept
from service.payment.terms import PaymentPayload, PaymentRequirements

__all__ = [
    "RETRY_AFTER_SECONDS",
    "ComeBackError",
    "PaidAnswer",
    "PaidCallError",
    "PaidCalls",
    "PaidStream",
    "PaymentConflictError",
    "PaymentRefusedError",
    "Produce",
    "Produced",
    "Request",
    "Stream",
]

_log: Final = logging.getLogger(__name__)

LEASE_SECONDS: Final = 120
"""After which a payment that nobody keeps alive counts as abandoned, for other replicas to finish."""


@dataclass(frozen=True, slots=True)
class PaidStream:
    """A paid answer that is on its way: what its head says, and its bytes as they come."""

    receipt_id: str
    """Under which the receipt can be fetched once the stream has ended."""
    payment_response: str
    credentials: Credentials
    body: Broadcast
    media_type: str = STREAM_TYPE

    def read(self) -> AsyncIterator[bytes]:
        """The answer's bytes, from the first one.

        Raises:
            StreamBrokenError: it broke off; the same payment buys it again.
        """
        return self.body.read()


@dataclass(frozen=True, slots=True)
class _Source:
    """A streamed answer that has begun."""

    first: bytes | Produced
    rest: AsyncGenerator[bytes | Produced, None]


@dataclass(slots=True)
class _Call:
    """A call that is running."""

    request: Request
    authorization: Authorization
    credentials: Credentials
    known: Row | None
    identifier: str | None
    head: asyncio.Future[PaidStream] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Of a streamed answer: set when it begins to leave."""
    task: asyncio.Task[PaidAnswer | None] | None = None

    @property
    def running(self) -> asyncio.Task[PaidAnswer | None]:
        if self.task is None:
            raise RuntimeError("the call was not started")
        return self.task


class PaidCalls:
    """All paid calls of one service.

    Args:
        ledger: remembers payments.
        facilitator: checks and executes them.
        clock: unix seconds.
        window_seconds: how long an authorization must stay valid for its answer to be made and settled.
        lease_seconds: after which other replicas take a payment for abandoned; `keep_alive` renews it.
        settle: whether payments are executed before or after inference.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        facilitator: Facilitator,
        clock: Callable[[], int],
        window_seconds: int,
        lease_seconds: int = LEASE_SECONDS,
        settle: Literal["before", "after"] = "after",
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lease = lease_seconds
        self._settle_first = settle == "before"
        self._charging = Charging(
            ledger=ledger,
            facilitator=facilitator,
            clock=clock,
            window_seconds=window_seconds,
            lease_seconds=lease_seconds,
        )
        self._trial = SigningTrial()
        self._running: dict[PaymentKey, _Call] = {}

    async def find(self, payload: PaymentPayload) -> Row | None:
        """What is known of a payment: pass it on to `run` or `stream`."""
        return await self._ledger.find(payment_key(payload))

    @staticmethod
    def accepted_terms(known: Row | None) -> PaymentRequirements | None:
        """The terms that a payment was accepted under before, if it was: they hold although the price has changed."""
        # A payment that bought nothing is worth what is asked today, like any other.
        return None if known is None or known.state is State.RELEASED else known.authorization.requirements

    async def run(
        self,
        request: Request,
        authorization: Authorization,
        produce: Produce,
        credentials: Credentials,
        known: Row | None = None,
        identifier: str | None = None,
    ) -> PaidAnswer:
        """The answer to a paid request.

        Args:
            request: what is bought.
            authorization: matched with the terms of exactly this request; not yet verified.
            produce: makes the answer; called at most once, and only after the payment has been verified and reserved.
            credentials: sign the proofs of the answer, unless a call with the same payment is running already.
            known: what `find` said of the payment.
            identifier: the buyer's own name for this purchase.

        Raises:
            PaymentRefusedError: nothing was charged.
            PaymentConflictError: the payment belongs to another request.
            ComeBackError: the same payment will get the answer later.
            Exception: whatever `produce` raised; the payment was released, nothing was charged.
        """
        call = self._join(request, authorization)
        if call is None:
            call = _Call(request, authorization, credentials, known, identifier)
            self._start(call, self._run(call, produce))
        answer = await asyncio.shield(call.running)
        if answer is None:  # not the same request after all: whether it streams is part of it
            raise PaymentConflictError("this payment is being used for a streamed answer")
        return answer

    async def stream(
        self,
        request: Request,
        authorization: Authorization,
        stream: Stream,
        credentials: Credentials,
        known: Row | None = None,
        identifier: str | None = None,
    ) -> PaidStream:
        """The answer to a paid request, from the moment on at which it is paid and begins to come.

        Args and errors are those of `run`; what breaks the answer later is told by its bytes and its receipt.
        """
        call = self._join(request, authorization)
        if call is None:
            call = _Call(request, authorization, credentials, known, identifier)
            self._start(call, self._run_stream(call, stream))
        return await asyncio.shield(call.head)

    async def keep_alive(self) -> None:
        """Renew the leases of the payments that are being worked on. To be called well within every lease."""
        for key in list(self._running):
            try:
                row = await self._ledger.find(key)
                if row is not None and row.state in UNFINISHED:
                    await self._ledger.renew(row, now=self._clock(), lease_seconds=self._lease)
            except LedgerError as error:  # whatever it is: the next one must be renewed all the same
                _log.warning("a lease could not be renewed: %s", error)

    async def drain(self) -> None:
        """Wait for the calls that are running."""
        while self._running:
            await asyncio.wait([call.running for call in self._running.values()])

    def _join(self, request: Request, authorization: Authorization) -> _Call | None:
        call = self._running.get(authorization.key)
        # The signature counts too: who only knows the nonce and the request has no claim to the answer.
        if call is not None and (call.request.digest != request.digest or call.authorization != authorization):
            raise PaymentConflictError("this payment is being used for another request")
        return call

    def _start(self, call: _Call, work: Coroutine[Any, Any, PaidAnswer | None]) -> None:
        call.task = task = asyncio.create_task(work)
        self._running[call.authorization.key] = call
        task.add_done_callback(lambda _: self._running.pop(call.authorization.key, None))
        task.add_done_callback(_retrieve)

    async def _run(self, call: _Call, produce: Produce) -> PaidAnswer:
        row = await self._claim(call)
        if row.state is State.RESERVED and not self._settle_first:
            draft = await self._make(call, row, produce)
            answers: list[PaidAnswer] = []
            paid_in: list[str] = []

            def sign(transaction: str, now: int) -> NewReceipt:
                paid_in.append(transaction)
                answers.append(draft.answer(call.request, Paid(row.authorization, transaction, now), call.credentials))
                return draft.new_receipt(answers[0])

            kept = Kept(seal(draft, row, call.credentials), draft.receipt_id)
            settled = await self._charging.charge(row, kept, sign)
            require_settled(settled)
            if answers and settled.transaction == paid_in[0]:
                return answers[0]
        else:
            settled = await self._charged(row)
        return await self._deliver(call, settled, produce)

    async def _run_stream(self, call: _Call, stream: Stream) -> None:
        """Brings a stream on its way, and to its end; what fails before its head goes to whoever waits for that."""
        try:
            await self._stream(call, stream)
        except BaseException as error:
            if call.head.done():
                raise
            call.head.set_exception(error if isinstance(error, Exception) else _stopped())
            call.head.exception()  # with everybody gone, nobody else will look
            if not isinstance(error, Exception):
                raise

    async def _stream(self, call: _Call, stream: Stream) -> None:
        row = await self._claim(call)
        source: _Source | None = None
        try:
            if row.state is State.RESERVED and not self._settle_first:
                source = await self._begin(call, row, stream)
                row = await self._charging.charge(row)
                require_settled(row)
            else:
                row = await self._charged(row)
            draft = await self._kept(call, row)
            if draft is not None:
                await self._replay(call, row, draft)
            else:
                source = source or await _owed_stream(stream)
                await self._pump(call, row, source)
        finally:
            if source is not None:
                await source.rest.aclose()

    async def _claim(self, call: _Call) -> Row:
        return await self._charging.claim(call.authorization, call.request.digest, call.known, call.identifier)

    async def _charged(self, row: Row) -> Row:
        """The SETTLED row of a payment whose answer is made after it, or was made before."""
        if row.state in (State.RESERVED, State.SERVED):
            row = await self._charging.charge(row)
        require_settled(row)
        return row

    async def _make(self, call: _Call, row: Row, produce: Produce) -> Draft:
        """The answer, before it is paid; without one the payment is released."""
        try:
            produced = await produce()
            # A signer that does not work is found out here, while nothing has been paid.
            self._trial.check(call.credentials)
            return self._draft(call, produced, new_receipt_id())
        except BaseException as error:
            await self._release(row, error)
            raise

    async def _begin(self, call: _Call, row: Row, stream: Stream) -> _Source:
        """A stream whose first piece is there, before it is paid; without one the payment is released."""
        source: _Source | None = None
        try:
            source = await _started(stream)
            self._trial.check(call.credentials)
        except BaseException as error:
            if source is not None:
                await source.rest.aclose()
            await self._release(row, error)
            raise
        return source

    async def _release(self, row: Row, error: BaseException) -> None:
        await asyncio.shield(self._ledger.release(row, reason=type(error).__name__, now=self._clock()))
        if row.reclaimed is not None and isinstance(error, Exception):
            # An earlier transaction may still be executed, so nobody may say that nothing was charged.
            raise _owed(error) from error

    async def _deliver(self, call: _Call, row: Row, produce: Produce) -> PaidAnswer:
        """The answer to a payment that has been made: the kept one, or one that is made anew because it is owed."""
        draft = await self._kept(call, row)
        if draft is not None:
            return await self._again(call, row, draft)
        # Paid before a restart or at another replica, so that the stored answer cannot be read here; or paid first.
        try:
            draft = self._draft(call, await produce(), new_receipt_id(), settled_at=row.updated)
        except Exception as error:
            raise _owed(error) from error
        answer = draft.answer(call.request, _paid(row, draft), call.credentials)
        kept = await self._keep(call, row, draft, draft.new_receipt(answer))
        # When somebody was faster, theirs counts.
        return answer if kept is None else await self._again(call, row, kept)

    async def _again(self, call: _Call, row: Row, draft: Draft) -> PaidAnswer:
        """A stored answer; its receipt is there, unless the keys are others now or reconciling has settled it."""
        answer = draft.answer(call.request, _paid(row, draft), call.credentials)
        if await self._ledger.receipt(answer.receipt_id) is None:
            await self._ledger.put_receipt(draft.new_receipt(answer), now=self._clock())
        return answer

    async def _replay(self, call: _Call, row: Row, draft: Draft) -> None:
        """A streamed answer that is there already, in one piece."""
        answer = await self._again(call, row, draft)
        body = Broadcast()
        body.write(answer.body)
        body.end()
        call.head.set_result(PaidStream(answer.receipt_id, answer.payment_response, answer.credentials, body))

    async def _pump(self, call: _Call, row: Row, source: _Source) -> None:
        """Pass a stream on, then keep it and sign its receipt; one that breaks gets a receipt that says so."""
        receipt_id, body, paid = new_receipt_id(), Broadcast(), _paid(row)
        header = settlement_header(paid, call.request.resource_url, call.credentials)
        call.head.set_result(PaidStream(receipt_id, header, call.credentials, body))
        try:
            produced = await _passed_on(source, body)
            draft = self._draft(call, produced, receipt_id, settled_at=paid.settled_at)
            answer = draft.answer(call.request, paid, call.credentials)
            await self._keep(call, row, draft, draft.new_receipt(answer))
        except BaseException as error:
            _log.warning("a streamed answer broke off: %s", type(error).__name__)
            now = self._clock()
            broken = Draft.broken(call.request, body.written, call.credentials, receipt_id=receipt_id, now=now)
            try:
                receipt = broken.new_receipt(broken.answer(call.request, paid, call.credentials))
                await self._ledger.put_receipt(receipt, now=now)
            finally:
                body.break_off()
            raise
        body.end()

    async def _kept(self, call: _Call, row: Row) -> Draft | None:
        return unseal(await self._ledger.stored(row), row, call.credentials)

    async def _keep(self, call: _Call, row: Row, draft: Draft, receipt: NewReceipt) -> Draft | None:
        """Store an answer that was made after its payment; the one that counts instead, when somebody was faster."""
        sealed = seal(draft, row, call.credentials)
        after = await self._ledger.keep(row, result=sealed, now=self._clock(), receipt=receipt)
        if await self._ledger.stored(after) == sealed:
            return None
        return await self._kept(call, after)

    def _draft(self, call: _Call, produced: Produced, receipt_id: str, *, settled_at: int | None = None) -> Draft:
        now = self._clock()
        return Draft.of(call.request, produced, call.credentials, receipt_id=receipt_id, now=now, settled_at=settled_at)


async def _started(stream: Stream) -> _Source:
    """A stream whose first piece is there."""
    rest = stream()
    try:
        return _Source(await anext(rest), rest)
    except BaseException:
        await rest.aclose()
        raise


async def _owed_stream(stream: Stream) -> _Source:
    """A stream that was paid before, begun again."""
    try:
        return await _started(stream)
    except Exception as error:
        raise _owed(error) from error


async def _passed_on(source: _Source, body: Broadcast) -> Produced:
    """What a stream says of itself at its end, after its pieces have been written to `body`."""
    piece: bytes | Produced | None = source.first
    while isinstance(piece, bytes):
        body.write(piece)
        piece = await anext(source.rest, None)
    if piece is None or piece.body != body.written:
        raise RuntimeError("a stream ended without saying what it was")
    return piece


def _paid(row: Row, draft: Draft | None = None) -> Paid:
    # A row's last change is its settlement, until an answer is stored that was made after it.
    settled_at = row.updated if draft is None or draft.settled_at is None else draft.settled_at
    return Paid(row.authorization, row.transaction or "", settled_at)


def _stopped() -> ComeBackError:
    return ComeBackError("the service is stopping; send the same request with the same payment again")


def _owed(error: Exception) -> ComeBackError:
    _log.warning("an answer that is owed could not be made: %s", type(error).__name__)
    return ComeBackError(
        "the payment was made and the answer to it is owed, but it cannot be had now; "
        "send the same request with the same payment again"
    )


def _retrieve(task: asyncio.Task[PaidAnswer | None]) -> None:
    """Mark a task's exception as seen: with everybody gone, nobody else will look."""
    if not task.cancelled():
        task.exception()
