"""The state machine of a paid call: every way through it; none charges twice, and none gives an answer away."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x402.http.utils import decode_payment_response_header

from attestation import payment_proof
from attestation.digest import digest
from attestation.enclave.keyring import KeyRing
from attestation.keyset import ALGO_PAYMENT
from attestation.purchase import authorization_hash
from attestation.receipt import EVENT_ORDER, Receipt, check_signature, parse_receipt
from service.call import (
    LEASE_SECONDS,
    ComeBackError,
    PaidAnswer,
    PaidCalls,
    PaymentConflictError,
    PaymentRefusedError,
    Produced,
    Request,
)
from service.credentials import Credentials, Identity
from service.payment.authorization import Authorization, PaymentKey
from service.payment.facilitator import (
    Invalid,
    Outcome,
    Rejected,
    Settled,
    SettleResult,
    Unavailable,
    Unknown,
    Unused,
    Used,
    Void,
)
from service.payment.ledger import Ledger, LedgerCorruptError, LedgerUnavailableError, Moved, Reserved, Row, State
from service.payment.reconcile import REORG_MARGIN_SECONDS, reconcile
from service.payment.terms import SCHEME
from tests.http.bench import identity_of
from tests.http.fakes import BrokenRing, Clock, ScriptedFacilitator, transaction_of, unavailable
from tests.http.world import FAR, NOW
from tests.payments import PAY_TO, PRICE, TOKEN, authorize

REQUEST = Request("/v1/summarize", "POST", b'{"document":"..."}', "https://summaries.example/v1/summarize")
OTHER = replace(REQUEST, body=b'{"document":"another"}')


class ModelError(Exception):
    """The model gave no answer."""


@dataclass
class Model:
    """Produces answers, each different from the one before."""

    failure: BaseException | None = None
    hold: asyncio.Event | None = None
    working: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0

    async def __call__(self) -> Produced:
        self.calls += 1
        self.working.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        return Produced(
            answer_id=f"sum-{self.calls}",
            model="tiny",
            body=b'{"summary":"number %d"}' % self.calls,
            forwarded=(digest(b"prompt"),),
            completed={"model": "tiny", "finish_reason": "stop"},
        )


@dataclass
class Shop:
    """Paid calls over a real ledger, with a chain and a model that do as told."""

    ledger: Ledger
    keys: KeyRing
    facilitator: ScriptedFacilitator = field(default_factory=ScriptedFacilitator)
    model: Model = field(default_factory=Model)
    clock: Clock = field(default_factory=Clock)
    authorization: Authorization = field(default_factory=lambda: authorize(valid_before=NOW + 600))

    def __post_init__(self) -> None:
        self.identity: Identity = identity_of(self.keys)
        self.credentials = Credentials(self.keys, self.identity, "tee.key.main")
        self.calls = PaidCalls(
            ledger=self.ledger,
            facilitator=self.facilitator,
            clock=self.clock,
            window_seconds=60,
        )

    def restarted(self) -> "Shop":
        """The same ledger and chain under new keys, as after a restart."""
        return Shop(self.ledger, KeyRing.generate(), self.facilitator, Model(), self.clock, self.authorization)

    async def buy(self, request: Request = REQUEST, authorization: Authorization | None = None) -> PaidAnswer:
        payment = authorization or self.authorization
        known = await self.ledger.find(payment.key)
        return await self.calls.run(request, payment, self.model, self.credentials, known)

    async def row(self) -> Row | None:
        return await self.ledger.find(self.authorization.key)

    async def state(self) -> State | None:
        row = await self.row()
        return None if row is None else row.state

    @property
    def counts(self) -> tuple[int, int]:
        """How often the model has answered, and how often settlement was asked for."""
        return self.model.calls, self.facilitator.count("settle")

    async def left_in(self, state: State) -> Row:
        """The payment's row as a process that stopped in `state` leaves it, with an answer that nobody can read."""
        reserved = await self.ledger.reserve(self.authorization, REQUEST.digest, NOW, lease_seconds=600)
        assert isinstance(reserved, Reserved)
        row = reserved.row
        steps: dict[State, Callable[[Row], Awaitable[object]]] = {
            State.SERVED: lambda row: self.ledger.serve(row, result=b"sealed by nobody", now=NOW, receipt_id="rcpt-0"),
            State.SETTLING: lambda row: self.ledger.start_settlement(row, now=NOW),
            State.UNKNOWN: lambda row: self.ledger.unknown(row, reason="the node went away", now=NOW),
        }
        for reached, step in steps.items():
            if row.state is state:
                break
            moved = await step(row)
            assert isinstance(moved, Moved)
            assert moved.row.state is reached
            row = moved.row
        assert row.state is state
        return row


def receipt_of(answer: PaidAnswer) -> Receipt:
    return parse_receipt(json.loads(answer.receipt))


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", owner="main")
    yield opened
    await opened.close()


@pytest.fixture
async def shop(ledger: Ledger) -> AsyncIterator[Shop]:
    opened = Shop(ledger, KeyRing.generate())
    yield opened
    await opened.calls.drain()


# The straight way


async def test_an_answer_is_checked_reserved_made_settled_and_proven(shop: Shop) -> None:
    answer = await shop.buy()
    assert shop.facilitator.calls == ["verify", "settle"]
    assert await shop.state() is State.SETTLED
    transaction = transaction_of(shop.authorization.key)

    assert answer.body == b'{"summary":"number 1"}'
    receipt = receipt_of(answer)
    check_signature(receipt, shop.identity.keyset)
    assert tuple(event["type"] for event in receipt.events) == EVENT_ORDER
    assert receipt.event("request.received")["body_hash"] == digest(REQUEST.body)
    assert receipt.event("response.returned") == {
        "type": "response.returned",
        "body_hash": digest(answer.body),
        "complete": True,
    }
    assert receipt.event("payment.settled") == {
        "type": "payment.settled",
        "scheme": SCHEME,
        "network": TOKEN.network,
        "asset": TOKEN.address,
        "pay_to": PAY_TO,
        "payer": shop.authorization.payer,
        "amount": str(PRICE),
        "nonce": shop.authorization.nonce,
        "authorization_hash": authorization_hash(shop.authorization),
        "transaction": transaction,
    }
    assert (receipt.endpoint, receipt.method) == (REQUEST.endpoint, REQUEST.method)
    stored = await shop.ledger.receipt(receipt.receipt_id)
    assert stored == answer.receipt.decode()


async def test_the_x402_receipt_is_for_this_payment(shop: Shop) -> None:
    settled = decode_payment_response_header((await shop.buy()).payment_response)
    assert settled.extensions is not None
    document = settled.extensions["offer-receipt"]["info"]["receipt"]
    payment_proof.check_signer(document, "Receipt", shop.identity.keyset.key(ALGO_PAYMENT).public_key)
    proof = payment_proof.parse_payment_receipt(document)
    assert (proof.transaction, proof.resource_url) == (settled.transaction, REQUEST.resource_url)
    assert proof.payer.lower() == shop.authorization.payer


async def test_the_answer_is_made_only_after_the_payment_is_reserved(shop: Shop) -> None:
    seen: list[State | None] = []

    async def produce() -> Produced:
        seen.append(await shop.state())
        return await shop.model()

    await shop.calls.run(REQUEST, shop.authorization, produce, shop.credentials)
    assert seen == [State.RESERVED]


async def test_settlement_is_asked_for_only_when_the_answer_is_stored(shop: Shop) -> None:
    shop.facilitator.hold = asyncio.Event()
    task = asyncio.create_task(shop.buy())
    await shop.facilitator.settling.wait()
    row = await shop.row()
    assert row is not None
    assert row.state is State.SETTLING
    assert row.result is not None
    assert b"number 1" not in row.result, "sealed"
    assert not task.done(), "nothing leaves before the money has moved"
    shop.facilitator.hold.set()
    await task


# Ways that end early


async def test_a_payment_that_does_not_verify_leaves_nothing(shop: Shop) -> None:
    shop.facilitator.verifications.append(Invalid("insufficient_funds", "the balance is too small"))
    with pytest.raises(PaymentRefusedError, match="insufficient_funds: the balance is too small"):
        await shop.buy()
    assert await shop.state() is None
    assert shop.counts == (0, 0)


async def test_a_payment_that_cannot_be_verified_now_is_not_refused(shop: Shop) -> None:
    shop.facilitator.verifications.append(unavailable())
    with pytest.raises(ComeBackError, match="nothing was charged"):
        await shop.buy()
    assert await shop.state() is None
    assert (await shop.buy()).body
    assert shop.counts == (1, 1)


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ({"valid_before": NOW}, "has expired"),
        ({"valid_before": NOW + 59}, "at least 60 seconds"),
        ({"valid_after": NOW, "valid_before": FAR}, "not valid yet"),
    ],
)
async def test_a_payment_outside_its_time_is_refused_without_asking_anybody(
    shop: Shop, window: dict[str, Any], says: str
) -> None:
    with pytest.raises(PaymentRefusedError, match=says):
        await shop.buy(authorization=authorize(**window))
    assert shop.facilitator.calls == []


@pytest.mark.parametrize(
    "failure", [ModelError("no answer"), asyncio.CancelledError(), KeyError("bug")], ids=["error", "cancelled", "bug"]
)
async def test_a_failed_inference_releases_the_payment(shop: Shop, failure: BaseException) -> None:
    shop.model.failure = failure
    with pytest.raises(type(failure)):
        await shop.buy()
    row = await shop.row()
    assert row is not None
    assert (row.state, row.reason) == (State.RELEASED, type(failure).__name__)
    assert shop.counts == (1, 0)


@pytest.mark.parametrize("request_", [REQUEST, OTHER], ids=["the same request", "another request"])
async def test_a_released_payment_is_good_again_for_any_request(shop: Shop, request_: Request) -> None:
    shop.model.failure = ModelError()
    with pytest.raises(ModelError):
        await shop.buy()
    shop.model.failure = None
    receipt = receipt_of(await shop.buy(request_))
    assert receipt.event("request.received")["body_hash"] == digest(request_.body)
    assert shop.facilitator.count("verify") == 2, "it is checked anew: the money may be gone"
    assert shop.counts == (2, 1)


async def test_a_released_payment_that_ran_out_meanwhile_is_refused(shop: Shop) -> None:
    shop.model.failure = ModelError()
    with pytest.raises(ModelError):
        await shop.buy()
    shop.clock.now += 700
    with pytest.raises(PaymentRefusedError, match="has expired"):
        await shop.buy()


@pytest.mark.parametrize("role", ["receipt", "payment", "http"])
async def test_a_key_that_does_not_answer_takes_no_payment(ledger: Ledger, role: str) -> None:
    ring = BrokenRing.generate()
    shop = Shop(ledger, ring)
    ring.broken = frozenset({role})
    with pytest.raises(RuntimeError, match="does not answer"):
        await shop.buy()
    assert await shop.state() is State.RELEASED
    assert shop.counts == (1, 0)


# Settlement


async def test_a_rejected_settlement_is_final_and_drops_the_answer(shop: Shop) -> None:
    shop.facilitator.settlements.append(Rejected("insufficient_funds", "the money is gone"))
    for _ in range(3):
        with pytest.raises(PaymentRefusedError, match="insufficient_funds: the money is gone"):
            await shop.buy()
    row = await shop.row()
    assert row is not None
    assert (row.state, row.result) == (State.REJECTED, None)
    assert shop.counts == (1, 1)


async def test_a_facilitator_that_says_no_and_executes_all_the_same_is_found_out(shop: Shop) -> None:
    """His no is only his word: the signature in his hands is good until it runs out."""
    shop.facilitator.settlements.append(Rejected("insufficient_funds", "the money is gone"))
    with pytest.raises(PaymentRefusedError):
        await shop.buy()
    shop.facilitator.executed(shop.authorization)
    answer = await shop.buy()
    assert receipt_of(answer).event("payment.settled")["transaction"] == transaction_of(shop.authorization.key)
    assert await shop.buy() == answer
    assert shop.facilitator.count("settle") == 1


async def test_an_answer_that_another_replica_made_is_made_here_once_more_and_both_stay_as_they_are(
    ledger: Ledger, tmp_path: Path
) -> None:
    elsewhere = await Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", owner="elsewhere")
    try:
        one = Shop(ledger, KeyRing.generate())
        two = Shop(elsewhere, KeyRing.generate(), one.facilitator, Model(), one.clock, one.authorization)
        two.model.calls = 10
        first, second = await one.buy(), await two.buy()
        assert first.body != second.body
        assert (await one.buy(), await two.buy()) == (first, second)
        assert one.facilitator.count("settle") == 1
    finally:
        await elsewhere.close()


async def test_an_unknown_settlement_is_neither_an_answer_nor_a_refusal(shop: Shop) -> None:
    shop.facilitator.settlements.append(Unknown("the node went away", "0x" + "ab" * 32))
    with pytest.raises(ComeBackError, match="send the same one again"):
        await shop.buy()
    row = await shop.row()
    assert row is not None
    assert (row.state, row.transaction) == (State.UNKNOWN, "0x" + "ab" * 32)


async def unknown(shop: Shop, *, executed: bool = False) -> None:
    """The settlement of the shop's payment is not known; whether the transfer happened is for the test to say."""
    shop.facilitator.settlements.append(Unknown("the node went away"))
    shop.facilitator.executes = lambda _: executed
    with pytest.raises(ComeBackError):
        await shop.buy()


async def test_an_unknown_settlement_that_happened_gives_the_answer_without_another(shop: Shop) -> None:
    await unknown(shop, executed=True)
    assert (await shop.buy()).body == b'{"summary":"number 1"}'
    row = await shop.row()
    assert row is not None
    assert (row.state, row.transaction) == (State.SETTLED, transaction_of(shop.authorization.key))
    assert shop.counts == (1, 1)


async def test_an_unknown_settlement_that_did_not_happen_is_made_now(shop: Shop) -> None:
    await unknown(shop)
    assert (await shop.buy()).body == b'{"summary":"number 1"}', "the stored answer; the model is not asked again"
    assert shop.counts == (1, 2)
    assert len(shop.facilitator.spent) == 1


async def test_an_unknown_settlement_whose_nonce_went_elsewhere_is_refused(shop: Shop) -> None:
    await unknown(shop)
    shop.facilitator.outcomes.append(Void("the payer has cancelled the authorization"))
    for _ in range(2):
        with pytest.raises(PaymentRefusedError, match="cancelled"):
            await shop.buy()
    assert shop.counts == (1, 1)


async def test_an_unknown_settlement_stays_unknown_while_the_chain_is_away(shop: Shop) -> None:
    await unknown(shop, executed=True)
    shop.facilitator.outcomes.extend([Unavailable("away")] * 3)
    for _ in range(3):
        with pytest.raises(ComeBackError):
            await shop.buy()
    assert (await shop.buy()).body
    assert shop.counts == (1, 1)


async def test_an_unspent_payment_that_ran_out_a_moment_ago_is_waited_for(shop: Shop) -> None:
    """A block may still be replaced by one in which the transfer happens."""
    await unknown(shop)
    shop.facilitator.chain_time = shop.authorization.valid_before + REORG_MARGIN_SECONDS - 1
    with pytest.raises(ComeBackError):
        await shop.buy()
    assert await shop.state() is State.UNKNOWN


async def test_an_unspent_payment_that_ran_out_for_good_is_refused(shop: Shop) -> None:
    """No transaction can execute it any more: the buyer was not charged, and must not be told to come back for ever."""
    await unknown(shop)
    shop.facilitator.chain_time = shop.authorization.valid_before + REORG_MARGIN_SECONDS
    with pytest.raises(PaymentRefusedError, match="ran out"):
        await shop.buy()
    assert await shop.state() is State.REJECTED
    assert shop.counts == (1, 1)


# What a stopped process leaves


async def test_a_payment_left_served_is_settled_and_answered(shop: Shop) -> None:
    await shop.left_in(State.SERVED)
    assert (await shop.buy()).body == b'{"summary":"number 1"}', "the stored answer cannot be read, so it is made again"
    assert shop.counts == (1, 1)


@pytest.mark.parametrize("state", [State.SETTLING, State.UNKNOWN])
async def test_a_payment_left_in_settlement_is_asked_about_and_not_sent_again(shop: Shop, state: State) -> None:
    await shop.left_in(state)
    shop.facilitator.executed(shop.authorization)
    assert (await shop.buy()).body
    assert await shop.state() is State.SETTLED
    assert shop.counts == (1, 0)


@pytest.mark.parametrize("state", [State.SETTLING, State.UNKNOWN])
async def test_a_payment_left_in_settlement_and_spent_elsewhere_is_refused(shop: Shop, state: State) -> None:
    await shop.left_in(state)
    shop.facilitator.outcomes.append(Void("spent on another transfer"))
    with pytest.raises(PaymentRefusedError, match="another transfer"):
        await shop.buy()
    assert shop.counts == (0, 0)


async def test_a_settlement_that_another_process_may_be_making_is_left_to_it(shop: Shop) -> None:
    await shop.left_in(State.SETTLING)
    with pytest.raises(ComeBackError):
        await shop.buy()
    assert await shop.state() is State.SETTLING
    assert shop.counts == (0, 0)


@pytest.mark.parametrize("state", [State.RESERVED, State.SERVED, State.SETTLING, State.UNKNOWN])
@pytest.mark.parametrize("executed", [False, True], ids=["unspent", "executed"])
async def test_after_a_restart_every_payment_ends_in_an_answer_and_one_charge(
    shop: Shop, state: State, executed: bool
) -> None:
    await shop.left_in(state)
    if executed and state in (State.SETTLING, State.UNKNOWN):
        shop.facilitator.executed(shop.authorization)
    after = shop.restarted()
    await reconcile(after.ledger, after.facilitator, after.clock, owner="main")
    answer = await after.buy()
    check_signature(receipt_of(answer), after.identity.keyset)
    assert await after.state() is State.SETTLED
    assert len(after.facilitator.spent) == 1
    assert after.model.calls == 1


async def test_an_owed_answer_is_made_again_once_and_kept(shop: Shop) -> None:
    before = await shop.buy()
    after = shop.restarted()
    answer = await after.buy()
    receipt = receipt_of(answer)
    check_signature(receipt, after.identity.keyset)
    assert receipt.receipt_id != receipt_of(before).receipt_id
    assert receipt.event("payment.settled") == receipt_of(before).event("payment.settled")
    assert await after.buy() == answer
    assert after.counts == (1, 1)
    assert after.facilitator.calls == ["verify", "settle"], "all of it before the restart"


async def test_an_owed_answer_that_fails_stays_owed(shop: Shop) -> None:
    await shop.buy()
    after = shop.restarted()
    after.model.failure = ModelError()
    with pytest.raises((ModelError, ComeBackError)):
        await after.buy()
    assert await after.state() is State.SETTLED
    after.model.failure = None
    assert (await after.buy()).body
    assert after.facilitator.count("settle") == 1


async def test_a_stored_answer_does_not_open_for_another_payment(shop: Shop) -> None:
    """Somebody who can write the ledger gives one payment's answer to another: it is made anew instead."""
    await shop.buy()
    first = await shop.row()
    second = authorize(valid_before=NOW + 600)
    await shop.buy(OTHER, second)
    row = await shop.ledger.find(second.key)
    assert first is not None
    assert first.result is not None
    assert row is not None
    await shop.ledger.replace_result(row, result=first.result, now=NOW, receipt_id="rcpt-1")
    receipt = receipt_of(await shop.buy(OTHER, second))
    assert receipt.event("request.received")["body_hash"] == digest(OTHER.body)
    assert shop.counts == (3, 2)


# Callers


async def test_the_same_payment_later_gets_the_identical_answer(shop: Shop) -> None:
    first = await shop.buy()
    shop.clock.now += 100_000
    assert await shop.buy() == first
    assert shop.counts == (1, 1)


async def test_callers_with_the_same_payment_share_one_call(shop: Shop) -> None:
    answers = await asyncio.gather(*(shop.buy() for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert shop.counts == (1, 1)
    assert shop.facilitator.count("verify") == 1


async def test_callers_with_the_same_payment_share_one_failure(shop: Shop) -> None:
    shop.model.failure = ModelError()
    results = await asyncio.gather(*(shop.buy() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, ModelError) for result in results)
    assert shop.counts == (1, 0)


@pytest.mark.parametrize(
    "other",
    [
        OTHER,
        replace(REQUEST, endpoint="/v1/translate"),
        replace(REQUEST, method="PUT"),
        replace(REQUEST, body=REQUEST.body + b" "),
    ],
    ids=["document", "endpoint", "method", "white space"],
)
async def test_a_payment_is_for_exactly_one_request(shop: Shop, other: Request) -> None:
    await shop.buy()
    with pytest.raises(PaymentConflictError):
        await shop.buy(other)
    assert shop.counts == (1, 1)


async def test_a_payment_is_for_exactly_one_request_while_it_is_worked_on(shop: Shop) -> None:
    shop.model.hold = asyncio.Event()
    task = asyncio.create_task(shop.buy())
    await shop.model.working.wait()
    with pytest.raises(PaymentConflictError):
        await shop.buy(OTHER)
    shop.model.hold.set()
    assert (await task).body


@pytest.mark.parametrize("when", ["meanwhile", "later"])
async def test_another_signature_over_the_same_nonce_has_no_claim(shop: Shop, when: str) -> None:
    forged = replace(shop.authorization, signature="0x" + "22" * 64 + "1c")
    if when == "later":
        await shop.buy()
        with pytest.raises(PaymentConflictError):
            await shop.buy(authorization=forged)
        return
    shop.model.hold = asyncio.Event()
    task = asyncio.create_task(shop.buy())
    await shop.model.working.wait()
    thief = asyncio.create_task(shop.buy(authorization=forged))
    await asyncio.wait([thief], timeout=0.2)
    shop.model.hold.set()
    assert (await task).body
    with pytest.raises(PaymentConflictError):
        await thief


async def test_a_buyer_who_hangs_up_neither_stops_nor_repeats_the_call(shop: Shop) -> None:
    shop.model.hold = asyncio.Event()
    task = asyncio.create_task(shop.buy())
    await shop.model.working.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    again = asyncio.create_task(shop.buy())
    shop.model.hold.set()
    assert (await again).body == b'{"summary":"number 1"}'
    assert shop.counts == (1, 1)


async def test_a_buyer_who_hangs_up_during_settlement_is_served_later(shop: Shop) -> None:
    shop.facilitator.hold = asyncio.Event()
    task = asyncio.create_task(shop.buy())
    await shop.facilitator.settling.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    shop.facilitator.hold.set()
    await shop.calls.drain()
    assert await shop.state() is State.SETTLED, "nobody waited, and it was finished"
    assert (await shop.buy()).body == b'{"summary":"number 1"}'
    assert shop.counts == (1, 1)


async def test_a_failure_that_nobody_waits_for_is_not_left_lying_about(shop: Shop) -> None:
    """An exception that is never retrieved would be reported, with what it holds, when it is collected."""
    shop.model.hold, shop.model.failure = asyncio.Event(), ModelError()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    task = asyncio.create_task(shop.buy())
    await shop.model.working.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    shop.model.hold.set()
    await shop.calls.drain()
    assert complaints == []


async def test_drain_waits_for_running_calls(shop: Shop) -> None:
    shop.model.hold = asyncio.Event()
    task = asyncio.create_task(shop.buy())
    await shop.model.working.wait()
    draining = asyncio.create_task(shop.calls.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    shop.model.hold.set()
    await draining
    assert await shop.state() is State.SETTLED
    assert (await task).body


# The ledger fails


@pytest.mark.parametrize("step", ["find", "reserve", "start_settlement", "settled"])
async def test_a_ledger_that_fails_at_any_step_costs_no_second_charge(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise LedgerUnavailableError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, step, refuse)
        with pytest.raises(LedgerUnavailableError):
            await shop.buy()
    charged = len(shop.facilitator.spent)
    answer = await shop.buy()
    assert receipt_of(answer).event("payment.settled")["transaction"]
    assert len(shop.facilitator.spent) == 1
    assert shop.facilitator.count("settle") == 1
    assert charged == (1 if step == "settled" else 0)


@pytest.mark.parametrize("step", ["stored", "keep"])
async def test_a_ledger_that_fails_while_an_owed_answer_is_made_leaves_it_owed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise LedgerUnavailableError("the disk is full")

    await shop.buy()
    after = shop.restarted()
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, step, refuse)
        with pytest.raises(LedgerUnavailableError):
            await after.buy()
    assert receipt_of(await after.buy()).event("payment.settled")["transaction"]
    assert after.facilitator.count("settle") == 1


async def test_a_damaged_row_keeps_no_other_call_from_renewing_its_lease(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.model.hold = asyncio.Event()
    damaged, good = authorize(valid_before=NOW + 600), authorize(valid_before=NOW + 600)
    buying = [asyncio.create_task(shop.buy(authorization=payment)) for payment in (damaged, good)]
    while shop.model.calls < 2:
        shop.model.working.clear()
        await shop.model.working.wait()
    find = Ledger.find

    async def found(ledger: Ledger, key: PaymentKey) -> Row | None:
        if key == damaged.key:
            raise LedgerCorruptError("row 1 cannot be read")
        return await find(ledger, key)

    shop.clock.now += 100
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "find", found)
        await shop.calls.keep_alive()
    row = await shop.ledger.find(good.key)
    assert row is not None
    assert row.lease_until == shop.clock.now + LEASE_SECONDS
    shop.model.hold.set()
    await asyncio.gather(*buying)


async def test_two_processes_with_one_ledger_charge_once(ledger: Ledger) -> None:
    one = Shop(ledger, KeyRing.generate())
    two = one.restarted()
    one.model.hold, two.model.hold = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(one.buy())
    await one.model.working.wait()
    second = asyncio.create_task(two.buy())
    await asyncio.wait([second], timeout=0.2)
    one.model.hold.set()
    two.model.hold.set()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(results[0], PaidAnswer)
    assert isinstance(results[1], PaidAnswer | ComeBackError)
    assert len(one.facilitator.spent) == 1
    assert one.facilitator.count("settle") == 1
    for shop in (one, two):
        shop.model.hold = None
        assert (await shop.buy()).body, "both can deliver it"
    assert one.facilitator.count("settle") == 1


# Whatever happens


@dataclass(frozen=True)
class Step:
    """What the world does during one presentation of the payment."""

    settle: str
    """executed | silently executed | dropped | refused"""
    ask: str
    """truth | away"""
    model_fails: bool
    restart: bool
    reconciled: bool
    minutes: int


class HonestChain(ScriptedFacilitator):
    """Executes a nonce once, and tells the truth or nothing."""

    step: Step = Step("executed", "truth", False, False, False, 0)
    clock: Clock = Clock()

    async def settle(self, authorization: Authorization) -> SettleResult:
        self.calls.append("settle")
        told = self.spent.get(authorization.key)
        assert told is None or told != "known", "settlement was asked for although the transfer was known to be made"
        alive = self.clock() < authorization.valid_before
        match self.step.settle:
            case "executed" if alive:
                if told is None:
                    self.executed(authorization)
                return Settled(transaction_of(authorization.key), authorization.payer, 1)
            case "silently executed" if alive:
                if told is None:
                    self.executed(authorization)
                return Unknown("the node went away")
            case "refused" if told is None:
                return Rejected("insufficient_funds", "the balance is too small")
        return Unknown("the node went away")

    async def outcome(self, authorization: Authorization) -> Outcome:
        if self.step.ask == "away":
            return Unavailable("the node is away")
        transaction = self.spent.get(authorization.key)
        return Unused(self.clock()) if transaction is None else Used(transaction, 1)


steps = st.builds(
    Step,
    settle=st.sampled_from(["executed", "silently executed", "dropped", "refused"]),
    ask=st.sampled_from(["truth", "truth", "away"]),
    model_fails=st.booleans(),
    restart=st.booleans(),
    reconciled=st.booleans(),
    minutes=st.sampled_from([0, 0, 1, 12]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=st.lists(steps, min_size=1, max_size=5), lasting=st.booleans())
def test_no_history_charges_twice_or_gives_an_answer_away(script: list[Step], lasting: bool) -> None:
    with TemporaryDirectory() as directory:
        asyncio.run(history(f"sqlite:///{directory}/ledger.db", script, lasting=lasting))


async def history(url: str, script: list[Step], *, lasting: bool) -> None:
    ledger = await Ledger.open(url, owner="main")
    chain = HonestChain()
    shop = Shop(ledger, KeyRing.generate(), chain)
    shop.authorization = authorize(valid_before=FAR if lasting else NOW + 600)
    chain.clock = shop.clock
    refused = False
    for step in [*script, Step("executed", "truth", False, False, False, 0)]:
        chain.step = step
        shop.clock.now += step.minutes * 60
        if step.restart:
            shop = shop.restarted()
            if step.reconciled:
                await reconcile(ledger, chain, shop.clock, owner="main")
        shop.model.failure = ModelError() if step.model_fails else None
        try:
            answer = await shop.buy()
        except PaymentRefusedError:
            assert chain.spent == {}, "refused although the buyer had been charged"
            refused = True
        except (ComeBackError, ModelError):
            pass
        else:
            assert len(chain.spent) == 1, "an answer without a transfer"
            assert await shop.state() is State.SETTLED
            check_signature(receipt_of(answer), shop.identity.keyset)
            settlements = chain.count("settle")
            assert await shop.buy() == answer, "once settled, it is delivered again and again"
            assert chain.count("settle") == settlements
    state = await shop.state()
    if chain.spent:
        assert state is State.SETTLED, "with the world in order again, whoever paid has an answer"
    elif refused:
        assert state in (None, State.REJECTED, State.RELEASED)
    await ledger.close()
