"""PaidCall: one paid request, from its authorization to its answer.

    verify -> RESERVE -> inference -> SERVED -> settle -> SETTLED -> receipt -> out

What a buyer can rely on:
- Nothing is released before the transfer is on the chain, and a failed inference is never charged.
- The same payment with the same request always gets the same answer, and is charged once. With another request it is
  refused, and so is a payment that somebody else is waiting for an answer to.
- When it is not known whether the transfer happened, the buyer is told to come back with the same payment, never to pay
  again. The chain knows.

Calls run as tasks of their own: a buyer who hangs up neither stops nor repeats one. Whoever presents the same payment
meanwhile waits for the same task.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from attestation.digest import digest, jcs_digest
from attestation.encoding import b64, b64_bytes
from attestation.errors import EnclaveError
from attestation.payment_proof import EXTENSION, PaymentReceipt, sign_payment_receipt
from attestation.receipt import (
    AGENT_IDENTIFIED,
    BUILD_IDENTIFIED,
    INFERENCE_COMPLETED,
    PAYMENT_SETTLED,
    REQUEST_FORWARDED,
    REQUEST_RECEIVED,
    RESPONSE_RETURNED,
    sign_receipt,
)
from service.credentials import Credentials
from service.payment.authorization import (
    Authorization,
    PaymentKey,
    PaymentMismatchError,
    check_window,
    payment_key,
)
from service.payment.facilitator import (
    Facilitator,
    FacilitatorUnavailableError,
    Invalid,
    Unavailable,
    Unused,
    Used,
    Void,
)
from service.payment.ledger import Conflict, Existing, Ledger, Moved, Row, Stale, State
from service.payment.reconcile import RAN_OUT, REORG_MARGIN_SECONDS
from service.payment.settlement import settle_served
from service.payment.terms import PaymentPayload, PaymentRequirements, payment_response, payment_response_header

TRIAL: Final = b"tollseal: does this key sign?"
"""Signed with the http key before anything is paid, and shown to nobody. No signature base begins like this."""

_log: Final = logging.getLogger(__name__)

RETRY_AFTER_SECONDS: Final = 2
"""When a buyer is told to come back about a payment whose outcome is not known: about one block."""


class PaidCallError(Exception):
    """Root of the ways in which a paid call ends without an answer."""


class PaymentRefusedError(PaidCallError):
    """The payment cannot be accepted, or was not executed: nothing was charged (402)."""


class PaymentConflictError(PaidCallError):
    """The payment belongs to another request (409)."""


class ComeBackError(PaidCallError):
    """It is not known yet whether the payment was executed, or whether it can be: the same payment gets the answer
    later (503)."""

    retry_after_seconds = RETRY_AFTER_SECONDS


@dataclass(frozen=True, slots=True)
class Request:
    """What is bought."""

    endpoint: str
    method: str
    body: bytes
    """The exact bytes on the wire."""
    resource_url: str

    @property
    def digest(self) -> str:
        """What a payment is bound to in the ledger."""
        return jcs_digest({"endpoint": self.endpoint, "method": self.method, "body": digest(self.body)})


@dataclass(frozen=True, slots=True)
class Produced:
    """What inference produced for a request: the response body and what the receipt says about it."""

    answer_id: str
    model: str
    body: bytes
    forwarded: tuple[str, ...]
    """``sha256:`` digests of the exact bytes of each call to the model, in order."""
    completed: Mapping[str, Any]
    """The fields of `inference.completed`."""
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class PaidAnswer:
    """A released answer with its proofs."""

    body: bytes
    receipt: Mapping[str, Any]
    payment_response: str
    """Value of the PAYMENT-RESPONSE header, with the signed x402 receipt in it."""
    credentials: Credentials
    """Under which the proofs are, and the response has to be signed."""


Produce = Callable[[], Awaitable[Produced]]

Stream = Callable[[], AsyncGenerator[bytes | Produced, None]]
"""Makes an answer piece by piece: yields the exact bytes in order, the first ones only when the model has really begun
to answer, and last the whole as one `Produced`, whose body is all of them together. Closing it frees the model."""


class PaidCalls:
    """All paid calls of one service.

    Args:
        ledger: remembers payments.
        facilitator: checks and executes them.
        clock: unix seconds.
        window_seconds: how long an authorization must stay valid for its answer to be made and settled.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        facilitator: Facilitator,
        clock: Callable[[], int],
        window_seconds: int,
    ) -> None:
        self._ledger = ledger
        self._facilitator = facilitator
        self._clock = clock
        self._window = window_seconds
        self._running: dict[PaymentKey, tuple[str, Authorization, asyncio.Task[PaidAnswer]]] = {}

    async def run(
        self, request: Request, authorization: Authorization, produce: Produce, credentials: Credentials
    ) -> PaidAnswer:
        """The answer to a paid request.

        Args:
            request: what is bought.
            authorization: matched with the terms of exactly this request; not yet verified.
            produce: makes the answer; called at most once, and only after the payment has been verified and reserved.
            credentials: sign the proofs of the answer, unless a call with the same payment is running already.

        Raises:
            PaymentRefusedError: nothing was charged.
            PaymentConflictError: the payment belongs to another request.
            ComeBackError: the same payment will get the answer later.
            Exception: whatever `produce` raised; the payment was released, nothing was charged.
        """
        running = self._running.get(authorization.key)
        if running is not None:
            digest_, presented, task = running
            # The signature counts too: who only knows the nonce and the request has no claim to the answer.
            if digest_ != request.digest or presented != authorization:
                raise PaymentConflictError("this payment is being used for another request")
        else:
            task = asyncio.create_task(self._run(request, authorization, produce, credentials))
            self._running[authorization.key] = (request.digest, authorization, task)
            task.add_done_callback(lambda _: self._running.pop(authorization.key, None))
            task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    async def terms_of(self, payload: PaymentPayload) -> PaymentRequirements | None:
        """The terms that a payment was accepted under before, if it was: they hold although the price has changed."""
        row = await self._ledger.find(payment_key(payload))
        # A payment that bought nothing is worth what is asked today, like any other.
        return None if row is None or row.state is State.RELEASED else row.authorization.requirements

    async def drain(self) -> None:
        """Wait for the calls that are running."""
        while self._running:
            await asyncio.wait([task for *_, task in self._running.values()])

    async def _run(
        self, request: Request, authorization: Authorization, produce: Produce, credentials: Credentials
    ) -> PaidAnswer:
        row = await self._ledger.find(authorization.key)
        if row is None or row.state is State.RELEASED:
            row = await self._reserve(request, authorization)
        if row.request_digest != request.digest or row.authorization != authorization:
            raise PaymentConflictError("this payment was used for another request")
        if row.state is State.RESERVED:
            row = await self._serve(row, request, produce, credentials)
        if row.state in (State.SETTLING, State.UNKNOWN):
            row = await self._ask_chain(row)
        if row.state is State.SERVED:
            row = _moved(await settle_served(self._ledger, self._facilitator, row, self._clock))
        if row.state is State.REJECTED:
            raise PaymentRefusedError(row.reason or "the payment was not executed")
        if row.state is not State.SETTLED:
            raise ComeBackError("it is not known yet whether the payment was executed; send the same one again")
        return await self._deliver(row, request, produce, credentials)

    async def _reserve(self, request: Request, authorization: Authorization) -> Row:
        try:
            check_window(authorization, now=self._clock(), needed_seconds=self._window)
            verified = await self._facilitator.verify(authorization)
        except PaymentMismatchError as error:
            raise PaymentRefusedError(str(error)) from error
        except FacilitatorUnavailableError as error:
            raise ComeBackError(f"{error}; nothing was charged") from error
        if isinstance(verified, Invalid):
            raise PaymentRefusedError(f"{verified.reason}: {verified.message}")
        match await self._ledger.reserve(authorization, request.digest, self._clock()):
            case Conflict():
                raise PaymentConflictError("this payment was used for another request")
            case Existing(row) if row.state is State.RESERVED:
                # Another process holds it; taking its work over could serve one payment twice.
                raise ComeBackError("the payment is being worked on; send the same request with it again")
            case Existing(row):
                return row
            case reserved:
                return reserved.row

    async def _serve(self, row: Row, request: Request, produce: Produce, credentials: Credentials) -> Row:
        try:
            produced = await produce()
            result = self._stored(request, produced, credentials)
            # A signer that does not work is found out here, while nothing has been paid.
            _answer(row, request, result, credentials, transaction="0x" + "00" * 32, settled_at=self._clock())
            credentials.keys.sign_http(TRIAL)
        except BaseException as error:
            await asyncio.shield(self._ledger.release(row, reason=type(error).__name__, now=self._clock()))
            raise
        sealed = _seal(credentials, row, result)
        return _moved(await self._ledger.serve(row, result=sealed, now=self._clock(), receipt_id=result["receipt_id"]))

    async def _ask_chain(self, row: Row) -> Row:
        """What became of a transfer that may have happened (EIP-3009 `authorizationState` and events)."""
        match await self._facilitator.outcome(row.authorization):
            case Used(transaction=transaction):
                return _moved(await self._ledger.settled(row, transaction=transaction, now=self._clock()))
            case Void(reason):
                return _moved(await self._ledger.rejected(row, reason=reason, now=self._clock()))
            case Unused(chain_time) if chain_time >= row.authorization.valid_before + REORG_MARGIN_SECONDS:
                return _moved(await self._ledger.rejected(row, reason=RAN_OUT, now=self._clock()))
            case Unused(chain_time) if row.state is State.UNKNOWN and chain_time < row.authorization.valid_before:
                # Settling again is safe even if a transaction still waits: the token executes a nonce once.
                return _moved(await self._ledger.resume(row, now=self._clock()))
            case Unused() | Unavailable():
                return row

    async def _deliver(self, row: Row, request: Request, produce: Produce, credentials: Credentials) -> PaidAnswer:
        result = _unseal(credentials, row)
        if result is None:
            # Paid before a restart: the keys that could read the stored answer are gone, and the buyer is owed one.
            try:
                result = self._stored(request, await produce(), credentials)
            except Exception as error:
                _log.warning("an answer that is owed could not be made: %s", type(error).__name__)
                raise ComeBackError(
                    "the payment was made and the answer to it is owed, but it cannot be had now; "
                    "send the same request with the same payment again"
                ) from error
            sealed = _seal(credentials, row, result)
            replaced = await self._ledger.replace_result(
                row, result=sealed, now=self._clock(), receipt_id=result["receipt_id"]
            )
            row = _moved(replaced)
            result = _unseal(credentials, row) or result
        answer = _answer(row, request, result, credentials, transaction=row.transaction or "", settled_at=row.updated)
        await self._ledger.put_receipt(
            receipt_id=answer.receipt["receipt_id"],
            chat_id=result["answer_id"],
            receipt=json.dumps(answer.receipt),
            now=self._clock(),
        )
        return answer

    def _stored(self, request: Request, produced: Produced, credentials: Credentials) -> dict[str, Any]:
        """Everything about an answer but its payment: from this and the transaction, receipt and body follow."""
        forwarded = [{"type": REQUEST_FORWARDED, "body_hash": hash_} for hash_ in produced.forwarded]
        agent = credentials.identity.registered_agent
        return {
            "answer_id": produced.answer_id,
            "receipt_id": f"rcpt-{secrets.token_hex(16)}",
            "model": produced.model,
            "served_at": self._clock(),
            "body": b64(produced.body),
            "before_payment": [
                {"type": REQUEST_RECEIVED, "body_hash": digest(request.body)},
                {"type": AGENT_IDENTIFIED, "agent_registry": agent.registry_id, "agent_id": agent.agent_id},
                {"type": BUILD_IDENTIFIED, "manifest_digest": credentials.identity.manifest_digest},
                *forwarded,
                {"type": INFERENCE_COMPLETED, **produced.completed},
            ],
            "resource_url": request.resource_url,
            "keyset": credentials.identity.keyset.digest,
        }


def _answer(
    row: Row,
    request: Request,
    result: Mapping[str, Any],
    credentials: Credentials,
    *,
    transaction: str,
    settled_at: int,
) -> PaidAnswer:
    body = b64_bytes(result["body"], "stored answer")
    paid = row.authorization
    receipt = sign_receipt(
        receipt_id=_receipt_id(result, credentials),
        chat_id=result["answer_id"],
        model=result["model"],
        keyset_digest=credentials.identity.keyset.digest,
        endpoint=request.endpoint,
        method=request.method,
        served_at=result["served_at"],
        events=[
            *result["before_payment"],
            {
                "type": PAYMENT_SETTLED,
                "scheme": paid.scheme,
                "network": paid.network,
                "asset": paid.asset,
                "pay_to": paid.pay_to,
                "payer": paid.payer,
                "amount": str(paid.amount),
                "nonce": paid.nonce,
                "transaction": transaction,
            },
            {"type": RESPONSE_RETURNED, "body_hash": digest(body), "complete": True},
        ],
        signer=credentials.keys,
    )
    proof = sign_payment_receipt(
        PaymentReceipt(
            network=paid.network,
            resource_url=result["resource_url"],
            payer=paid.payer,
            issued_at=settled_at,
            transaction=transaction,
        ),
        credentials.keys,
    )
    settlement = payment_response(
        transaction=transaction,
        network=paid.network,
        payer=paid.payer,
        amount=paid.amount,
        extensions={EXTENSION: {"info": {"receipt": proof}}},
    )
    return PaidAnswer(
        body=body, receipt=receipt, payment_response=payment_response_header(settlement), credentials=credentials
    )


def _receipt_id(result: Mapping[str, Any], credentials: Credentials) -> str:
    """A receipt never changes, so an answer that is fetched under later keys has another one, with an id of its own."""
    first: str = result["receipt_id"]
    keyset = credentials.identity.keyset.digest
    return first if keyset == result["keyset"] else f"{first}-{keyset.removeprefix('sha256:')[:16]}"


def _seal(credentials: Credentials, row: Row, result: Mapping[str, Any]) -> bytes:
    return credentials.keys.seal(json.dumps(result).encode(), context=_context(row))


def _unseal(credentials: Credentials, row: Row) -> dict[str, Any] | None:
    if row.result is None:
        return None
    try:
        stored = credentials.keys.unseal(row.result, context=_context(row))
    except EnclaveError:
        return None
    result: dict[str, Any] = json.loads(stored)
    return result


def _context(row: Row) -> bytes:
    """Ties a stored answer to its payment and request, so that no row can be given another row's answer."""
    return "|".join((*row.authorization.key, row.request_digest)).encode()


def _moved(change: Moved | Stale) -> Row:
    """The row as it is after a transition, whoever made it."""
    if change.row is None:
        raise ComeBackError("the payment's record was removed; send the same request with the same payment again")
    return change.row


def _retrieve(task: asyncio.Task[PaidAnswer]) -> None:
    """Mark a task's exception as seen: with everybody gone, nobody else will look."""
    if not task.cancelled():
        task.exception()
