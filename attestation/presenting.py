"""Sending one payment until it is answered, and never another one."""

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import httpx

from attestation.bundle import PAYMENT_HEADER
from attestation.buying import Buyer, PaymentRefusedError
from attestation.checker import KEYSET_HEADER, Attested, ServiceChecker, problem_text
from attestation.errors import ServiceError, TollsealError
from attestation.http_signature import Exchange, is_stream

REPORT_REUSE_SECONDS: Final = 240
"""How long one attestation of a service serves further calls: well under the age that the default policy accepts."""
MAX_WAIT_SECONDS: Final = 30
"""Longest pause between two attempts, whatever the service asks for."""
PROBLEM_TYPE: Final = "application/problem+json"

_COME_BACK: Final = frozenset({408, 425, 429, 503})
"""Answers that ask for the same again."""
_WORDS: Final = {
    402: "the service does not take the payment and says that nothing was charged",
    409: "the service says that the payment belongs to another request",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A 200, and the service that gave it."""

    exchange: Exchange
    """Without its body when it is a stream."""
    stream: httpx.Response | None
    """Still to be read and closed; None when the answer came in one piece."""
    service: Attested
    """As attested when the answer came: a service that was restarted meanwhile has other keys."""


class Presenter:
    """Sends payments for one buyer.

    A lost connection, a timeout, 503 and what a proxy answers in a broken service's place (5xx that is no problem
    document) do not say what became of the payment, so the same one is sent again. Every other answer is definite.

    Args:
        buyer: says for how long, and is told about it.
        checker: sends, and attests again.
        attested: is told of a new attestation of a service.
    """

    def __init__(self, buyer: Buyer, checker: ServiceChecker, attested: Callable[[httpx.URL, Attested], None]) -> None:
        self._buyer = buyer
        self._checker = checker
        self._attested = attested

    async def present(self, request: httpx.Request, header: str, service: Attested, *, until: int) -> Answer:
        """Send a request with its payment until it is answered.

        Args:
            request: as it was sent without a payment.
            header: the payment.
            service: as attested.
            until: unix seconds at which to stop.

        Raises:
            PaymentRefusedError: a definite answer that is not the one that was paid for.
            ServiceError: no answer in time.
        """
        attempt, problem = 0, "no answer"
        while (left := until - self._buyer.clock()) > 0:
            wait = min(2**attempt, MAX_WAIT_SECONDS)
            attempt += 1
            try:
                async with asyncio.timeout(left):
                    answer = await self._send(paid(request, header), service)
            except (httpx.TransportError, TimeoutError) as error:
                problem, broken = f"the connection broke ({type(error).__name__})", True
            else:
                if answer.exchange.status == 200:
                    return replace(answer, service=await self._present_keys(request.url, answer))
                problem, broken = problem_text(answer.exchange.status, answer.exchange.body), False
                if not _says_nothing(answer.exchange):
                    raise _refused(answer.exchange, problem)
                wait = _retry_after(answer.exchange, wait)
            if wait >= until - self._buyer.clock():
                break
            self._buyer.progress(f"sending the same payment again in {wait} s: {problem}")
            await self._buyer.sleep(wait)
            if broken:
                service = await self.again(request.url, service)
        raise ServiceError(
            f"the payment was sent {attempt} times without an answer: {problem}",
            hint="Send the same request again: it sends the same payment, so nothing is paid twice.",
        )

    async def again(self, url: httpx.URL, service: Attested) -> Attested:
        """The service as it is now, when it is as acceptable as before; else as it was."""
        with contextlib.suppress(TollsealError, httpx.TransportError):
            found = await self._checker.attest(url)
            if found.verdict.acceptable:
                self._attested(url, found)
                return found
        return service

    async def _present_keys(self, url: httpx.URL, answer: Answer) -> Attested:
        """The service that answered, attested anew when its keys are other ones or the report has become old."""
        service = answer.service
        other = answer.exchange.headers.get(KEYSET_HEADER) != service.keyset_digest
        old = self._buyer.clock() - service.at >= REPORT_REUSE_SECONDS
        return await self.again(url, service) if other or old else service

    async def _send(self, request: httpx.Request, service: Attested) -> Answer:
        head, sent = await self._checker.begin(request, service.transport)
        if head.status == 200 and is_stream(head.headers):
            return Answer(head, sent, service)
        try:
            return Answer(replace(head, body=await sent.aread()), None, service)
        finally:
            await sent.aclose()


def paid(request: httpx.Request, header: str) -> httpx.Request:
    """The request with a payment."""
    return httpx.Request(
        request.method,
        request.url,
        headers=[*request.headers.raw, (PAYMENT_HEADER.encode(), header.encode())],
        content=request.content,
        extensions=dict(request.extensions),
    )


def unpaid(request: httpx.Request) -> httpx.Request:
    """The request, to be sent once more."""
    return httpx.Request(
        request.method,
        request.url,
        headers=request.headers.raw,
        content=request.content,
        extensions=dict(request.extensions),
    )


def _says_nothing(answer: Exchange) -> bool:
    """Whether an answer leaves it open what became of the payment."""
    if answer.status in _COME_BACK:
        return True
    return answer.status >= 500 and not answer.headers.get("content-type", "").startswith(PROBLEM_TYPE)


def _refused(answer: Exchange, problem: str) -> PaymentRefusedError:
    words = _WORDS.get(answer.status, "the service refused the payment")
    return PaymentRefusedError(f"{words}: {problem}", answer)


def _retry_after(answer: Exchange, default: int) -> int:
    value = answer.headers.get("retry-after", "")
    return min(int(value), MAX_WAIT_SECONDS) if re.fullmatch("[0-9]{1,9}", value) else default
