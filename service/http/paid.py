"""Selling an answer over HTTP: the 402 with signed offers, the payment, the answer with its proofs.

Payment happens inside the endpoint. A resource validates its request and knows how to produce the answer; everything
about money is here, once for all resources. Source: x402 v2 over HTTP, and its extension `offer-receipt`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from attestation.encoding import b64url
from service.call import (
    RETRY_AFTER_SECONDS,
    ComeBackError,
    PaidAnswer,
    PaidStream,
    PaymentConflictError,
    PaymentRefusedError,
    Produce,
    Request,
    Stream,
)
from service.http.health import unconfirmed, unreadiness
from service.http.problems import Problem, unavailable
from service.http.signing import request_url
from service.http.state import answer_under
from service.http.terms import Terms
from service.inference.admission import Saturated
from service.inference.backend import BackendError
from service.payment.authorization import (
    PaymentHeaderError,
    PaymentMismatchError,
    decode_payment_header,
    match_requirements,
)
from service.payment.identifier import payment_identifier
from service.payment.ledger import LedgerUnavailableError
from service.payment.terms import PAYMENT_RESPONSE_HEADER, PAYMENT_SIGNATURE_HEADER, Resource

if TYPE_CHECKING:
    from service.app import Service

UNPAID: Final = "Payment is required for this request."

BACKEND_RETRY_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Sale:
    """Something that can be bought with one request.

    Attributes:
        body: the request's exact bytes.
        description: of what is sold, for the 402.
        input_tokens: what the price goes by.
        produce: makes the answer; a `Stream` when `stream` is set.
        max_output_tokens: the longest answer that may come.
        stream: whether the answer leaves while it is being made.
        discovery: how the endpoint is called, from `service.payment.discovery`.
    """

    body: bytes
    description: str
    input_tokens: int
    produce: Produce | Stream
    max_output_tokens: int = 0
    stream: bool = False
    discovery: Mapping[str, Any] | None = None


async def sell(http: HttpRequest, service: "Service", sale: Sale) -> Response:
    """Answer a valid request: with a 402, or with what was bought.

    Raises:
        Problem: 400 for a malformed payment, 409 for one that belongs to another request, 503 where the answer cannot
            be had now; none of them costs anything.
    """
    url = request_url(http.scope, service.settings.public_url).partition("?")[0]
    resource = Resource(url=url, description=sale.description, discovery=sale.discovery)
    header = http.headers.get(PAYMENT_SIGNATURE_HEADER)
    request = Request(endpoint=http.url.path, method=http.method, body=sale.body, resource_url=url)
    terms = Terms(service, resource, request, input_tokens=sale.input_tokens, max_output_tokens=sale.max_output_tokens)
    if header is None:
        await _require_ready(service)
        credentials = service.keyholder.give_terms(request.digest)
        answer_under(http, credentials)
        return terms.response(UNPAID, credentials)
    if problems := unconfirmed(service):
        raise _not_ready(problems)
    # One purchase, one keyset: the one that the terms were given under.
    credentials = service.keyholder.terms_given(request.digest)
    answer_under(http, credentials)
    try:
        payload = decode_payment_header(header)
        identifier = payment_identifier(payload, http.headers)
        known = await service.calls.find(payload)
        accepted_before = service.calls.accepted_terms(known)
        accepts = [accepted_before] if accepted_before else terms.accepts
        authorization = match_requirements(payload, accepts, resource=resource)
        bought: PaidAnswer | PaidStream
        if sale.stream:
            stream = cast("Stream", sale.produce)
            bought = await service.calls.stream(request, authorization, stream, credentials, known, identifier)
        else:
            produce = cast("Produce", sale.produce)
            bought = await service.calls.run(request, authorization, produce, credentials, known, identifier)
    except PaymentHeaderError as error:
        raise Problem(400, "malformed-payment", "Malformed payment", str(error), field=error.field) from error
    except PaymentMismatchError as error:
        return terms.response(f"The payment does not match the terms: {error}.", credentials)
    except PaymentRefusedError as error:
        return terms.response(f"The payment was not accepted: {error}.", credentials)
    except PaymentConflictError as error:
        raise Problem(409, "payment-used", "Payment belongs to another request", f"{error}.") from error
    except ComeBackError as error:
        raise unavailable("payment-pending", "Come back", f"{error}.", retry_after=RETRY_AFTER_SECONDS) from error
    except Saturated as error:
        raise unavailable(
            "busy", "Busy", f"{error}; nothing was charged.", retry_after=error.retry_after_seconds
        ) from error
    except BackendError as error:
        raise no_answer(error) from error
    except LedgerUnavailableError as error:
        raise unavailable("ledger", "Ledger unavailable", "Payments cannot be taken now.", retry_after=5) from error
    # Another presentation of the same payment may have begun this call, under the keys of its time.
    answer_under(http, bought.credentials)
    return _streamed(bought) if isinstance(bought, PaidStream) else _paid(bought)


def no_answer(error: BackendError) -> Problem:
    """The model failed: nothing is charged for it."""
    return unavailable(
        "inference-failed",
        "No answer",
        f"The model gave no answer: {error}. Nothing was charged.",
        retry_after=BACKEND_RETRY_SECONDS,
    )


async def _require_ready(service: "Service") -> None:
    """No 402 when the call could not be served anyway: nobody signs a payment for a call that has no place."""
    try:
        service.admission.check()
    except Saturated as error:
        raise unavailable("busy", "Busy", f"{error}.", retry_after=error.retry_after_seconds) from error
    if problems := await unreadiness(service):
        raise _not_ready(problems)


def _not_ready(problems: list[str]) -> Problem:
    detail = f"Nothing can be sold now: {'; '.join(problems)}."
    return unavailable("not-ready", "Not ready", detail, retry_after=BACKEND_RETRY_SECONDS)


def _paid(answer: PaidAnswer) -> Response:
    headers = {**_proofs(answer), "x-receipt": b64url(answer.receipt)}
    return Response(answer.body, media_type=answer.media_type, headers=headers)


def _streamed(stream: PaidStream) -> Response:
    """The receipt covers the whole stream, so it is fetched by its id when the stream has ended."""
    return StreamingResponse(stream.read(), media_type=stream.media_type, headers=_proofs(stream))


def _proofs(bought: PaidAnswer | PaidStream) -> dict[str, str]:
    return {
        PAYMENT_RESPONSE_HEADER: bought.payment_response,
        "x-receipt-id": bought.receipt_id,
        "cache-control": "private, no-transform",
    }
