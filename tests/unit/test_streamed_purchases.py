"""A streamed answer is passed on as it arrives, and is a purchase only when all of it was proven."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation import answer_stream
from attestation.bundle import parse_bundle
from attestation.client import PURCHASE, Buyer, NotAcceptedError, PayingTransport, Purchase, StreamBrokenError
from attestation.event_stream import parse_stream
from attestation.http_signature import STREAM_TYPE, Exchange
from attestation.policy import Policy
from attestation.spend_ledger import SpendLedger, State
from attestation.spending import Asset, SpendingLimit
from attestation.verdict import Result, Status
from attestation.verifier import Verifier
from tests.purchases import BODY, TOKEN, URL, stream_body
from tests.sellers import Clock, Seller, broken, gateway

SIMULATED = Policy(allow_simulated=True)
WHOLE = stream_body("one ", "two ", "three")


@pytest.fixture
def seller() -> Seller:
    return Seller(Clock(), streaming=True)


@pytest.fixture
def ledger(tmp_path: Path) -> SpendLedger:
    return SpendLedger.open(tmp_path / "spend.db")


def buyer_of(seller: Seller, ledger: SpendLedger, **changes: Any) -> Buyer:
    fields: dict[str, Any] = {
        "account": seller.shop.buyer,
        "limit": SpendingLimit("0.05", (Asset("eip155:84532", TOKEN),)),
        "policy": SIMULATED,
        "clock": seller.clock,
        "sleep": seller.clock.sleep,
        "ledger": ledger,
    }
    return Buyer(**{**fields, **changes})


@asynccontextmanager
async def streaming(buyer: Buyer, seller: Seller) -> AsyncIterator[httpx.Response]:
    async with httpx.AsyncClient(transport=PayingTransport(buyer, seller)) as http:
        headers = {"content-type": "application/json"}
        async with http.stream("POST", URL, content=BODY, headers=headers) as response:
            yield response


async def read(buyer: Buyer, seller: Seller) -> tuple[bytes, Purchase]:
    async with streaming(buyer, seller) as response:
        body = b"".join([chunk async for chunk in response.aiter_bytes()])
        purchase = response.extensions[PURCHASE]
        assert isinstance(purchase, Purchase)
        return body, purchase


def states(ledger: SpendLedger) -> list[State]:
    return [entry.state for entry in ledger.entries()]


async def test_the_stream_arrives_piece_by_piece_and_is_verified_at_its_end(
    seller: Seller, ledger: SpendLedger
) -> None:
    async with streaming(buyer_of(seller, ledger), seller) as response:
        assert response.headers["content-type"] == STREAM_TYPE
        pieces = response.aiter_bytes()
        first = await anext(pieces)
        assert WHOLE.startswith(first)
        assert first != WHOLE
        assert PURCHASE not in response.extensions
        assert states(ledger) == [State.SIGNED]
        rest = b"".join([piece async for piece in pieces])
        assert first + rest == WHOLE
        purchase = response.extensions[PURCHASE]
    assert purchase.verdict.result is Result.SIMULATED
    assert purchase.verdict.check("receipt.response").status is Status.PASS
    assert [event["delta"] for event in parse_stream(purchase.bundle.answer.body)] == ["one ", "two ", "three", ""]
    assert states(ledger) == [State.ANSWERED]
    assert all(stream.closed for stream in seller.streams)


async def test_the_bundle_of_a_stream_proves_it_to_others(seller: Seller, ledger: SpendLedger) -> None:
    _, purchase = await read(buyer_of(seller, ledger), seller)
    saved = purchase.bundle.dumps().encode()
    assert parse_bundle(saved).receipt_exchange is not None
    assert Verifier(SIMULATED, now=seller.clock.now).verify_bundle(saved).result is Result.SIMULATED


async def test_a_client_that_reads_it_all_at_once_gets_it_verified(seller: Seller, ledger: SpendLedger) -> None:
    async with httpx.AsyncClient(transport=PayingTransport(buyer_of(seller, ledger), seller)) as http:
        response = await http.post(URL, content=BODY, headers={"content-type": "application/json"})
    assert response.content == WHOLE
    assert isinstance(response.extensions[PURCHASE], Purchase)


TAMPERING: dict[str, Callable[[bytes], bytes]] = {
    "a word": lambda body: body.replace(b"two", b"too"),
    "white space": lambda body: body.replace(b"data: ", b"data:", 1),
    "a comment": lambda body: b": hello\n\n" + body,
    "an event left out": lambda body: body.replace(body.split(b"\n\n")[1] + b"\n\n", b""),
    "an event twice": lambda body: body.split(b"\n\n")[0] + b"\n\n" + body,
    "no end": lambda body: body.removesuffix(b"data: [DONE]\n\n"),
    "more after the end": lambda body: body + b"data: {}\n\n",
}


@pytest.mark.parametrize("what", TAMPERING)
async def test_a_stream_that_was_changed_ends_with_an_error(seller: Seller, ledger: SpendLedger, what: str) -> None:
    seller.tamper = TAMPERING[what]
    async with streaming(buyer_of(seller, ledger), seller) as response:
        with pytest.raises(NotAcceptedError, match="its proof does not hold") as raised:
            await response.aread()
        assert PURCHASE not in response.extensions
    assert raised.value.bundle is not None
    assert raised.value.verdict.check("receipt.response").status is Status.FAIL
    assert states(ledger) == [State.SIGNED]
    seller.tamper = bytes
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert (len(set(seller.presented)), len(seller.charged)) == (1, 1)


@pytest.mark.parametrize("pieces", [0, 1, 3])
async def test_a_stream_that_breaks_off_is_had_again_for_the_same_payment(
    seller: Seller, ledger: SpendLedger, pieces: int
) -> None:
    seller.breaks_after = pieces
    async with streaming(buyer_of(seller, ledger), seller) as response:
        with pytest.raises(StreamBrokenError, match="broke off after") as raised:
            await response.aread()
        assert PURCHASE not in response.extensions
    assert "same payment" in (raised.value.hint or "")
    assert states(ledger) == [State.SIGNED]
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert (len(set(seller.presented)), len(seller.charged)) == (1, 1)
    assert states(ledger) == [State.ANSWERED]


async def test_a_stream_that_the_service_calls_incomplete_is_not_whole(seller: Seller, ledger: SpendLedger) -> None:
    seller.breaks_after = len(WHOLE)  # all pieces arrive, and the receipt says that there were to be more
    seller.streams_end_well = True
    async with streaming(buyer_of(seller, ledger), seller) as response:
        with pytest.raises(StreamBrokenError, match="the service says that the stream broke off"):
            await response.aread()
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert len(seller.charged) == 1


async def test_a_receipt_that_is_a_little_late_is_waited_for(seller: Seller, ledger: SpendLedger) -> None:
    seller.missing_receipts = 3
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert seller.clock.slept == [0.2, 0.4, 0.8]


async def test_a_connection_that_breaks_under_the_receipt_is_made_again(seller: Seller, ledger: SpendLedger) -> None:
    seller.receipt_faults = [broken(httpx.ReadTimeout), broken(httpx.ConnectError)]
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE


async def test_a_stream_that_names_no_receipt_is_worth_nothing(
    seller: Seller, ledger: SpendLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = seller.shop.signed

    def bare(exchange: Exchange) -> Exchange:
        return sign(replace(exchange, headers={**exchange.headers, "x-receipt-id": "../../other"}))

    async with streaming(buyer_of(seller, ledger), seller) as response:
        await response.aread()
    monkeypatch.setattr(seller.shop, "signed", lambda one: bare(one) if "x-receipt-id" in one.headers else sign(one))
    async with streaming(buyer_of(seller, ledger), seller) as response:
        with pytest.raises(StreamBrokenError, match="the answer names no receipt"):
            await response.aread()
    assert states(ledger) == [State.ANSWERED, State.SIGNED]


async def test_a_receipt_that_is_none_fails_its_check(seller: Seller, ledger: SpendLedger) -> None:
    seller.receipt_faults = [lambda _: httpx.Response(200, content=b'{"receipt_id":"?"}')]
    async with streaming(buyer_of(seller, ledger), seller) as response:
        with pytest.raises(NotAcceptedError) as raised:
            await response.aread()
    assert raised.value.verdict.check("receipt.signature").status is Status.FAIL
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert len(seller.charged) == 1


async def test_without_its_receipt_a_stream_is_worth_nothing(seller: Seller, ledger: SpendLedger) -> None:
    seller.missing_receipts = 100
    async with streaming(buyer_of(seller, ledger), seller) as response:
        with pytest.raises(StreamBrokenError, match="its receipt cannot be had: Not found"):
            await response.aread()
    assert states(ledger) == [State.SIGNED]
    seller.missing_receipts = 0
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert len(seller.charged) == 1


async def test_who_stops_reading_has_no_purchase_and_can_have_it_later(seller: Seller, ledger: SpendLedger) -> None:
    async with streaming(buyer_of(seller, ledger), seller) as response:
        await anext(response.aiter_bytes())
    assert PURCHASE not in response.extensions
    assert (states(ledger), seller.streams[0].closed) == ([State.SIGNED], True)
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert len(seller.charged) == 1


async def test_a_head_that_is_lost_is_asked_for_again(seller: Seller, ledger: SpendLedger) -> None:
    seller.lost = [broken(httpx.ReadTimeout), lambda _: gateway(502)]
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert (len(seller.presented), len(seller.charged)) == (3, 1)


async def test_a_stream_by_somebody_else_is_not_accepted(seller: Seller, ledger: SpendLedger) -> None:
    impostor = Seller(seller.clock, streaming=True)

    def answer(request: httpx.Request) -> httpx.Response:
        impostor.shop.buyer, impostor.shop.now = seller.shop.buyer, seller.clock.now
        return impostor._route(request)

    seller.faults = [answer]
    async with streaming(buyer_of(seller, ledger), seller) as response:
        seller.receipts.update(impostor.receipts)
        with pytest.raises(NotAcceptedError) as raised:
            await response.aread()
    assert raised.value.verdict.check("answer.signature").status is Status.FAIL
    assert states(ledger) == [State.SIGNED]


async def test_a_stream_without_end_is_given_up(
    seller: Seller, ledger: SpendLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_stream, "MAX_STREAM_BYTES", 100)
    async with streaming(buyer_of(seller, ledger), seller) as response:
        with pytest.raises(StreamBrokenError, match="longer than 100 bytes"):
            await response.aread()
    assert states(ledger) == [State.SIGNED]


async def test_a_purchase_is_kept_before_it_is_finished(seller: Seller, ledger: SpendLedger) -> None:
    def keep(_: Purchase) -> str:
        assert states(ledger) == [State.SIGNED]
        raise OSError(28, "No space left on device")

    async with streaming(buyer_of(seller, ledger, keep=keep), seller) as response:
        with pytest.raises(OSError, match="No space"):
            await response.aread()
    assert states(ledger) == [State.SIGNED]
    assert (await read(buyer_of(seller, ledger), seller))[0] == WHOLE
    assert len(seller.charged) == 1
