"""One request is signed for once, whatever is lost on the way, and a refusal is told for what it is."""

import asyncio
import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from x402.mechanisms.evm.exact import client as sdk

from attestation.client import (
    PURCHASE,
    Buyer,
    NotAcceptedError,
    PayingTransport,
    PaymentRefusedError,
    Purchase,
)
from attestation.errors import MalformedError, ServiceError, SpendingError
from attestation.policy import Policy
from attestation.spend_ledger import Entry, SpendLedger, State
from attestation.spending import Asset, SpendingLimit
from attestation.verdict import Result
from tests.purchases import AMOUNT, BODY, PAY_TO, TOKEN, TRANSACTION, URL
from tests.sellers import Clock, FakeChain, Fault, Seller, broken, gateway, problem

LIMIT = SpendingLimit("0.05", (Asset("eip155:84532", TOKEN),))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    # The SDK, which decides how long a payment is valid, takes the time from nowhere else.
    monkeypatch.setattr(sdk, "time", SimpleNamespace(time=clock))
    return clock


@pytest.fixture
def seller(clock: Clock) -> Seller:
    return Seller(clock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spend.db"


class Market:
    """Buys from a seller, each time like a new process: with a transport and a ledger of its own on the same file."""

    def __init__(self, seller: Seller, path: Path, **buyer: Any) -> None:
        self.seller, self.path = seller, path
        self.told: list[str] = []
        self.buyer: dict[str, Any] = {
            "account": seller.shop.buyer,
            "limit": LIMIT,
            "policy": Policy(allow_simulated=True),
            "clock": seller.clock,
            "sleep": seller.clock.sleep,
            "progress": self.told.append,
            **buyer,
        }

    async def buy(self, body: bytes = BODY, **buyer: Any) -> Purchase:
        response = await self.send(body, **buyer)
        purchase = response.extensions[PURCHASE]
        assert isinstance(purchase, Purchase)
        assert purchase.verdict.result is Result.SIMULATED
        assert response.json()["summary"] == "Short."
        return purchase

    async def send(self, body: bytes = BODY, **buyer: Any) -> httpx.Response:
        chosen = Buyer(**{**self.buyer, "ledger": SpendLedger.open(self.path), **buyer})
        async with httpx.AsyncClient(transport=PayingTransport(chosen, self.seller)) as http:
            return await http.post(URL, content=body, headers={"content-type": "application/json"})

    @property
    def entries(self) -> tuple[Entry, ...]:
        return SpendLedger.open(self.path).entries()

    @property
    def states(self) -> list[State]:
        return [entry.state for entry in self.entries]


@pytest.fixture
def market(seller: Seller, path: Path) -> Market:
    return Market(seller, path)


def signatures(seller: Seller) -> int:
    return len(set(seller.presented))


async def test_a_purchase_is_on_record(market: Market, seller: Seller) -> None:
    kept: list[Purchase] = []

    def keep(purchase: Purchase) -> str:
        assert market.states == [State.SIGNED], "not finished before it is kept"
        kept.append(purchase)
        return "/proofs/1.json"

    purchase = await market.buy(keep=keep)
    assert kept == [purchase]
    [entry] = market.entries
    assert entry.id == purchase.entry_id
    assert (entry.state, entry.verdict, entry.bundle) == (State.ANSWERED, "SIMULATED", "/proofs/1.json")
    assert (entry.amount, entry.pay_to, entry.transaction_hash) == (AMOUNT, PAY_TO, TRANSACTION)
    assert entry.receipt_id == purchase.bundle.receipt["receipt_id"]
    assert entry.agent == seller.shop.subject
    assert (len(seller.presented), len(seller.charged)) == (1, 1)


async def test_the_same_request_after_its_answer_is_a_new_purchase(market: Market, seller: Seller) -> None:
    await market.buy()
    await market.buy()
    assert market.states == [State.ANSWERED] * 2
    assert (signatures(seller), len(seller.charged)) == (2, 2)


def come_back(status: int = 503, *, after: int | None = None) -> Fault:
    headers = {} if after is None else {"retry-after": str(after)}
    return lambda _: problem(status, "Come back", **headers)


LOSSES: dict[str, Fault] = {
    "a connection that breaks": broken(httpx.RemoteProtocolError),
    "a connection that is not made": broken(httpx.ConnectError),
    "no answer in time": broken(httpx.ReadTimeout),
    "a gateway's 502": lambda _: gateway(502),
    "a gateway's 504": lambda _: gateway(504),
    "a 500 that says nothing": lambda _: httpx.Response(500),
    "a 503": come_back(),
    "a 503 with a time": come_back(after=3),
    "a 429": come_back(429),
}


@pytest.mark.parametrize("moment", ["before the payment is taken", "after the payment was taken"])
@pytest.mark.parametrize("loss", LOSSES)
async def test_what_is_lost_is_asked_for_again_with_the_same_payment(
    market: Market, seller: Seller, clock: Clock, loss: str, moment: str
) -> None:
    (seller.faults if moment.startswith("before") else seller.lost).extend([LOSSES[loss]] * 3)
    await market.buy()
    assert (len(seller.presented), signatures(seller), len(seller.charged)) == (4, 1, 1)
    assert clock.slept == ([3, 3, 3] if loss == "a 503 with a time" else [1, 2, 4])
    assert sum("sending the same payment again" in words for words in market.told) == 3


async def test_asking_again_ends_with_the_buyers_patience(market: Market, seller: Seller, clock: Clock) -> None:
    seller.faults = [come_back()] * 1000
    started = clock.now
    with pytest.raises(ServiceError, match="without an answer: Come back") as raised:
        await market.buy(patience_seconds=300)
    assert "nothing is paid twice" in (raised.value.hint or "")
    assert 240 < clock.now - started <= 300
    assert max(clock.slept) == 30
    assert signatures(seller) == 1
    [entry] = market.entries
    assert (entry.state, entry.note) == (State.SIGNED, str(raised.value))
    seller.faults = []
    await market.buy()
    assert (signatures(seller), len(seller.charged), market.states) == (1, 1, [State.ANSWERED])


async def test_asking_again_ends_with_the_payment(market: Market, seller: Seller, clock: Clock) -> None:
    seller.faults = [come_back(after=86_400)] * 1000
    with pytest.raises(ServiceError, match="without an answer"):
        await market.buy(patience_seconds=100_000)
    [entry] = market.entries
    assert entry.valid_before - 31 <= clock.now <= entry.valid_before


# Crashes, and other processes


class Killed(BaseException):
    """Ends a purchase as a kill would."""


def kill(*_: object) -> Any:
    raise Killed


async def test_a_crash_before_the_answer_costs_nothing(market: Market, seller: Seller) -> None:
    for moment in (seller.faults, seller.lost):
        moment.append(kill)
        with pytest.raises(Killed):
            await market.buy()
    assert market.states == [State.SIGNED]
    await market.buy()
    assert (signatures(seller), len(seller.charged), market.states) == (1, 1, [State.ANSWERED])
    assert any("sending it again" in words for words in market.told)


async def test_a_crash_before_the_answer_is_kept_costs_nothing(market: Market, seller: Seller) -> None:
    with pytest.raises(Killed):
        await market.buy(keep=kill)
    assert market.states == [State.SIGNED]
    await market.buy()
    assert (signatures(seller), len(seller.charged), market.states) == (1, 1, [State.ANSWERED])


async def test_two_processes_at_once_buy_one_answer(market: Market, seller: Seller) -> None:
    seller.faults = [come_back()]
    others: list[Purchase] = []

    async def meanwhile(_: float) -> None:
        others.append(await market.buy())

    purchase = await market.buy(sleep=meanwhile)
    assert (signatures(seller), len(seller.charged)) == (1, 1)
    assert [other.bundle.receipt for other in others] == [purchase.bundle.receipt]
    assert market.states == [State.ANSWERED]


async def test_two_processes_at_once_cannot_overspend(market: Market, seller: Seller) -> None:
    limit = replace(LIMIT, total="0.02")
    bodies = [json.dumps({"document": f"text {number}"}).encode() for number in range(5)]

    async def one(body: bytes) -> bool:
        try:
            await market.send(body, limit=limit)
        except SpendingError:
            return False
        return True

    assert sum(await asyncio.gather(*map(one, bodies))) == 2
    assert len(seller.charged) == 2


async def test_limits_in_all_are_named_before_anything_is_signed(market: Market, seller: Seller) -> None:
    with pytest.raises(SpendingError, match=r"limit of 0\.009 USD in all"):
        await market.buy(limit=replace(LIMIT, total="0.009"))
    with pytest.raises(SpendingError, match=r"limit of 0\.009 USD in 24 hours"):
        await market.buy(limit=replace(LIMIT, per_day="0.009"))
    assert (seller.presented, market.entries) == ([], ())


async def test_a_ledger_that_cannot_be_written_signs_nothing(market: Market, seller: Seller, path: Path) -> None:
    ledger = SpendLedger.open(path)
    ledger.close()
    with pytest.raises(SpendingError, match="cannot be used"):
        await market.buy(ledger=ledger)
    assert seller.presented == []


async def test_an_answer_whose_record_cannot_be_written_is_delivered(market: Market, path: Path) -> None:
    ledger = SpendLedger.open(path)

    def keep(_: Purchase) -> None:
        ledger.close()

    await market.buy(ledger=ledger, keep=keep)
    assert any("the answer is here, but" in words for words in market.told)
    assert market.states == [State.SIGNED]


# Definite answers


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (lambda _: problem(409, "Payment belongs to another request"), "belongs to another request"),
        (lambda _: problem(400, "Malformed payment"), "refused the payment: Malformed payment"),
        (lambda _: problem(500, "Internal error"), "refused the payment: Internal error"),
        (lambda _: gateway(418), "status 418"),
    ],
)
async def test_a_definite_answer_is_not_asked_for_again(
    market: Market, seller: Seller, clock: Clock, refusal: Fault, words: str
) -> None:
    seller.faults = [refusal]
    with pytest.raises(PaymentRefusedError, match=words) as raised:
        await market.buy()
    assert (len(seller.presented), clock.slept) == (1, [])
    assert "nothing else is signed for it" in (raised.value.hint or "")
    [entry] = market.entries
    assert (entry.state, entry.note) == (State.SIGNED, str(raised.value))
    await market.buy()
    assert (signatures(seller), len(seller.charged)) == (1, 1)


async def test_a_payment_that_is_not_taken_is_not_replaced_while_it_can_be(
    market: Market, seller: Seller, clock: Clock
) -> None:
    seller.faults = [partial(seller.refusal, error="insufficient balance")] * 2
    for _ in range(2):
        with pytest.raises(PaymentRefusedError, match="says that nothing was charged: insufficient balance") as raised:
            await market.buy()
        assert "UTC" in (raised.value.hint or "")
        clock.now += 60
    assert (len(seller.presented), signatures(seller)) == (2, 1)
    await market.buy()
    assert (signatures(seller), len(seller.charged)) == (1, 1)


async def unanswered(market: Market, seller: Seller) -> Entry:
    """A payment that was signed, refused, and has ended."""
    seller.faults = [seller.refusal]
    with pytest.raises(PaymentRefusedError):
        await market.buy()
    [entry] = market.entries
    seller.clock.now = entry.valid_before + 61
    return entry


async def test_an_ended_payment_is_replaced_when_the_chain_says_that_it_was_not_used(
    market: Market, seller: Seller
) -> None:
    await unanswered(market, seller)
    await market.buy(chain=FakeChain(seller), limit=replace(LIMIT, total="0.01"))
    assert (signatures(seller), len(seller.charged)) == (2, 1)
    assert market.states == [State.UNUSED, State.ANSWERED]


async def test_an_ended_payment_that_was_taken_is_never_replaced(market: Market, seller: Seller) -> None:
    entry = await unanswered(market, seller)
    with pytest.raises(PaymentRefusedError, match="the chain says that it was taken") as raised:
        await market.buy(chain=FakeChain(seller, taken={entry.nonce}))
    assert f"tollseal spend close {entry.id}" in (raised.value.hint or "")
    assert (signatures(seller), market.states) == (1, [State.SIGNED])


@pytest.mark.parametrize(
    ("chain", "words"), [({"behind": 120}, "not yet far enough"), ({"silent": True}, "cannot be asked")]
)
async def test_an_ended_payment_is_not_replaced_while_the_chain_does_not_say(
    market: Market, seller: Seller, chain: dict[str, Any], words: str
) -> None:
    await unanswered(market, seller)
    with pytest.raises(PaymentRefusedError, match=words):
        await market.buy(chain=FakeChain(seller, **chain))
    assert (signatures(seller), market.states) == (1, [State.SIGNED])


async def test_without_a_node_an_ended_payment_is_replaced_and_still_counts(market: Market, seller: Seller) -> None:
    await unanswered(market, seller)
    await market.buy()
    assert market.states == [State.GIVEN_UP, State.ANSWERED]
    with pytest.raises(SpendingError, match=r"0\.02 USD are spent or may still be taken"):
        await market.buy(limit=replace(LIMIT, total="0.02"))


async def test_only_the_attested_keys_can_say_that_an_ended_payment_is_worth_nothing(
    market: Market, seller: Seller
) -> None:
    """Somebody in between who suppresses answers must not make the buyer pay twice."""
    entry = await unanswered(market, seller)
    seller.charged[entry.nonce] = BODY.decode()
    impostor = Seller(seller.clock)
    impostor.shop.now = seller.clock.now
    seller.faults = [impostor.refusal]
    with pytest.raises(NotAcceptedError, match="refused, but not by the service"):
        await market.buy()
    assert (signatures(seller), market.states) == (1, [State.SIGNED])
    await market.buy()
    assert (signatures(seller), len(seller.charged), market.states) == (1, 1, [State.ANSWERED])


async def test_an_ended_payment_whose_answer_is_owed_gets_it(market: Market, seller: Seller, clock: Clock) -> None:
    seller.lost = [kill]
    with pytest.raises(Killed):
        await market.buy()
    clock.now += 5_000
    await market.buy()
    assert (signatures(seller), len(seller.charged)) == (1, 1)


# Other prices, terms and keys


@pytest.mark.parametrize("amount", ["20000", "5000"])
async def test_a_new_price_does_not_replace_a_payment_that_was_taken(
    market: Market, seller: Seller, amount: str
) -> None:
    seller.lost = [kill]
    with pytest.raises(Killed):
        await market.buy()
    seller.reprice(amount)
    with pytest.raises(NotAcceptedError) as raised:
        await market.buy()
    # The present build does not sell at the old price, so the old terms do not verify; the answer is there anyhow.
    assert raised.value.bundle is not None
    assert (signatures(seller), len(seller.charged), market.states) == (1, 1, [State.SIGNED])


async def test_a_new_price_is_paid_once_the_old_payment_has_ended(market: Market, seller: Seller, clock: Clock) -> None:
    seller.faults = [kill]
    with pytest.raises(Killed):
        await market.buy()
    seller.reprice("20000")
    with pytest.raises(PaymentRefusedError, match="does not take the payment"):
        await market.buy()
    clock.now += 1_000
    await market.buy(chain=FakeChain(seller))
    assert [(entry.state, entry.amount) for entry in market.entries] == [
        (State.UNUSED, AMOUNT),
        (State.ANSWERED, 20_000),
    ]


@pytest.mark.parametrize("moment", ["faults", "lost"])
async def test_a_restarted_service_answers_the_payment_under_its_new_keys(
    market: Market, seller: Seller, moment: str
) -> None:
    def restart(request: httpx.Request) -> httpx.Response:
        seller.restart()
        raise httpx.RemoteProtocolError("lost", request=request)

    getattr(seller, moment).append(restart)
    purchase = await market.buy()
    assert purchase.bundle.answer.headers["x-aci-keyset-digest"] == seller.shop.keyset.digest
    assert (signatures(seller), len(seller.charged)) == (1, 1)


async def test_a_service_that_is_no_longer_acceptable_gets_no_second_look(market: Market, seller: Seller) -> None:
    """Its new keys are not accepted, so its answer is judged, and refused, under the old ones."""

    def rob(request: httpx.Request) -> httpx.Response:
        seller.restart()
        seller.shop.subject = None
        raise httpx.RemoteProtocolError("lost", request=request)

    seller.faults = [rob]
    with pytest.raises(NotAcceptedError, match="proof does not hold"):
        await market.buy()
    assert market.states == [State.SIGNED]


async def test_time_that_is_up_while_a_request_is_under_way_ends_the_call(
    market: Market, seller: Seller, clock: Clock
) -> None:
    def slow(_: httpx.Request) -> httpx.Response:
        clock.now += 890
        return problem(503, "Come back")

    seller.faults = [slow, slow]
    with pytest.raises(ServiceError, match="sent 2 times without an answer"):
        await market.buy()


async def test_a_machine_that_slept_too_long_sends_nothing_late(market: Market, seller: Seller, clock: Clock) -> None:
    async def oversleep(_: float) -> None:
        clock.now += 10_000

    seller.faults = [come_back()] * 5
    with pytest.raises(ServiceError, match="sent 1 times without an answer"):
        await market.buy(sleep=oversleep)
    assert len(seller.presented) == 1


async def test_a_payment_outlasts_crash_and_restart(market: Market, seller: Seller) -> None:
    seller.lost = [kill]
    with pytest.raises(Killed):
        await market.buy()
    seller.restart()
    await market.buy()
    assert (signatures(seller), len(seller.charged)) == (1, 1)


async def test_an_answer_that_came_late_rests_on_a_fresh_report(market: Market, seller: Seller) -> None:
    seller.faults = [come_back(after=30)] * 25  # 750 s; a report may be 600 s old
    await market.buy()


# What is not signed at all


async def test_a_payment_of_another_kind_is_never_sent(market: Market, seller: Seller, monkeypatch: Any) -> None:
    document = seller.document()
    document["accepts"][0]["extra"]["assetTransferMethod"] = "permit2"
    monkeypatch.setattr(seller, "document", lambda: document)
    with pytest.raises(MalformedError, match=r"payment\.payload"):
        await market.buy()
    assert (seller.presented, market.entries) == ([], ())


async def test_a_payee_who_is_not_on_the_list_gets_nothing(market: Market, seller: Seller) -> None:
    with pytest.raises(ServiceError, match="not one of those you pay"):
        await market.buy(limit=replace(LIMIT, payees=("0x" + "aa" * 20,)))
    await market.buy(limit=replace(LIMIT, payees=(PAY_TO,)))
    assert len(seller.presented) == 1


async def test_a_payment_says_nothing_that_a_later_402_would_contradict(market: Market, seller: Seller) -> None:
    await market.buy()
    assert set(json.loads(b64decode(seller.presented[0]))) <= {"x402Version", "payload", "accepted", "resource"}


async def test_an_answer_without_its_proof_is_said_to_be_without(
    market: Market, seller: Seller, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., httpx.Response] = seller._deliver

    def bare(*arguments: Any) -> httpx.Response:
        response = honest(*arguments)
        del response.headers["x-receipt"]
        return response

    monkeypatch.setattr(seller, "_deliver", bare)
    with pytest.raises(ServiceError, match="came without its proof: x-receipt"):
        await market.buy()
    assert market.states == [State.SIGNED]


async def test_what_is_free_is_passed_on(market: Market, seller: Seller, monkeypatch: Any) -> None:
    monkeypatch.setattr(seller, "refusal", lambda _: problem(422, "Invalid document"))
    response = await market.send()
    assert (response.status_code, response.json()["title"]) == (422, "Invalid document")
    assert PURCHASE not in response.extensions
    assert market.entries == ()
