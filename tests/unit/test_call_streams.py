"""A streamed answer: paid before its first byte leaves, receipted when its last one has, owed when it breaks."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from attestation.digest import digest
from attestation.enclave.keyring import KeyRing
from attestation.http_signature import STREAM_TYPE
from attestation.receipt import EVENT_ORDER, Receipt, check_signature, parse_receipt
from service.answer import Produced, Request
from service.broadcast import StreamBrokenError
from service.call import ComeBackError, PaidCalls, PaidStream, PaymentConflictError, PaymentRefusedError
from service.credentials import Credentials
from service.payment.authorization import Authorization
from service.payment.facilitator import Invalid, Rejected, Unknown, Used
from service.payment.ledger import Ledger, State
from service.payment.reconcile import reconcile
from tests.http.bench import identity_of
from tests.http.fakes import BrokenRing, Clock, ScriptedFacilitator, transaction_of
from tests.http.world import NOW
from tests.payments import authorize

REQUEST = Request("/v1/summarize", "POST", b'{"stream":true}', "https://summaries.example/v1/summarize")
OTHER = Request("/v1/summarize", "POST", b'{"stream": true}', "https://summaries.example/v1/summarize")


class ModelError(Exception):
    """The model gave no answer."""


@dataclass
class Model:
    """Streams three pieces, the first saying which call this is."""

    fails_before: int | None = None
    """The piece before which it fails."""
    hold_before: int | None = None
    """The piece that waits for `hold`."""
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    working: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    closed: int = 0

    async def __call__(self) -> AsyncGenerator[bytes | Produced, None]:
        self.calls += 1
        self.working.set()
        pieces = [f"data: number {self.calls}\n\n".encode(), b"data: more\n\n", b"data: [DONE]\n\n"]
        try:
            for index, piece in enumerate(pieces):
                if index == self.fails_before:
                    raise ModelError
                if index == self.hold_before:
                    await self.hold.wait()
                yield piece
            yield Produced("sum-1", "tiny", b"".join(pieces), (digest(b"p"),), {"finish_reason": "stop"}, STREAM_TYPE)
        finally:
            self.closed += 1


@dataclass
class Shop:
    ledger: Ledger
    keys: KeyRing = field(default_factory=KeyRing.generate)
    facilitator: ScriptedFacilitator = field(default_factory=ScriptedFacilitator)
    model: Model = field(default_factory=Model)
    clock: Clock = field(default_factory=Clock)
    authorization: Authorization = field(default_factory=lambda: authorize(valid_before=NOW + 600))
    settle_first: bool = False

    def __post_init__(self) -> None:
        self.credentials = Credentials(self.keys, identity_of(self.keys), "tee.key.main")
        self.calls = PaidCalls(
            ledger=self.ledger,
            facilitator=self.facilitator,
            clock=self.clock,
            window_seconds=60,
            settle="before" if self.settle_first else "after",
        )

    def restarted(self) -> "Shop":
        return Shop(self.ledger, KeyRing.generate(), self.facilitator, Model(), self.clock, self.authorization)

    async def buy(self, request: Request = REQUEST) -> PaidStream:
        known = await self.ledger.find(self.authorization.key)
        return await self.calls.stream(request, self.authorization, self.model, self.credentials, known)

    async def state(self) -> State | None:
        row = await self.ledger.find(self.authorization.key)
        return None if row is None else row.state

    async def receipt(self, stream: PaidStream) -> Receipt:
        await self.calls.drain()
        stored = await self.ledger.receipt(stream.receipt_id)
        assert stored is not None
        receipt = parse_receipt(json.loads(stored))
        check_signature(receipt, stream.credentials.identity.keyset)
        return receipt


async def read(stream: PaidStream) -> bytes:
    return b"".join([piece async for piece in stream.read()])


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", owner="main")
    yield opened
    await opened.close()


@pytest.fixture
async def shop(ledger: Ledger) -> AsyncIterator[Shop]:
    opened = Shop(ledger)
    yield opened
    opened.model.hold.set()
    await opened.calls.drain()


async def test_a_stream_is_paid_before_it_leaves_and_receipted_when_it_has_ended(shop: Shop) -> None:
    shop.model.hold_before = 2
    stream = await shop.buy()
    assert await shop.state() is State.SETTLED, "the head is out, so it is paid"
    assert await shop.ledger.receipt(stream.receipt_id) is None, "what is not whole has no receipt"
    reader = stream.read()
    assert await anext(reader) == b"data: number 1\n\n", "before the rest is made"
    shop.model.hold.set()
    body = await read(stream)
    receipt = await shop.receipt(stream)
    assert tuple(event["type"] for event in receipt.events) == EVENT_ORDER
    returned = {"type": "response.returned", "body_hash": digest(body), "complete": True}
    assert receipt.event("response.returned") == returned
    assert receipt.event("payment.settled")["transaction"] == transaction_of(shop.authorization.key)
    assert receipt.event("request.received")["body_hash"] == digest(REQUEST.body)
    assert shop.model.closed == 1


async def test_nothing_is_charged_before_the_model_has_begun_to_answer(shop: Shop) -> None:
    shop.model.hold_before = 0
    buying = asyncio.create_task(shop.buy())
    await shop.model.working.wait()
    assert (await shop.state(), shop.facilitator.count("settle")) == (State.RESERVED, 0)
    shop.model.hold.set()
    await buying


async def test_a_model_that_does_not_begin_costs_nothing(shop: Shop) -> None:
    shop.model.fails_before = 0
    with pytest.raises(ModelError):
        await shop.buy()
    assert (await shop.state(), shop.facilitator.count("settle")) == (State.RELEASED, 0)


@pytest.mark.parametrize("role", ["receipt", "payment", "http"])
async def test_a_key_that_does_not_answer_takes_no_payment(ledger: Ledger, role: str) -> None:
    ring = BrokenRing.generate()
    shop = Shop(ledger, ring)
    ring.broken = frozenset({role})
    with pytest.raises(RuntimeError, match="does not answer"):
        await shop.buy()
    assert (await shop.state(), shop.facilitator.count("settle")) == (State.RELEASED, 0)
    assert shop.model.closed == 1, "the model is not kept busy"


async def test_a_stream_that_breaks_says_so_in_its_receipt_and_is_owed(shop: Shop) -> None:
    shop.model.fails_before = 1
    stream = await shop.buy()
    with pytest.raises(StreamBrokenError):
        await read(stream)
    receipt = await shop.receipt(stream)
    sent = b"data: number 1\n\n"
    assert receipt.event("response.returned") == {
        "type": "response.returned",
        "body_hash": digest(sent),
        "complete": False,
    }
    shop.model.fails_before = None
    again = await shop.buy()
    body = await read(again)
    assert body.endswith(b"[DONE]\n\n")
    assert again.receipt_id != stream.receipt_id
    assert (await shop.receipt(again)).event("response.returned")["body_hash"] == digest(body)
    assert shop.facilitator.count("settle") == 1, "paid once"


async def test_an_owed_stream_that_does_not_begin_stays_owed(shop: Shop) -> None:
    shop.model.fails_before = 1
    stream = await shop.buy()
    with pytest.raises(StreamBrokenError):
        await read(stream)
    await shop.calls.drain()
    shop.model.fails_before = 0
    with pytest.raises(ComeBackError, match="owed"):
        await shop.buy()
    shop.model.fails_before = None
    assert await read(await shop.buy())
    assert shop.facilitator.count("settle") == 1


async def test_the_same_payment_later_gets_the_identical_stream(shop: Shop) -> None:
    first = await shop.buy()
    body = await read(first)
    await shop.calls.drain()
    again = await shop.buy()
    assert (await read(again), again.receipt_id) == (body, first.receipt_id)
    assert (shop.model.calls, shop.facilitator.count("settle")) == (1, 1)


async def test_who_presents_the_payment_meanwhile_reads_the_same_stream_from_its_beginning(shop: Shop) -> None:
    shop.model.hold_before = 2
    first = await shop.buy()
    assert await anext(first.read())
    second = await shop.buy()
    shop.model.hold.set()
    assert await read(first) == await read(second)
    assert (shop.model.calls, first.receipt_id) == (1, second.receipt_id)


async def test_a_buyer_who_hangs_up_gets_the_whole_stream_later(shop: Shop) -> None:
    shop.model.hold_before = 1
    reader = (await shop.buy()).read()
    await anext(reader)
    assert isinstance(reader, AsyncGenerator)
    await reader.aclose()
    shop.model.hold.set()
    await shop.calls.drain()
    assert (await read(await shop.buy())).endswith(b"[DONE]\n\n")
    assert (shop.model.calls, shop.facilitator.count("settle")) == (1, 1)


async def test_a_rejected_settlement_stops_the_model_and_sends_nothing(shop: Shop) -> None:
    shop.facilitator.settlements.append(Rejected("insufficient_funds", "the money is gone"))
    with pytest.raises(PaymentRefusedError, match="the money is gone"):
        await shop.buy()
    assert await shop.state() is State.REJECTED
    assert shop.model.closed == 1


async def test_an_unknown_settlement_sends_nothing_and_is_begun_again_when_it_did_not_happen(shop: Shop) -> None:
    shop.facilitator.settlements.append(Unknown("the node went away"))
    with pytest.raises(ComeBackError):
        await shop.buy()
    assert (await shop.state(), shop.model.closed) == (State.UNKNOWN, 1)
    assert await read(await shop.buy())
    assert (shop.model.calls, len(shop.facilitator.spent)) == (2, 1)


async def test_an_unknown_settlement_that_happened_is_not_paid_again(shop: Shop) -> None:
    shop.facilitator.settlements.append(Unknown("the node went away"))
    shop.facilitator.executes = lambda _: True
    with pytest.raises(ComeBackError):
        await shop.buy()
    assert await read(await shop.buy())
    assert shop.facilitator.count("settle") == 1


@pytest.mark.parametrize("executed", [False, True])
async def test_after_a_restart_in_the_middle_of_settlement_one_charge_buys_one_stream(
    shop: Shop, executed: bool
) -> None:
    row = await shop.ledger.reserve(shop.authorization, REQUEST.digest, NOW, lease_seconds=60)
    await shop.ledger.start_settlement(row.row, now=NOW)
    if executed:
        shop.facilitator.executed(shop.authorization)
    after = shop.restarted()
    await reconcile(after.ledger, after.facilitator, after.clock, owner="main")
    stream = await after.buy()
    assert (await read(stream)).endswith(b"[DONE]\n\n")
    assert len(after.facilitator.spent) == 1
    assert await after.state() is State.SETTLED


async def test_after_a_restart_a_stream_is_made_again_and_kept(shop: Shop) -> None:
    first = await shop.buy()
    await read(first)
    await shop.calls.drain()
    after = shop.restarted()
    again = await after.buy()
    await read(again)
    assert again.receipt_id != first.receipt_id
    receipt = await after.receipt(again)
    assert receipt.event("payment.settled")["transaction"] == transaction_of(shop.authorization.key)
    assert (after.model.calls, after.facilitator.count("settle")) == (1, 1)


async def test_a_payment_for_one_stream_buys_no_other(shop: Shop) -> None:
    shop.model.hold_before = 1
    stream = await shop.buy()
    with pytest.raises(PaymentConflictError):
        await shop.buy(OTHER)
    shop.model.hold.set()
    await read(stream)
    await shop.calls.drain()
    with pytest.raises(PaymentConflictError):
        await shop.buy(OTHER)


async def test_a_stream_that_lies_about_its_whole_is_broken(shop: Shop) -> None:
    async def liar() -> AsyncGenerator[bytes | Produced, None]:
        yield b"data: one\n\n"
        yield Produced("sum-1", "tiny", b"data: two\n\n", (), {}, STREAM_TYPE)

    stream = await shop.calls.stream(REQUEST, shop.authorization, liar, shop.credentials)
    with pytest.raises(StreamBrokenError):
        await read(stream)
    assert (await shop.receipt(stream)).event("response.returned")["complete"] is False


async def test_where_payment_comes_first_the_model_is_not_asked_before(ledger: Ledger) -> None:
    shop = Shop(ledger, settle_first=True)
    shop.facilitator.settlements.append(Rejected("insufficient_funds", "the money is gone"))
    with pytest.raises(PaymentRefusedError):
        await shop.buy()
    assert shop.model.calls == 0
    shop = Shop(ledger, settle_first=True)
    assert (await read(await shop.buy())).endswith(b"[DONE]\n\n")
    assert shop.facilitator.calls == ["verify", "settle"]


async def test_where_payment_comes_first_an_answer_that_fails_is_owed(ledger: Ledger) -> None:
    shop = Shop(ledger, settle_first=True, model=Model(fails_before=0))
    with pytest.raises(ComeBackError, match="owed"):
        await shop.buy()
    assert await shop.state() is State.SETTLED
    shop.model.fails_before = None
    assert await read(await shop.buy())
    assert shop.facilitator.count("settle") == 1


async def test_a_late_look_at_the_ledger_does_not_refuse_what_was_just_paid(shop: Shop) -> None:
    """Somebody looked before the payment was reserved, and comes when its nonce is spent."""
    stream = await shop.buy()
    await read(stream)
    await shop.calls.drain()
    shop.facilitator.verifications.append(Invalid("nonce_used", "the nonce is spent"))
    again = await shop.calls.stream(REQUEST, shop.authorization, shop.model, shop.credentials, None)
    assert again.receipt_id == stream.receipt_id
    assert isinstance(await shop.facilitator.outcome(shop.authorization), Used)
