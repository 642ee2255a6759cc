"""Buyers who never sign twice: each has one payment per request, and presents it until it is answered.

An answer counts only when the verifier that every buyer uses finds nothing wrong with it: evidence, offer, signature,
receipt and payment proof, all under the keys of the process that gave it.
"""

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import httpx

from attestation import purchase as purchases
from attestation.bundle import PAYMENT_HEADER, Bundle
from attestation.checker import KEYSET_HEADER, Attested, ServiceChecker, problem_text
from attestation.encoding import as_object, b64url_bytes, parse_json
from attestation.errors import TollsealError
from attestation.http_signature import Exchange
from attestation.policy import Policy
from attestation.verdict import Status
from bench.orders import FAR, Purse, Signed
from bench.sellers import PATH

REPORT_SECONDS: Final = 400
"""A report older than this is asked for again: the verifier takes answers up to ten minutes after it."""

REQUEST_SECONDS: Final = 150
"""Longer than a service waits for a facilitator that says nothing."""

TERMS_SECONDS: Final = 20
"""How long a service that has just begun to answer may take until it sells."""

_DEFINITE: Final = frozenset({400, 402, 409, 413, 422})


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was verified."""

    keyset: str
    body: bytes
    transaction: str


@dataclass(slots=True)
class Purchase:
    """One request, its only payment, and what came of it."""

    body: bytes
    payment: Signed
    payer: str
    answers: list[Answer] = field(default_factory=list)
    refused: str | None = None
    """Why it was refused for good, when it was."""
    presented: int = 0

    @property
    def headers(self) -> dict[str, str]:
        return {"content-type": "application/json", PAYMENT_HEADER: self.payment.header}


class Buyers:
    """All buyers of a scenario.

    Args:
        urls: where the service is found; replicas are asked at random.
        judge: False while the service's clock is wrong, and no signature of its can be in time: answers are then taken
            for what they are only once this is True again.
    """

    def __init__(self, urls: Sequence[str], *, key: str, judge: bool = True) -> None:
        self._urls = list(urls)
        self._key = bytes.fromhex(key.removeprefix("0x"))
        self.judge = judge
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(REQUEST_SECONDS), connector=aiohttp.TCPConnector(limit=0)
        )
        self._attested: dict[tuple[str, str], Attested] = {}
        self._attesting = asyncio.Lock()
        self._purse: Purse | None = None
        self.purchases: list[Purchase] = []
        self.wrong: list[str] = []
        """What must never be, one sentence each."""
        self.seen: Counter[str] = Counter()
        """Every response, by status and kind of problem."""
        self.verified = 0

    async def close(self) -> None:
        await self._http.close()

    async def begin(self, *, valid_before: int = FAR) -> None:
        """Ask for the terms once: they are the same for every request here."""
        deadline = time.monotonic() + TERMS_SECONDS
        while (terms := await self.send(self._urls[0], new_request(), None)) is None or terms.status != 402:
            if time.monotonic() > deadline:
                said = "nothing" if terms is None else problem_text(terms.status, terms.body)
                raise RuntimeError(f"the service does not say what a call costs: {said}")
            await asyncio.sleep(0.1)
        document = json.loads(terms.body)
        self._purse = Purse(document, key=self._key, valid_before=valid_before, echo_resource=False)

    def order(self) -> Purchase:
        """A new request with a new payment."""
        assert self._purse is not None
        made = Purchase(new_request(), self._purse.sign(), self._purse.payer)
        self.purchases.append(made)
        return made

    async def crowd(self, count: int, until: asyncio.Event) -> None:
        """So many buyers at a time, each with one purchase after the other, until the event is set."""

        async def one() -> None:
            while not until.is_set():
                await self.buy(self.order(), until)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())

    async def buy(self, wanted: Purchase, until: asyncio.Event) -> None:
        """Present a payment until it is answered or refused, or the event is set."""
        while not until.is_set():
            if await self.present(wanted) or wanted.refused is not None:
                return
            await asyncio.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - not a secret

    async def present(self, wanted: Purchase, url: str | None = None) -> bool:
        """Present a payment once, at any replica or at this one; True when a verified answer came of it."""
        url = url or random.choice(self._urls)  # noqa: S311 - not a secret
        wanted.presented += 1
        exchange = await self.send(url, wanted.body, wanted.payment.header)
        if exchange is None:
            return False
        if exchange.status == 200:
            if not self.judge:
                return True
            return await self._accept(url, wanted, exchange)
        if exchange.status in _DEFINITE and self.judge:
            wanted.refused = problem_text(exchange.status, exchange.body)
        elif exchange.status >= 500 and exchange.status != 503:
            self.wrong.append(f"status {exchange.status}: {exchange.body[:200]!r}")
        return False

    async def send(self, url: str, body: bytes, payment: str | None) -> Exchange | None:
        """One request; None when no whole answer came."""
        headers = {"content-type": "application/json"}
        if payment is not None:
            headers[PAYMENT_HEADER] = payment
        try:
            async with self._http.post(url + PATH, data=body, headers=headers) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.seen[type(error).__name__] += 1
            return None
        found: dict[str, str] = {}
        for name, value in response.headers.items():
            name = name.lower()
            found[name] = f"{found[name]}, {value}" if name in found else value
        self.seen[_kind(response.status, content)] += 1
        return Exchange(
            method="POST",
            url=url + PATH,
            status=response.status,
            headers=found,
            body=content,
            request_headers={} if payment is None else {PAYMENT_HEADER: payment},
            request_body=body,
        )

    async def _accept(self, url: str, wanted: Purchase, answer: Exchange) -> bool:
        """Verify an answer. False when the process that gave it has gone before it could be attested."""
        keyset = answer.headers.get(KEYSET_HEADER, "")
        service = await self._attest(url, keyset)
        terms = await self.send(url, wanted.body, None)
        if service is None or terms is None or terms.status != 402 or terms.headers.get(KEYSET_HEADER) != keyset:
            return False
        try:
            receipt = parse_json(b64url_bytes(answer.headers["x-receipt"], "x-receipt"), "x-receipt")
            settlement = purchases.parse_settlement(answer)
            bundle = Bundle(
                attestation=service.attestation,
                manifest=service.manifest,
                terms=terms,
                answer=answer,
                receipt=as_object(receipt, "x-receipt"),
                offer=purchases.parse_terms(terms).offers[0],
                payment_receipt=settlement.receipt,
            )
        except (TollsealError, KeyError) as error:
            self.wrong.append(f"an answer came without its proof: {error}")
            return False
        async with self._checker() as checker:
            verifier = await checker.verifier(service.attestation, service.channel)
        verdict = verifier.verify_bundle(bundle, nonce=service.nonce)
        failed = [f"{check.id}: {check.detail}" for check in verdict.checks if check.status is Status.FAIL]
        if failed or not verdict.acceptable:
            self.wrong.append(f"an answer is not verified: {failed or verdict.result}")
            return False
        self._keep(wanted, Answer(keyset, answer.body, settlement.transaction))
        return True

    def _keep(self, wanted: Purchase, answer: Answer) -> None:
        self.verified += 1
        for earlier in wanted.answers:
            if earlier.keyset == answer.keyset and earlier != answer:
                self.wrong.append(f"the payment {wanted.payment.nonce} got two different answers under one keyset")
            if earlier.transaction != answer.transaction:
                self.wrong.append(f"the payment {wanted.payment.nonce} was said to be made in two transactions")
        if answer not in wanted.answers:
            wanted.answers.append(answer)

    async def _attest(self, url: str, keyset: str) -> Attested | None:
        """The service behind a URL, if it still is the process with this keyset."""
        async with self._attesting:
            known = self._attested.get((url, keyset))
            if known is not None and _now() - known.at < REPORT_SECONDS:
                return known
            with contextlib.suppress(TollsealError, httpx.TransportError):
                async with self._checker() as checker:
                    found = await checker.attest(httpx.URL(url))
                if found.keyset_digest != keyset:
                    return None  # started again meanwhile; until it is registered it sells nothing
                if not found.verdict.acceptable:
                    self.wrong.append(f"the service is not accepted: {found.verdict.to_json()}")
                    return None
                self._attested[url, keyset] = found
                return found
        return None

    def _checker(self) -> ServiceChecker:
        return ServiceChecker(policy=Policy(allow_simulated=True), clock=_now)


def _now() -> int:
    return int(time.time())


def new_request() -> bytes:
    """A request that nobody has made before."""
    words = " ".join(secrets.token_hex(3) for _ in range(24))
    return json.dumps({"document": f"Minutes of a harbour commission, in code: {words}.", "max_words": 20}).encode()


def _kind(status: int, content: bytes) -> str:
    if status in (200, 402):
        return str(status)
    with contextlib.suppress(ValueError):
        document: Any = json.loads(content)
        if isinstance(document, dict) and isinstance(document.get("type"), str):
            return f"{status} {document['type'].rpartition(':')[2]}"
    return f"{status}"
