"""Fetching the receipt of a streamed answer, which is there when the stream has ended."""

import re
from collections.abc import Awaitable, Callable
from typing import Final

import httpx

from attestation import encoding
from attestation.checker import Attested, ServiceChecker, problem_text
from attestation.errors import ServiceError, TollsealError
from attestation.http_signature import Exchange
from attestation.receipt import PATH, RESPONSE_RETURNED, parse_receipt

ATTEMPTS: Final = 8
FIRST_WAIT_SECONDS: Final = 0.1
"""The pauses double: all attempts together take under half a minute."""

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")


async def fetch_receipt(
    checker: ServiceChecker, service: Attested, answer: Exchange, sleep: Callable[[float], Awaitable[None]]
) -> Exchange:
    """The exchange that brings the receipt of an answer.

    Raises:
        ServiceError: the answer names none, or it cannot be had.
    """
    receipt_id = answer.headers.get("x-receipt-id", "")
    if not _ID.fullmatch(receipt_id):
        raise ServiceError("the answer names no receipt")
    url = httpx.URL(answer.url).join(PATH + receipt_id)
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await sleep(FIRST_WAIT_SECONDS * 2**attempt)
        try:
            found = await checker.send(httpx.Request("GET", url), service.transport)
        except httpx.TransportError as error:
            problem = f"the connection broke ({type(error).__name__})"
            continue
        if found.status == 200:
            return found
        problem = problem_text(found.status, found.body)
    raise ServiceError(f"its receipt cannot be had: {problem}")


def is_complete(fetched: Exchange) -> bool:
    """Whether a receipt says that the stream was sent to its end. What is malformed is left to the verifier."""
    try:
        receipt = parse_receipt(encoding.parse_json(fetched.body, "receipt"))
        return receipt.event(RESPONSE_RETURNED).get("complete") is not False
    except TollsealError:
        return True
