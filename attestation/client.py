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
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx
from eth_account.signers.local import LocalAccount
from x402 import x402Client
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentRequired

from attestation import manifest as manifests
from attestation import purchase as purchases
from attestation import report
from attestation.bundle import PAYMENT_HEADER, Bundle
from attestation.closing import AsyncCloseable
from attestation.encoding import as_object, b64url_bytes, parse_json
from attestation.errors import ServiceError, TollsealError
from attestation.http_signature import Exchange
from attestation.onchain import AgentReference, ChainView
from attestation.policy import Policy
from attestation.purchase import Payment
from attestation.spending import SpendingLimit
from attestation.verdict import Verdict
from attestation.verifier import Verifier

PURCHASE: Final = "tollseal.purchase"
"""Key of `response.extensions` under which a paid answer's `Purchase` is found."""

REPORT_REUSE_SECONDS: Final = 240
"""How long one attestation of a service serves further calls: well under the age that the default policy accepts."""
ATTEMPTS: Final = 5
"""How often the same payment is presented when the answer does not arrive."""
MAX_RETRY_AFTER_SECONDS: Final = 30

_HOP_FIELDS: Final = frozenset({"connection", "transfer-encoding", "content-encoding", "content-length"})


class ChainSource(Protocol):
    """Reads what a verification asks of the chain."""

    async def view(
        self, agent: AgentReference, key_slot: str, payment: Payment | None = None, transaction: str | None = None
    ) -> ChainView: ...


class NotAcceptedError(ServiceError):
    """The verdict does not let this buyer go on. Nothing was paid unless `bundle` is there."""

    def __init__(self, message: str, verdict: Verdict, bundle: Bundle | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.bundle = bundle
        """The whole purchase, when the check that failed came after paying: the buyer's evidence."""


@dataclass(frozen=True, slots=True)
class Attested:
    """A service and what was found of it."""

    attestation: Exchange
    manifest: Exchange
    nonce: str
    at: int
    """Unix seconds."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Purchase:
    """A paid answer with its proof."""

    bundle: Bundle
    verdict: Verdict


def _silent(_: str) -> None:
    pass


def _unix_now() -> int:
    return int(time.time())


class ServiceChecker(AsyncCloseable):
    """Attests services under a policy, without buying anything.

    Args:
        policy: what is demanded of them.
        chain: reads the chain through a node of the relying party's own choice; None leaves those checks not verified.
        transport: carries the requests.
        clock: unix seconds.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        chain: ChainSource | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], int] = _unix_now,
    ) -> None:
        self._policy = policy
        self._chain = chain
        self._transport = transport or httpx.AsyncHTTPTransport()
        self._clock = clock

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._transport.aclose()

    async def attest(self, url: httpx.URL) -> Attested:
        """Ask the service at a URL for its evidence, with a fresh nonce, and judge it.

        Raises:
            ServiceError: it does not answer as such a service must.
            httpx.TransportError: it cannot be reached.
        """
        nonce, at = secrets.token_hex(32), self._clock()
        attestation = await self._get(url.join(f"{report.PATH}?nonce={nonce}"))
        manifest = await self._get(url.join(manifests.PATH))
        verdict = (await self.verifier(attestation)).verify_service(attestation, manifest, nonce=nonce)
        return Attested(attestation, manifest, nonce, at, verdict)

    async def verifier(
        self, attestation: Exchange, payment: Payment | None = None, transaction: str | None = None
    ) -> Verifier:
        """A verifier that knows what the chain says about a service, and about a payment when one is named."""
        view: ChainView | None = None
        if self._chain is not None:
            # A report that names no agent is for the verifier to refuse, not for us to look up.
            with contextlib.suppress(TollsealError):
                agent, slot = report.agent_of(attestation), report.key_slot_of(attestation)
                view = await self._chain.view(agent, slot, payment, transaction)
        return Verifier(self._policy, now=self._clock(), chain=view)

    async def send(self, request: httpx.Request) -> Exchange:
        """Send a request and read its whole answer.

        Raises:
            httpx.TransportError: it could not be sent, or the answer broke off.
        """
        # A signature covers the bytes on the wire, so nothing may compress them on the way.
        request.headers["accept-encoding"] = "identity"
        sent = await self._transport.handle_async_request(request)
        try:
            body = await sent.aread()
        finally:
            await sent.aclose()
        headers: dict[str, str] = {}
        for name, value in sent.headers.multi_items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        payment = request.headers.get(PAYMENT_HEADER)
        return Exchange(
            method=request.method,
            url=str(request.url),
            status=sent.status_code,
            headers=headers,
            body=body,
            request_headers={} if payment is None else {PAYMENT_HEADER: payment},
            request_body=request.content,
        )

    async def _get(self, url: httpx.URL) -> Exchange:
        exchange = await self.send(httpx.Request("GET", url))
        if exchange.status != 200:
            said = problem_text(exchange.status, exchange.body)
            raise ServiceError(f"{url.join('/')} is no service of this kind, or not ready: {said}")
        return exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Buyer:
    """Who buys, and on which conditions."""

    account: LocalAccount
    limit: SpendingLimit
    policy: Policy = field(default_factory=Policy)
    chain: ChainSource | None = None
    clock: Callable[[], int] = _unix_now
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
        terms = await self._checker.send(request)
        if terms.status != 402:
            return _response(terms, request)
        verifier = await self._checker.verifier(service.attestation)
        verdict = verifier.verify_terms(service.attestation, service.manifest, terms, nonce=service.nonce)
        if not verdict.acceptable:
            raise NotAcceptedError("the service's terms were not accepted, nothing was paid", verdict)
        parsed = purchases.parse_terms(terms)
        index = self._buyer.limit.choose(parsed.accepts)
        self._buyer.progress("paying")
        answer = await self._present(request, await self._sign(terms, index))
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
        return encode_payment_signature_header(payload)

    async def _present(self, request: httpx.Request, header: str) -> Exchange:
        """Send the request with its payment until it is answered; never with another payment."""
        paid = httpx.Request(
            request.method,
            request.url,
            headers=[*request.headers.raw, (PAYMENT_HEADER.encode(), header.encode())],
            content=request.content,
            extensions=request.extensions,
        )
        problem = "no answer"
        for attempt in range(ATTEMPTS):
            wait = min(2**attempt, MAX_RETRY_AFTER_SECONDS)
            try:
                answer = await self._checker.send(paid)
            except httpx.TransportError as error:
                problem = f"the connection broke ({type(error).__name__})"
            else:
                if answer.status == 200:
                    return answer
                problem = problem_text(answer.status, answer.body)
                if answer.status != 503:
                    raise ServiceError(f"the service refused the payment: {problem}", status=answer.status)
                wait = _retry_after(answer, wait)
            if attempt + 1 < ATTEMPTS:
                self._buyer.progress(f"asking again with the same payment in {wait} s: {problem}")
                await asyncio.sleep(wait)
        raise ServiceError(
            f"the payment was presented {ATTEMPTS} times without an answer: {problem}",
            hint="The authorization may have been used: look at your token balance before you buy again.",
        )

    async def _accept(self, request: httpx.Request, service: Attested, bundle: Bundle) -> httpx.Response:
        self._buyer.progress("checking the answer")
        payment: Payment | None = None
        transaction: str | None = None
        with contextlib.suppress(TollsealError):
            payment = purchases.parse_payment(bundle.answer)
            transaction = purchases.parse_settlement(bundle.answer).transaction
        verifier = await self._checker.verifier(service.attestation, payment, transaction)
        verdict = verifier.verify_bundle(bundle, nonce=service.nonce)
        if not verdict.acceptable:
            raise NotAcceptedError("the answer was paid for, and its proof does not hold", verdict, bundle)
        response = _response(bundle.answer, request)
        response.extensions[PURCHASE] = Purchase(bundle, verdict)
        return response


def problem_text(status: int, content: bytes) -> str:
    """What a response says went wrong, in one line without control characters (RFC 9457; a 402 says it in `error`)."""
    try:
        body = as_object(parse_json(content, "problem"), "problem")
    except TollsealError:
        return f"status {status}"
    words = [body[name] for name in ("title", "detail", "error") if isinstance(body.get(name), str)]
    line = "".join(character if character.isprintable() else " " for character in ": ".join(words))
    return f"{line[:500] or 'no reason given'} (status {status})"


def _response(exchange: Exchange, request: httpx.Request) -> httpx.Response:
    headers = {name: value for name, value in exchange.headers.items() if name not in _HOP_FIELDS}
    return httpx.Response(exchange.status, headers=headers, content=exchange.body, request=request)


def _bundle(
    service: Attested, terms: Exchange, offers: tuple[Mapping[str, Any], ...], index: int, answer: Exchange
) -> Bundle:
    """Raises ServiceError when the answer does not carry what a bundle needs."""
    offer = next(offer for offer in offers if offer.get("acceptIndex") == index)
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
