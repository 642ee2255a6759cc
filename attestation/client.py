"""The buyer: an httpx transport that checks a service, pays it, and checks every answer.

    async with httpx.AsyncClient(transport=PayingTransport(buyer)) as http:
        response = await http.post(url, json={"document": text})
        purchase = response.extensions[PURCHASE]

Nothing is sent before the service has proven itself with a nonce drawn for this purpose, nothing is signed before its
offer has been checked, and no answer is returned before the whole chain of proof has been. A streamed answer is passed
on as it arrives; the iteration ends with an error unless all of it was proven, and only then is there a purchase.

One request is signed for once. A payment that was signed and has bought no answer is sent again for the same request,
by whichever process uses the same spend ledger:

- whatever has become of price, terms and keys meanwhile: the service answers a payment that it has taken, and a new one
  would be a second one. What it makes of the payment now is for it to say;
- a 402 while the payment is valid ends the call: nothing else is signed before it has ended, because it may be taken;
- a 402 under the attested keys when it is no longer valid: the chain is asked, and a new payment is signed only when it
  says that this one was never used. A buyer without a node takes the service's word, and counts the old one as spent;
- any other definite answer (409, an error) ends the call, and the payment is kept;
- an answer whose proof does not hold ends the call: the same payment gets it again, from a better moment or keys.

Once the answer has been delivered the payment is finished, and the same request is a new purchase.
"""

import asyncio
import contextlib
from dataclasses import replace
from functools import partial
from typing import Final

import httpx
from x402 import x402ClientSync
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload, PaymentRequired

from attestation import purchase as purchases
from attestation import report
from attestation.answer_stream import AGAIN, AnswerStream
from attestation.bundle import PAYMENT_HEADER, Bundle
from attestation.bundling import accepted_offer, collect, dump_terms, load_terms
from attestation.buying import Buyer, NotAcceptedError, PaymentRefusedError, Purchase, StreamBrokenError
from attestation.checker import KEYSET_HEADER, Attested, ServiceChecker
from attestation.errors import ServiceError, SpendingError, TollsealError
from attestation.http_signature import Exchange
from attestation.money import format_amount
from attestation.onchain import Unreadable
from attestation.presenting import REPORT_REUSE_SECONDS, Answer, Presenter, unpaid
from attestation.purchase import Payment
from attestation.receipt_source import fetch_receipt, is_complete
from attestation.spend_check import clear_doubts
from attestation.spend_ledger import Entry, PaidRequest, Signed, utc_text
from attestation.spending import Asset

__all__ = [
    "PURCHASE",
    "Buyer",
    "NotAcceptedError",
    "PayingTransport",
    "PaymentRefusedError",
    "Purchase",
    "StreamBrokenError",
]

PURCHASE: Final = "tollseal.purchase"
"""Key of `response.extensions` under which a paid answer's `Purchase` is found; of a stream, once it has ended."""

_HOP_FIELDS: Final = frozenset({"connection", "transfer-encoding", "content-encoding", "content-length"})


class PayingTransport(httpx.AsyncBaseTransport):
    """Pays where a 402 asks for it, and verifies; see the module's docstring.

    Raises:
        NotAcceptedError: a verdict under the buyer's policy is not good enough.
        PaymentRefusedError: the service answered the payment with something else than what was bought.
        StreamBrokenError: while a stream is read: it is not whole.
        SpendingError: the buyer's limits forbid it, or the spend ledger cannot be used. Nothing was signed.
        ServiceError: the service cannot be bought from (no terms within the limit, no answer in time).
        httpx.TransportError: the service cannot be reached.
    """

    def __init__(self, buyer: Buyer, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._buyer = buyer
        self._checker = ServiceChecker(policy=buyer.policy, chain=buyer.chain, transport=transport, clock=buyer.clock)
        self._attested: dict[httpx.URL, Attested] = {}
        self._presenter = Presenter(buyer, self._checker, self._remember)

    async def aclose(self) -> None:
        await self._checker.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        service = await self.establish(request.url)
        asked = PaidRequest.of(
            service=str(request.url.join("/")).rstrip("/"),
            method=request.method,
            url=str(request.url),
            body=request.content,
            payer=self._buyer.account.address,
        )
        entry = await asyncio.to_thread(self._buyer.ledger.unfinished, asked)
        if entry is not None:
            self._buyer.progress(f"a payment of {_usd(entry)} for this request is not answered yet: sending it again")
            if (response := await self._resume(request, service, entry)) is not None:
                return response
            service = await self.establish(request.url)
        service, terms = await self._terms(request, service)
        if terms.status != 402:
            return _response(terms, request)
        entry = await self._pay(asked, service, terms)
        return await self._deliver(request, service, terms, entry)

    async def establish(self, url: httpx.URL) -> Attested:
        """Attest the service at a URL, unless that was done moments ago.

        Raises:
            NotAcceptedError: its verdict is not good enough for the buyer's policy.
            ServiceError: it does not answer as such a service must.
        """
        known = self._attested.get(url.join("/"))
        if known is not None and self._buyer.clock() - known.at < REPORT_REUSE_SECONDS:
            return known
        self._buyer.progress("checking the service")
        found = await self._checker.attest(url)
        if not found.verdict.acceptable:
            raise NotAcceptedError("the service was not accepted, nothing was sent to it", found.verdict)
        self._remember(url, found)
        return found

    def _remember(self, url: httpx.URL, service: Attested) -> None:
        self._attested[url.join("/")] = service

    async def _terms(self, request: httpx.Request, service: Attested) -> tuple[Attested, Exchange]:
        """What the service answers without a payment; a 402 has been checked."""
        terms = await self._checker.send(unpaid(request), service.transport)
        if terms.status == 402 and terms.headers.get(KEYSET_HEADER) != service.keyset_digest:
            # Its keys were replaced since it was attested: the present ones prove themselves, and say their terms.
            now = await self._presenter.again(request.url, service)
            if now is not service:
                service, terms = now, await self._checker.send(unpaid(request), now.transport)
        if terms.status == 402:
            verifier = await self._checker.verifier(service.attestation, service.channel)
            verdict = verifier.verify_terms(service.attestation, service.manifest, terms, nonce=service.nonce)
            if not verdict.acceptable:
                raise NotAcceptedError("the service's terms were not accepted, nothing was paid", verdict)
        return service, terms

    async def _pay(self, asked: PaidRequest, service: Attested, terms: Exchange) -> Entry:
        """Enter and sign a payment for a checked 402."""
        buyer, now = self._buyer, self._buyer.clock()
        accepts = purchases.parse_terms(terms).accepts
        index, asset = buyer.limit.choose(accepts)
        if buyer.chain is not None and buyer.limit.adds_up:
            await clear_doubts(buyer.ledger, buyer.chain, now=now)
        buyer.progress("paying")
        return await asyncio.to_thread(
            buyer.ledger.pay,
            asked,
            check=partial(buyer.limit.check, int(accepts[index]["amount"]), asset.decimals, now=now),
            sign=partial(self._sign, service, terms, index, asset),
            now=now,
        )

    def _sign(self, service: Attested, terms: Exchange, index: int, asset: Asset) -> Signed:
        """A payment for one of a 402's `accepts`, made by the x402 SDK."""
        required = decode_payment_required_header(terms.headers["payment-required"])
        if not isinstance(required, PaymentRequired):
            raise ServiceError("the service speaks x402 version 1; version 2 is needed")
        accept = required.accepts[index]
        client = x402ClientSync()
        client.register(accept.network, ExactEvmScheme(EthAccountSigner(self._buyer.account)))
        # The limit has been applied already; this makes the SDK hold to exactly what was chosen.
        client.set_spend_controls(
            {
                "allowed_assets": [
                    {"network": accept.network, "asset": accept.asset, "max_amount_per_payment": accept.amount}
                ]
            }
        )
        payload = client.create_payment_payload(required.model_copy(update={"accepts": [accept]}))
        if not isinstance(payload, PaymentPayload):
            raise ServiceError("the x402 SDK made no version 2 payment")
        # What the 402 says beside its terms changes from one to the next, and the payment must outlast that.
        header = encode_payment_signature_header(payload.model_copy(update={"extensions": None}))
        payment = purchases.parse_payment(
            Exchange(terms.method, terms.url, 200, {}, b"", request_headers={PAYMENT_HEADER: header})
        )
        made = (payment.network, payment.asset, payment.pay_to, payment.amount, payment.payer)
        wanted = (asset.network, asset.address, accept.pay_to.lower(), int(accept.amount))
        if made != (*wanted, self._buyer.account.address.lower()):
            raise ServiceError("the x402 SDK made another payment than the one that was chosen; it was not sent")
        agent = str(report.agent_of(service.attestation))
        return Signed(header, payment, asset.decimals, agent, dump_terms(terms))

    async def _resume(self, request: httpx.Request, service: Attested, entry: Entry) -> httpx.Response | None:
        """The answer to a payment that was signed before; None when it ended unused, so that another may be signed."""
        terms = load_terms(entry.terms or "", method=request.method, url=str(request.url), request_body=request.content)
        try:
            return await self._deliver(request, service, terms, entry)
        except PaymentRefusedError as error:
            if error.status != 402 or self._buyer.clock() < entry.valid_before:
                raise
            await self._end(request.url, service, entry, error)
            return None

    async def _end(self, url: httpx.URL, service: Attested, entry: Entry, refused: PaymentRefusedError) -> None:
        """Give up a payment that is no longer valid and that the service does not know; raises when that is unsure."""
        if refused.refusal.headers.get(KEYSET_HEADER) != service.keyset_digest:
            service = await self._presenter.again(url, service)
        verifier = await self._checker.verifier(service.attestation, service.channel)
        verdict = verifier.verify_terms(service.attestation, service.manifest, refused.refusal, nonce=service.nonce)
        if not verdict.acceptable:
            raise NotAcceptedError("a payment was refused, but not by the service: nothing new was signed", verdict)
        now, ledger = self._buyer.clock(), self._buyer.ledger
        if self._buyer.chain is None:
            await asyncio.to_thread(ledger.give_up, entry.id, "it ended, and the service refused it", now=now)
            return
        found = await self._buyer.chain.authorization(
            network=entry.network, asset=entry.asset, payer=entry.payer, nonce=entry.nonce
        )
        if not isinstance(found, Unreadable) and found.ended_unused(entry.valid_before):
            await asyncio.to_thread(ledger.unused, entry.id, now=now)
            return
        if isinstance(found, Unreadable):
            problem = f"whether it was taken cannot be asked: {found.reason}"
        elif found.used:
            problem = "the chain says that it was taken"
        else:
            problem = "the chain is not yet far enough to say that it was not taken; try again in a minute"
        raise PaymentRefusedError(
            f"the service refuses the earlier payment of {_usd(entry)}, and {problem}",
            refused.refusal,
            hint=f"Nothing new was signed. `tollseal spend close {entry.id}` gives the payment up.",
        ) from refused

    async def _deliver(
        self, request: httpx.Request, service: Attested, terms: Exchange, entry: Entry
    ) -> httpx.Response:
        """Send the payment of an entry until it is answered, and pass the answer on when it has been proven."""
        now = self._buyer.clock()
        until = now + self._buyer.patience_seconds
        if now < entry.valid_before:
            until = min(until, entry.valid_before)
        try:
            answer = await self._presenter.present(request, entry.header or "", service, until=until)
        except PaymentRefusedError as error:
            await self._note(entry, str(error))
            if now < entry.valid_before:
                error.hint = (
                    f"The payment can be taken until {utc_text(entry.valid_before)}: until then the same request sends "
                    "it again, and nothing else is signed for it."
                )
            raise
        except ServiceError as error:
            await self._note(entry, str(error))
            raise
        if answer.stream is not None:
            return self._streamed(request, answer, answer.stream, terms, entry)
        purchase = await self._finish(request, answer, terms, entry)
        response = _response(answer.exchange, request)
        response.extensions[PURCHASE] = purchase
        return response

    def _streamed(
        self, request: httpx.Request, answer: Answer, sent: httpx.Response, terms: Exchange, entry: Entry
    ) -> httpx.Response:
        async def verify(body: bytes) -> None:
            whole = replace(answer, exchange=replace(answer.exchange, body=body))
            try:
                fetched = await fetch_receipt(self._checker, answer.service, whole.exchange, self._buyer.sleep)
            except ServiceError as error:
                await self._note(entry, str(error))
                raise StreamBrokenError(f"the stream has ended, and {error}", hint=AGAIN) from error
            if not is_complete(fetched):
                await self._note(entry, "the stream broke off")
                raise StreamBrokenError("the service says that the stream broke off", hint=AGAIN)
            response.extensions[PURCHASE] = await self._finish(request, whole, terms, entry, fetched)

        headers = {name: value for name, value in answer.exchange.headers.items() if name not in _HOP_FIELDS}
        response = httpx.Response(200, headers=headers, stream=AnswerStream(sent, verify), request=request)
        return response

    async def _finish(
        self,
        request: httpx.Request,
        answer: Answer,
        terms: Exchange,
        entry: Entry,
        fetched: Exchange | None = None,
    ) -> Purchase:
        """Verify an answer, and finish its payment."""
        service = answer.service
        if terms.headers.get(KEYSET_HEADER) != service.keyset_digest:
            # The keys that gave the terms are gone. The present ones say theirs, which the payment should fit as well.
            now = await self._checker.send(unpaid(request), service.transport)
            with contextlib.suppress(TollsealError):
                accepted_offer(now, answer.exchange)
                terms = now
        try:
            bundle = collect(
                attestation=service.attestation,
                manifest=service.manifest,
                terms=terms,
                answer=answer.exchange,
                fetched=fetched,
            )
        except TollsealError as error:
            await self._note(entry, str(error))
            raise ServiceError(f"the paid answer came without its proof: {error}") from error
        purchase = await self._verified(service, bundle, entry)
        bundle_at = self._buyer.keep(purchase)
        try:
            await asyncio.to_thread(
                self._buyer.ledger.answered,
                entry.id,
                transaction=purchases.parse_settlement(bundle.answer).transaction,
                receipt_id=str(bundle.receipt.get("receipt_id")),
                verdict=purchase.verdict.result.value,
                bundle=bundle_at,
                now=self._buyer.clock(),
            )
        except SpendingError as error:
            # The answer is worth more than its record: without it the same request gets the same answer again.
            self._buyer.progress(f"the answer is here, but {error}")
        return purchase

    async def _verified(self, service: Attested, bundle: Bundle, entry: Entry) -> Purchase:
        self._buyer.progress("checking the answer")
        payment: Payment | None = None
        transaction: str | None = None
        with contextlib.suppress(TollsealError):
            payment = purchases.parse_payment(bundle.answer)
            transaction = purchases.parse_settlement(bundle.answer).transaction
        verifier = await self._checker.verifier(service.attestation, service.channel, payment, transaction)
        verdict = verifier.verify_bundle(bundle, nonce=service.nonce)
        if not verdict.acceptable:
            message = "the answer was paid for, and its proof does not hold"
            await self._note(entry, message, verdict=verdict.result.value)
            raise NotAcceptedError(message, verdict, bundle)
        return Purchase(bundle, verdict, entry.id)

    async def _note(self, entry: Entry, problem: str, *, verdict: str | None = None) -> None:
        # It is for people to read later; the error that is about to be raised says the same now.
        with contextlib.suppress(SpendingError):
            await asyncio.to_thread(self._buyer.ledger.note, entry.id, problem, verdict=verdict)


def _response(exchange: Exchange, request: httpx.Request) -> httpx.Response:
    headers = {name: value for name, value in exchange.headers.items() if name not in _HOP_FIELDS}
    return httpx.Response(exchange.status, headers=headers, content=exchange.body, request=request)


def _usd(entry: Entry) -> str:
    return f"{format_amount(entry.amount, entry.decimals)} USD"
