"""A seller without a chain or a model, as a transport: honest to the last signature, and as unreliable as it is told.

It keeps the promises of the service: one charge per payment, the same answer to the same payment, and answers that are
owed after a restart. What it may do wrong happens to the messages, or is asked for.
"""

import asyncio
import json
import threading
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from attestation.digest import digest, jcs
from attestation.enclave.keyring import KeyRing
from attestation.encoding import b64, b64url
from attestation.http_signature import STREAM_TYPE, Exchange
from attestation.manifest import PATH as MANIFEST_PATH
from attestation.onchain import AgentReference, AuthorizationOnChain, ChainView, Unreadable
from attestation.payment_proof import EXTENSION
from attestation.purchase import Payment
from attestation.receipt import PATH as RECEIPT_PATH
from attestation.report import PATH as REPORT_PATH
from tests.purchases import TRANSACTION, URL, Shop, manifest_document, payment_terms, stream_body

PAYMENT = "payment-signature"

Fault = Callable[[httpx.Request], httpx.Response]
"""What happens to one paid request instead of its answer; raises, or answers."""


@dataclass
class Clock:
    """Unix seconds that pass when somebody sleeps."""

    now: int = field(default_factory=lambda: int(time.time()))
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += -int(-seconds // 1)
        await asyncio.sleep(0)


class Pieces(httpx.AsyncByteStream):
    """A body that arrives in pieces, and breaks off when it is told to."""

    def __init__(self, pieces: list[bytes], *, breaks: bool = False) -> None:
        self._pieces, self._breaks = pieces, breaks
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._breaks:
            raise httpx.RemoteProtocolError("peer closed connection")

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Seller(httpx.AsyncBaseTransport):
    """Sells summaries at `URL`."""

    clock: Clock
    shop: Shop = field(default_factory=lambda: Shop(now=int(time.time())))
    faults: list[Fault | None] = field(default_factory=list)
    """For each paid request in turn; None lets it pass. A fault happens before the payment is looked at."""
    lost: list[Fault | None] = field(default_factory=list)
    """The same, after the payment has been taken."""
    presented: list[str] = field(default_factory=list)
    """Payment headers, in order."""
    charged: dict[str, str] = field(default_factory=dict)
    """Nonce -> request body."""
    unpaid: int = 0
    receipts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    streaming: bool = False
    breaks_after: int | None = None
    """Pieces of the next stream that arrive."""
    receipt_faults: list[Fault] = field(default_factory=list)
    """What happens to requests for receipts, in turn."""
    streams_end_well: bool = False
    """Streams that break off look as if they had ended."""
    missing_receipts: int = 0
    """Requests for receipts that are answered with a 404 first."""
    tamper: Callable[[bytes], bytes] = bytes
    """Changes streams on the way."""
    streams: list[Pieces] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def restart(self, *, amount: str | None = None) -> None:
        """New keys; and another price, when one is given."""
        self.shop.keys = KeyRing.generate()
        if amount is not None:
            self.reprice(amount)

    def reprice(self, amount: str) -> None:
        accept = {**payment_terms(), "amount": amount}
        self.shop.manifest = manifest_document(payment={"accepts": [accept], "facilitator": "local"})

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return await asyncio.to_thread(self._answer, request)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            self.shop.now = self.clock()
            return self._route(request)

    def _route(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == REPORT_PATH:
            self.shop.nonce = request.url.params["nonce"]
            return _response(self.shop.attestation())
        if path == MANIFEST_PATH:
            return _response(self.shop.manifest_exchange())
        if path.startswith(RECEIPT_PATH):
            if self.receipt_faults:
                return self.receipt_faults.pop(0)(request)
            return self._receipt(path.removeprefix(RECEIPT_PATH))
        if PAYMENT not in request.headers:
            self.unpaid += 1
            return self.refusal(request)
        return self._sell(request)

    def refusal(self, request: httpx.Request, **changes: Any) -> httpx.Response:
        """A 402 with today's terms."""
        text = json.dumps({**self.document(), **changes}).encode()
        headers = {"payment-required": b64(text)}
        return _response(self.shop.signed(Exchange("POST", URL, 402, headers, text)))

    def document(self) -> dict[str, Any]:
        """Today's terms."""
        [accept] = self.shop.manifest["payment"]["accepts"]
        accept = {**accept, "maxTimeoutSeconds": 900, "extra": {"name": "USDC", "version": "2"}}
        offers = [self.shop.offer(amount=accept["amount"])]
        return self.shop.terms_document(
            accepts=[accept], extensions={EXTENSION: {"info": {"offers": offers}}, "bazaar": {"info": {}}}
        )

    def _sell(self, request: httpx.Request) -> httpx.Response:
        header = request.headers[PAYMENT]
        self.presented.append(header)
        if self.faults and (fault := self.faults.pop(0)) is not None:
            return fault(request)
        payment = json.loads(b64decode(header))
        authorization = payment["payload"]["authorization"]
        nonce = authorization["nonce"].lower()
        known = nonce in self.charged
        [today] = self.shop.manifest["payment"]["accepts"]
        if not known:
            if int(authorization["validBefore"]) <= self.clock() or payment["accepted"]["amount"] != today["amount"]:
                return self.refusal(request, error="The payment does not match the terms.")
            self.charged[nonce] = request.content.decode()
        elif self.charged[nonce] != request.content.decode():
            return problem(409, "Payment belongs to another request")
        if self.lost and (fault := self.lost.pop(0)) is not None:
            return fault(request)
        return self._deliver(request, header, payment, nonce)

    def _deliver(self, request: httpx.Request, header: str, payment: Any, nonce: str) -> httpx.Response:
        amount = payment["accepted"]["amount"]
        body = json.dumps({"id": "sum-1", "object": "summary", "summary": "Short."}).encode()
        body = stream_body("one ", "two ", "three") if self.streaming else body
        complete = not self.streaming or self.breaks_after is None
        self.shop.events = {
            "request.received": {"body_hash": digest(request.content)},
            "payment.settled": {"nonce": nonce, "amount": amount},
            "response.returned": {"complete": complete},
        }
        receipt = self.shop.receipt(body, payment=header, receipt_id=f"rcpt-{nonce[-8:]}")
        proof = self.shop.payment_receipt()
        self.receipts[receipt["receipt_id"]] = receipt
        settled = {
            "success": True,
            "transaction": TRANSACTION,
            "network": "eip155:84532",
            "payer": self.shop.buyer.address,
            "extensions": {EXTENSION: {"info": {"receipt": proof}}},
        }
        headers = {"payment-response": b64(json.dumps(settled).encode()), "x-receipt-id": receipt["receipt_id"]}
        headers |= {"content-type": STREAM_TYPE} if self.streaming else {"x-receipt": b64url(jcs(dict(receipt)))}
        signed = self.shop.signed(Exchange("POST", URL, 200, headers, b"" if self.streaming else body))
        if not self.streaming:
            return _response(replace(signed, body=body))
        pieces = [piece + b"\n\n" for piece in self.tamper(body).split(b"\n\n")[:-1]]
        breaks, self.breaks_after = self.breaks_after, None
        self.streams.append(Pieces(pieces[:breaks], breaks=breaks is not None and not self.streams_end_well))
        return httpx.Response(200, headers=dict(signed.headers), stream=self.streams[-1])

    def _receipt(self, identifier: str) -> httpx.Response:
        if self.missing_receipts:
            self.missing_receipts -= 1
            return problem(404, "Not found")
        return _response(self.shop.receipt_exchange(self.receipts[identifier]))


def _response(exchange: Exchange) -> httpx.Response:
    return httpx.Response(exchange.status, headers=dict(exchange.headers), content=exchange.body)


def problem(status: int, title: str, **headers: str) -> httpx.Response:
    body = {"type": "urn:tollseal:problem:x", "title": title, "status": status, "detail": f"{title}, says the service."}
    kind = {"content-type": "application/problem+json"}
    return httpx.Response(status, headers={**kind, **headers}, content=json.dumps(body).encode())


def gateway(status: int) -> httpx.Response:
    """What a proxy answers in a service's place."""
    return httpx.Response(status, headers={"content-type": "text/html"}, content=b"<html>Bad gateway")


def broken(error: type[httpx.TransportError]) -> Fault:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error("lost", request=request)

    return fail


@dataclass
class FakeChain:
    """What a node would say of the seller's payments."""

    seller: Seller
    taken: set[str] = field(default_factory=set)
    """Nonces that were used without the seller admitting it."""
    behind: int = 0
    """Seconds by which the chain's time is behind."""
    silent: bool = False

    async def view(
        self, agent: AgentReference, key_slot: str, payment: Payment | None = None, transaction: str | None = None
    ) -> ChainView:
        return (
            self.seller.shop.chain_view()
            if payment is not None
            else ChainView(agent=self.seller.shop.chain_view().agent)
        )

    async def authorization(
        self, *, network: str, asset: str, payer: str, nonce: str
    ) -> AuthorizationOnChain | Unreadable:
        if self.silent:
            return Unreadable("no connection")
        used = nonce in self.seller.charged or nonce in self.taken
        return AuthorizationOnChain(used=used, at=self.seller.clock() - self.behind)
