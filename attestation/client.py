"""The buyer: an httpx transport that checks a service, pays it, and checks every answer.

    async with httpx.AsyncClient(transport=PayingTransport(buyer)) as http:
        response = await http.post(url, json={"document": text})
        purchase = response.extensions[PURCHASE]

Nothing is sent before the service has proven itself with a nonce drawn for this purpose, nothing is signed before its
offer has been checked, and no answer is returned before the whole chain of proof has been. One request is signed for
once: a lost answer is asked for again with the same payment.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from eth_account.signers.local import LocalAccount
from x402 import x402Client
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload, PaymentRequired

from attestation import purchase as purchases
from attestation.bundle import PAYMENT_HEADER, Bundle
from attestation.checker import KEYSET_HEADER, Attested, ChainSource, ServiceChecker, problem_text, unix_now
from attestation.encoding import as_object, b64url_bytes, parse_json
from attestation.errors import ServiceError, TollsealError
from attestation.http_signature import Exchange
from attestation.payment_proof import EXTENSION
from attestation.policy import Policy
from attestation.purchase import Payment
from attestation.spending import SpendingLimit
from attestation.verdict import Verdict

PURCHASE: Final = "tollseal.purchase"
"""Key of `response.extensions` under which a paid answer's `Purchase` is found."""

REPORT_REUSE_SECONDS: Final = 240
"""How long one attestation of a service serves further calls: well under the age that the default policy accepts."""
ATTEMPTS: Final = 5
"""How often the same payment is presented when the answer does not arrive."""
MAX_RETRY_AFTER_SECONDS: Final = 30
RETRIABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that do not say what became of the payment: the same one is presented again, which never costs twice."""

_HOP_FIELDS: Final = frozenset({"connection", "transfer-encoding", "content-encoding", "content-length"})


class NotAcceptedError(ServiceError):
    """The verdict does not let this buyer go on. Nothing was paid unless `bundle` is there."""

    def __init__(self, message: str, verdict: Verdict, bundle: Bundle | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.bundle = bundle
        """The whole purchase, when the check that failed came after paying: the buyer's evidence."""


@dataclass(frozen=True, slots=True)
class Purchase:
    """A paid answer with its proof."""

    bundle: Bundle
    verdict: Verdict


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Buyer:
    """Who buys, and on which conditions."""

    account: LocalAccount
    limit: SpendingLimit
    policy: Policy = field(default_factory=Policy)
    chain: ChainSource | None = None
    clock: Callable[[], int] = unix_now
    """Unix seconds."""
    progress: Callable[[str], None] = _silent
    """Is told what is going on, in a few words."""


class PayingTransport(httpx.AsyncBaseTransport):
    """Pays where a 402 asks for it, and verifies; see the module's docstring.

    Raises:
        NotAcceptedError: a verdict under the buyer's policy is not good enough.
        ServiceError: the service cannot be bought from (no terms within the limit, no answer after several attempts).
        httpx.TransportError: the service cannot be reached.
    """

    def __init__(self, buyer: Buyer, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._buyer = buyer
        self._checker = ServiceChecker(policy=buyer.policy, chain=buyer.chain, transport=transport, clock=buyer.clock)
        self._attested: dict[httpx.URL, Attested] = {}

    async def aclose(self) -> None:
        await self._checker.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        service = await self.establish(request.url)
        terms = await self._checker.send(request, service.transport)
        if terms.status == 402 and terms.headers.get(KEYSET_HEADER) != service.keyset_digest:
            # Its keys were replaced since it was attested: the present ones prove themselves, and say their terms.
            now = await self._again(request.url, service)
            if now is not service:
                service, terms = now, await self._checker.send(_unpaid(request), now.transport)
        if terms.status != 402:
            return _response(terms, request)
        verifier = await self._checker.verifier(service.attestation, service.channel)
        verdict = verifier.verify_terms(service.attestation, service.manifest, terms, nonce=service.nonce)
        if not verdict.acceptable:
            raise NotAcceptedError("the service's terms were not accepted, nothing was paid", verdict)
        parsed = purchases.parse_terms(terms)
        index = self._buyer.limit.choose(parsed.accepts)
        self._buyer.progress("paying")
        answer, now = await self._present(request, await self._sign(terms, index), service)
        if now is not service:
            # Its keys died with the process that was attested. The new one proves itself, and says its terms again.
            service, terms = now, await self._checker.send(_unpaid(request), now.transport)
            parsed = purchases.parse_terms(terms)
        bundle = _bundle(service, terms, parsed.offers, index, answer)
        return await self._accept(request, service, bundle)

    async def establish(self, url: httpx.URL) -> Attested:
        """Attest the service at a URL, unless that was done moments ago.

        Raises:
            NotAcceptedError: its verdict is not good enough for the buyer's policy.
            ServiceError: it does not answer as such a service must.
        """
        origin = url.join("/")
        known = self._attested.get(origin)
        if known is not None and self._buyer.clock() - known.at < REPORT_REUSE_SECONDS:
            return known
        self._buyer.progress("checking the service")
        found = await self._checker.attest(url)
        if not found.verdict.acceptable:
            raise NotAcceptedError("the service was not accepted, nothing was sent to it", found.verdict)
        self._attested[origin] = found
        return found

    async def _sign(self, terms: Exchange, index: int) -> str:
        """The PAYMENT-SIGNATURE header for one of a 402's `accepts`, made by the x402 SDK."""
        required = decode_payment_required_header(terms.headers["payment-required"])
        if not isinstance(required, PaymentRequired):
            raise ServiceError("the service speaks x402 version 1; version 2 is needed")
        accept = required.accepts[index]
        client = x402Client()
        client.register(accept.network, ExactEvmScheme(EthAccountSigner(self._buyer.account)))
        # The limit has been applied already; this makes the SDK hold to exactly what was chosen.
        client.set_spend_controls(
            {
                "allowed_assets": [
                    {"network": accept.network, "asset": accept.asset, "max_amount_per_payment": accept.amount}
                ]
            }
        )
        payload = await client.create_payment_payload(required.model_copy(update={"accepts": [accept]}))
        if not isinstance(payload, PaymentPayload):
            raise ServiceError("the x402 SDK made no version 2 payment")
        # Offers are for the buyer to keep, and a restarted service has signed others: the payment stands without them.
        extensions = {name: value for name, value in (payload.extensions or {}).items() if name != EXTENSION}
        return encode_payment_signature_header(payload.model_copy(update={"extensions": extensions or None}))

    async def _present(self, request: httpx.Request, header: str, service: Attested) -> tuple[Exchange, Attested]:
        """Send the request with its payment until it is answered; never with another payment.

        Returns:
            The answer, and the service that gave it: a restarted one has other keys, and was attested anew.
        """
        paid = httpx.Request(
            request.method,
            request.url,
            headers=[*request.headers.raw, (PAYMENT_HEADER.encode(), header.encode())],
            content=request.content,
            extensions=request.extensions,
        )
        problem = "no answer"
        for attempt in range(ATTEMPTS):
            wait, broken = min(2**attempt, MAX_RETRY_AFTER_SECONDS), False
            try:
                answer = await self._checker.send(paid, service.transport)
            except httpx.TransportError as error:
                problem = f"the connection broke ({type(error).__name__})"
                broken = True
            else:
                if answer.status == 200:
                    if answer.headers.get(KEYSET_HEADER) != service.keyset_digest:
                        service = await self._again(request.url, service)
                    return answer, service
                problem = problem_text(answer.status, answer.body)
                if answer.status not in RETRIABLE:
                    raise ServiceError(f"the service refused the payment: {problem}", status=answer.status)
                wait = _retry_after(answer, wait)
            if attempt + 1 < ATTEMPTS:
                self._buyer.progress(f"asking again with the same payment in {wait} s: {problem}")
                await asyncio.sleep(wait)
                if broken:
                    service = await self._again(request.url, service)
        raise ServiceError(
            f"the payment was presented {ATTEMPTS} times without an answer: {problem}",
            hint="The authorization may have been used: look at your token balance before you buy again.",
        )

    async def _again(self, url: httpx.URL, service: Attested) -> Attested:
        """The service as it is now, when it has other keys and is as acceptable as before; else as it was."""
        with contextlib.suppress(TollsealError, httpx.TransportError):
            found = await self._checker.attest(url)
            if found.verdict.acceptable and found.keyset_digest != service.keyset_digest:
                self._attested[url.join("/")] = found
                return found
        return service

    async def _accept(self, request: httpx.Request, service: Attested, bundle: Bundle) -> httpx.Response:
        self._buyer.progress("checking the answer")
        payment: Payment | None = None
        transaction: str | None = None
        with contextlib.suppress(TollsealError):
            payment = purchases.parse_payment(bundle.answer)
            transaction = purchases.parse_settlement(bundle.answer).transaction
        verifier = await self._checker.verifier(service.attestation, service.channel, payment, transaction)
        verdict = verifier.verify_bundle(bundle, nonce=service.nonce)
        if not verdict.acceptable:
            raise NotAcceptedError("the answer was paid for, and its proof does not hold", verdict, bundle)
        response = _response(bundle.answer, request)
        response.extensions[PURCHASE] = Purchase(bundle, verdict)
        return response


def _unpaid(request: httpx.Request) -> httpx.Request:
    return httpx.Request(request.method, request.url, headers=request.headers.raw, content=request.content)


def _response(exchange: Exchange, request: httpx.Request) -> httpx.Response:
    headers = {name: value for name, value in exchange.headers.items() if name not in _HOP_FIELDS}
    return httpx.Response(exchange.status, headers=headers, content=exchange.body, request=request)


def _bundle(
    service: Attested, terms: Exchange, offers: tuple[Mapping[str, Any], ...], index: int, answer: Exchange
) -> Bundle:
    """Raises ServiceError when the answer does not carry what a bundle needs."""
    offer = next((offer for offer in offers if offer.get("acceptIndex") == index), None)
    if offer is None:
        raise ServiceError("the answer was paid for, and the service no longer offers the terms that were paid")
    try:
        header = answer.headers.get("x-receipt")
        receipt = as_object(parse_json(b64url_bytes(header, "x-receipt"), "x-receipt"), "x-receipt")
        settlement = purchases.parse_settlement(answer)
    except TollsealError as error:
        raise ServiceError(f"the paid answer came without its proof: {error}") from error
    return Bundle(
        attestation=service.attestation,
        manifest=service.manifest,
        terms=terms,
        answer=answer,
        receipt=receipt,
        offer=offer,
        payment_receipt=settlement.receipt,
    )


def _retry_after(answer: Exchange, default: int) -> int:
    value = answer.headers.get("retry-after", "")
    return min(int(value), MAX_RETRY_AFTER_SECONDS) if value.isdecimal() else default
