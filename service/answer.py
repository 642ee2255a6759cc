"""What is bought, what is made for it, and the proofs that go with it: pure assembling, no payment and no ledger.

An answer is made before its payment is settled, or after it; either way its receipt can only be signed once both are
known. `Draft` is everything about an answer but its payment. It is what the ledger keeps, sealed with a key of the
enclave; together with a transaction, body and receipts follow from it.
"""

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from pydantic_core import from_json, to_json

from attestation.digest import digest, sha256
from attestation.enclave.keyring import KeyRing
from attestation.encoding import b64, b64_bytes
from attestation.errors import EnclaveError
from attestation.http_signature import STREAM_TYPE
from attestation.payment_proof import EXTENSION, PaymentReceipt, sign_payment_receipt
from attestation.pricing import request_digest
from attestation.purchase import authorization_hash
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
from service.payment.authorization import Authorization
from service.payment.records import NewReceipt, Row
from service.payment.terms import payment_response, payment_response_header

TRIAL: Final = b"tollseal: does this key sign?"
"""Signed before anything is paid, and shown to nobody. No signature base and no receipt begins like this."""

TRIAL_SECONDS: Final = 1.0

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """What is bought."""

    endpoint: str
    method: str
    body: bytes
    """The exact bytes on the wire."""
    resource_url: str
    body_hash: str = field(init=False)
    digest: str = field(init=False)
    """What a payment is bound to in the ledger."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "body_hash", digest(self.body))
        whole = request_digest(endpoint=self.endpoint, method=self.method, body_hash=self.body_hash)
        object.__setattr__(self, "digest", whole)


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
    media_type: str = JSON


Produce = Callable[[], Awaitable[Produced]]

Stream = Callable[[], AsyncGenerator[bytes | Produced, None]]
"""Makes an answer piece by piece: yields the exact bytes in order, the first ones only when the model has really begun
to answer, and last the whole as one `Produced`, whose body is all of them together. Closing it frees the model."""


@dataclass(frozen=True, slots=True)
class PaidAnswer:
    """A released answer with its proofs."""

    body: bytes
    receipt: bytes
    """Canonical JSON of the signed receipt."""
    receipt_id: str
    payment_response: str
    """Value of the PAYMENT-RESPONSE header, with the signed x402 receipt in it."""
    credentials: Credentials
    """Under which the proofs are, and the response has to be signed."""
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Paid:
    """The payment behind an answer."""

    authorization: Authorization
    transaction: str
    settled_at: int
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer but for its payment."""

    answer_id: str
    receipt_id: str
    model: str | None
    served_at: int
    """Unix seconds."""
    body: bytes
    media_type: str
    events: tuple[Mapping[str, Any], ...]
    """The receipt's events before the payment's."""
    resource_url: str
    keyset: str
    settled_at: int | None = None
    """Unix seconds of the payment, where it came before the answer."""
    complete: bool = True

    @classmethod
    def of(
        cls,
        request: Request,
        produced: Produced,
        credentials: Credentials,
        *,
        receipt_id: str,
        now: int,
        settled_at: int | None = None,
    ) -> Self:
        """The draft of an answer that has been made; times are in unix seconds."""
        forwarded = [{"type": REQUEST_FORWARDED, "body_hash": hash_} for hash_ in produced.forwarded]
        return cls(
            answer_id=produced.answer_id,
            receipt_id=receipt_id,
            model=produced.model,
            served_at=now,
            body=produced.body,
            media_type=produced.media_type,
            events=(
                *_identified(request, credentials),
                *forwarded,
                {"type": INFERENCE_COMPLETED, **produced.completed},
            ),
            resource_url=request.resource_url,
            keyset=credentials.identity.keyset.digest,
            settled_at=settled_at,
        )

    @classmethod
    def broken(cls, request: Request, sent: bytes, credentials: Credentials, *, receipt_id: str, now: int) -> Self:
        """The draft for a stream that broke off after `sent`: its receipt says so, and nothing of it is kept."""
        return cls(
            answer_id=receipt_id,
            receipt_id=receipt_id,
            model=None,
            served_at=now,
            body=sent,
            media_type=STREAM_TYPE,
            events=_identified(request, credentials),
            resource_url=request.resource_url,
            keyset=credentials.identity.keyset.digest,
            complete=False,
        )

    def to_bytes(self) -> bytes:
        """For the ledger, to be sealed."""
        return to_json(
            {
                "answer_id": self.answer_id,
                "receipt_id": self.receipt_id,
                "model": self.model,
                "served_at": self.served_at,
                "body": b64(self.body),
                "media_type": self.media_type,
                "events": self.events,
                "resource_url": self.resource_url,
                "keyset": self.keyset,
                "settled_at": self.settled_at,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`."""
        value = from_json(data)
        body, events = b64_bytes(value.pop("body"), "stored answer"), tuple(value.pop("events"))
        return cls(body=body, events=events, **value)

    def answer(self, request: Request, paid: Paid, credentials: Credentials) -> PaidAnswer:
        """The answer with its proofs, signed under `credentials`.

        A receipt never changes: an answer that is fetched under later keys has another one, with an id of its own.
        """
        keyset = credentials.identity.keyset.digest
        receipt_id = self.receipt_id
        if keyset != self.keyset:
            receipt_id = f"{receipt_id}-{keyset.removeprefix('sha256:')[:16]}"
        receipt = sign_receipt(
            receipt_id=receipt_id,
            chat_id=self.answer_id,
            model=self.model,
            keyset_digest=keyset,
            endpoint=request.endpoint,
            method=request.method,
            served_at=self.served_at,
            events=[
                *self.events,
                _settled(paid),
                {"type": RESPONSE_RETURNED, "body_hash": digest(self.body), "complete": self.complete},
            ],
            signer=credentials.keys,
        )
        return PaidAnswer(
            body=self.body,
            receipt=receipt,
            receipt_id=receipt_id,
            payment_response=settlement_header(paid, self.resource_url, credentials),
            credentials=credentials,
            media_type=self.media_type,
        )

    def new_receipt(self, answer: PaidAnswer) -> NewReceipt:
        """The receipt as the ledger keeps it."""
        return NewReceipt(answer.receipt_id, self.answer_id, answer.receipt.decode())


def new_receipt_id() -> str:
    """An id that nobody can guess: whoever knows it may read the receipt."""
    return f"rcpt-{secrets.token_hex(16)}"


def settlement_header(paid: Paid, resource_url: str, credentials: Credentials) -> str:
    """The value of PAYMENT-RESPONSE, with the signed x402 receipt in it."""
    authorization = paid.authorization
    proof = sign_payment_receipt(
        PaymentReceipt(
            network=authorization.network,
            resource_url=resource_url,
            payer=authorization.payer,
            issued_at=paid.settled_at,
            transaction=paid.transaction,
        ),
        credentials.keys,
    )
    return payment_response_header(
        payment_response(
            transaction=paid.transaction,
            network=authorization.network,
            payer=authorization.payer,
            amount=authorization.amount,
            extensions={EXTENSION: {"info": {"receipt": proof}}},
        )
    )


class SigningTrial:
    """Finds out that a key does not sign while nothing has been paid.

    Keys are tried at most once in `seconds`: they are in this process's memory, and stop signing for good or not at
    all. Whatever does stop them in between costs nobody anything: the answer is owed.

    Args:
        seconds: how long a trial counts.
        monotonic: seconds, by a clock that only goes forward.
    """

    def __init__(self, *, seconds: float = TRIAL_SECONDS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._good: tuple[KeyRing, float] | None = None

    def check(self, credentials: Credentials) -> None:
        """
        Raises:
            EnclaveError: the keys have been given up.
        """
        keys, now = credentials.keys, self._monotonic()
        if self._good is not None and self._good[0] is keys and now < self._good[1] + self._seconds:
            return
        self._good = None
        keys.sign_receipt(TRIAL)
        keys.sign_http(TRIAL)
        keys.sign_typed_data(sha256(TRIAL))
        self._good = (keys, now)


def seal(draft: Draft, row: Row, credentials: Credentials) -> bytes:
    """A draft as the ledger keeps it: readable by this boot's keys only, and only in this row."""
    return credentials.keys.seal(draft.to_bytes(), context=_context(row))


def unseal(result: bytes | None, row: Row, credentials: Credentials) -> Draft | None:
    """The draft that was stored for a row; None when there is none, or it was sealed by keys that are gone."""
    if result is None:
        return None
    try:
        return Draft.from_bytes(credentials.keys.unseal(result, context=_context(row)))
    except EnclaveError:
        return None


def _context(row: Row) -> bytes:
    """Ties a stored answer to its payment and request, so that no row can be given another row's answer."""
    return "|".join((*row.authorization.key, row.request_digest)).encode()


def _identified(request: Request, credentials: Credentials) -> tuple[Mapping[str, Any], ...]:
    agent = credentials.identity.registered_agent
    return (
        {"type": REQUEST_RECEIVED, "body_hash": request.body_hash},
        {"type": AGENT_IDENTIFIED, "agent_registry": agent.registry_id, "agent_id": agent.agent_id},
        {"type": BUILD_IDENTIFIED, "manifest_digest": credentials.identity.manifest_digest},
    )


def _settled(paid: Paid) -> dict[str, Any]:
    authorization = paid.authorization
    return {
        "type": PAYMENT_SETTLED,
        "scheme": authorization.scheme,
        "network": authorization.network,
        "asset": authorization.asset,
        "pay_to": authorization.pay_to,
        "payer": authorization.payer,
        "amount": str(authorization.amount),
        "nonce": authorization.nonce,
        "authorization_hash": authorization_hash(authorization),
        "transaction": paid.transaction,
    }
