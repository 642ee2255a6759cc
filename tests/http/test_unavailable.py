"""When something the service needs is away: it says so, says when to come back, and nobody loses money by it."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service.app import Service, create_app
from service.inference.admission import Admission
from service.inference.backend import BackendTimeout, BackendUnavailable, TruncatedPrompt
from service.payment.facilitator import Rejected, Unavailable, Unknown
from service.payment.ledger import Ledger, LedgerUnavailableError
from service.payment.local import LocalFacilitator
from tests.http.bench import bench, with_facilitator
from tests.http.conftest import Stack
from tests.http.fakes import unavailable
from tests.http.world import FAR, PRICE, Caller, distinct_body, problem_of, request_body
from tests.models import failing

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]


def comes_back(response: httpx.Response, kind: str) -> str:
    """The detail of a 503 that says when to come back, and asks for no payment."""
    problem = problem_of(response, 503, kind)
    assert 1 <= int(response.headers["retry-after"]) <= 600
    assert response.headers["cache-control"] == "no-store"
    assert "payment-required" not in response.headers
    return str(problem["detail"])


FAILURES = {
    "it answers 500": failing(500, {"error": {"message": "out of memory"}}),
    "it is overloaded": failing(503, {"error": {"message": "busy"}}),
    "it does not know the model": failing(404, {"error": {"message": "no such model"}}),
    "it refuses the request": failing(400, {"error": {"message": "bad"}}),
    "it answers with no JSON": failing(200, "hello"),
    "it answers with nothing": failing(
        200,
        {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": " \n"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 150, "completion_tokens": 0},
        },
    ),
    "it read a part of the document only": failing(
        200,
        {
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "A harbour."}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3},
        },
    ),
    "it broke off": failing(
        200,
        {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "A"}, "finish_reason": "error"}],
            "usage": {"prompt_tokens": 150, "completion_tokens": 1},
        },
    ),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_model_that_fails_costs_nothing_and_the_payment_stays_good(stack: Stack, name: str) -> None:
    body, earned = distinct_body(name), await stack.earned()
    header = await stack.caller.payment(body)
    stack.model.answer = FAILURES[name]
    detail = comes_back(await stack.caller.ask(body, payment=header), "inference-failed")
    assert "Nothing was charged" in detail
    assert stack.ledger.states()[-1] == "RELEASED"
    assert await stack.earned() == earned
    stack.model.answer = None
    assert (await stack.caller.ask(body, payment=header)).status_code == 200
    assert await stack.earned() == earned + PRICE


async def test_a_payment_that_bought_nothing_buys_something_else(stack: Stack) -> None:
    body, other = distinct_body("first choice"), distinct_body("second choice")
    header = await stack.caller.payment(body)
    stack.model.answer = failing(500, {})
    assert (await stack.caller.ask(body, payment=header)).status_code == 503
    stack.model.answer = None
    assert (await stack.caller.ask(other, payment=header)).status_code == 200
    problem_of(await stack.caller.ask(body, payment=header), 409, "payment-used")


@pytest.mark.parametrize(
    "failure", [BackendUnavailable("gone"), BackendTimeout("too slow"), TruncatedPrompt(100, 7)], ids=repr
)
async def test_a_model_that_cannot_answer_sells_nothing(ledger_path: Path, failure: Exception) -> None:
    """Nobody signs a payment for a call that has no answer; `readyz` says the same."""
    async with bench(ledger_path) as shop:
        shop.backend.sick = failure
        comes_back(await shop.caller.ask(), "not-ready")
        assert (await shop.caller.get("/readyz")).status_code == 503
        shop.backend.sick = None
        assert (await shop.caller.ask()).status_code == 402


async def test_an_answer_that_is_there_needs_no_model(stack: Stack) -> None:
    body = distinct_body("no model needed")
    header = await stack.caller.payment(body)
    first = await stack.caller.ask(body, payment=header)
    stack.model.answer = failing(500, {})
    assert (await stack.caller.ask(body, payment=header)).content == first.content


async def test_a_full_house_asks_nobody_for_money(ledger_path: Path) -> None:
    async with bench(ledger_path, slots=1, queue=1) as shop:
        headers = [await shop.caller.payment(distinct_body(name), valid_before=FAR) for name in range(3)]
        shop.backend.hold = asyncio.Event()
        guests = [asyncio.create_task(shop.caller.ask(distinct_body(name), payment=headers[name])) for name in range(2)]
        await shop.backend.working.wait()
        while shop.service.admission.depth().waiting < 1:  # noqa: ASYNC110 - a queue has no event for that
            await asyncio.sleep(0)
        comes_back(await shop.caller.ask(), "busy")
        # Whoever got a 402 a moment before and pays now is sent away without a charge.
        assert "nothing was charged" in comes_back(await shop.caller.ask(distinct_body(2), payment=headers[2]), "busy")
        assert shop.ledger.states().count("RELEASED") == 1
        shop.backend.hold.set()
        assert [guest.status_code for guest in await asyncio.gather(*guests)] == [200, 200]
        assert (await shop.caller.ask(distinct_body(2), payment=headers[2])).status_code == 200
        assert len(shop.facilitator.spent) == 3


async def test_a_bought_answer_needs_no_slot(ledger_path: Path) -> None:
    async with bench(ledger_path, slots=1, queue=0) as shop:
        body = distinct_body("mine")
        header = await shop.caller.payment(body, valid_before=FAR)
        first = await shop.caller.ask(body, payment=header)
        async with shop.service.admission.slot():
            assert (await shop.caller.ask(body, payment=header)).content == first.content


async def test_a_chain_that_is_away_is_a_503_paid_or_not(stack: Stack) -> None:
    body = distinct_body("no chain")
    header = await stack.caller.payment(body)
    rows = len(stack.ledger.rows())
    nowhere = LocalFacilitator(
        rpc_url="http://127.0.0.1:9",
        operator_key=stack.chain.operator_key,
        assets=[stack.service.settings.payees[0].asset],
        rpc_timeout_seconds=2,
    )
    service = with_facilitator(stack.service, nowhere)
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url=stack.url) as http:
        caller = Caller(http, stack.caller.keyset, stack.chain.buyer_key, stack.caller.clock)
        comes_back(await caller.ask(body), "not-ready")
        assert "nothing was charged" in comes_back(await caller.ask(body, payment=header), "payment-pending")
        readiness = await caller.get("/readyz")
        assert readiness.status_code == 503
        assert "cannot be reached" in readiness.json()["problems"][0]
        assert "127.0.0.1:9" not in readiness.text, "the node's URL may hold an access key"
    await nowhere.close()
    assert len(stack.ledger.rows()) == rows
    assert (await stack.caller.ask(body, payment=header)).status_code == 200, "the payment is still good"


async def test_an_operator_without_gas_sells_nothing(stack: Stack) -> None:
    poor = LocalFacilitator(
        rpc_url=stack.chain.rpc, operator_key="0x" + "66" * 32, assets=[stack.service.settings.payees[0].asset]
    )
    transport = httpx.ASGITransport(create_app(with_facilitator(stack.service, poor)))
    async with httpx.AsyncClient(transport=transport, base_url=stack.url) as http:
        caller = Caller(http, stack.caller.keyset, stack.chain.buyer_key, stack.caller.clock)
        assert "wei for gas" in comes_back(await caller.ask(), "not-ready")
        assert (await caller.get("/readyz")).status_code == 503
    await poor.close()


async def test_an_unknown_settlement_is_never_a_402(ledger_path: Path) -> None:
    """The transfer happened, and nobody heard of it. The buyer keeps the payment and gets the answer later."""
    async with bench(ledger_path) as shop:
        body = distinct_body("unknown")
        header = await shop.caller.payment(body, valid_before=FAR)
        shop.facilitator.settlements.append(Unknown("the node went away", None))
        shop.facilitator.executes = lambda _: True
        shop.facilitator.outcomes.append(Unavailable("still away"))
        for _ in range(2):
            response = await shop.caller.ask(body, payment=header)
            assert "send the same one again" in comes_back(response, "payment-pending")
            assert shop.backend.text not in response.text
        assert shop.ledger.states() == ["UNKNOWN"]
        assert (await shop.caller.ask(body, payment=header)).status_code == 200
        assert shop.ledger.states() == ["SETTLED"]
        assert (shop.facilitator.count("settle"), shop.backend.completions) == (1, 1)


async def test_a_rejected_settlement_is_a_402_and_stays_one(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        header = await shop.caller.payment(valid_before=FAR)
        shop.facilitator.settlements.append(Rejected("insufficient_funds", "the payer's balance is smaller"))
        for _ in range(2):
            response = await shop.caller.ask(payment=header)
            assert response.status_code == 402
            assert "balance is smaller" in response.json()["error"]
            assert shop.backend.text not in response.text
        assert (shop.facilitator.count("settle"), shop.backend.completions) == (1, 1)


async def test_a_verification_that_cannot_be_made_is_a_503(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        header = await shop.caller.payment(valid_before=FAR)
        shop.facilitator.verifications.append(unavailable())
        comes_back(await shop.caller.ask(payment=header), "payment-pending")
        assert shop.ledger.rows() == []
        assert (await shop.caller.ask(payment=header)).status_code == 200


async def test_nothing_is_sold_under_keys_that_are_about_to_expire(ledger_path: Path) -> None:
    """The answer's proof would be refused by whoever checks it."""
    async with bench(ledger_path, not_after=1_790_000_000 + 900) as shop:
        assert (await shop.caller.ask()).status_code == 402
        header = await shop.caller.payment(valid_before=FAR)
        shop.clock.now += 700
        assert "expires in 200 s" in (await shop.caller.get("/readyz")).json()["problems"][0]
        comes_back(await shop.caller.ask(), "not-ready")
        assert (await shop.caller.ask(payment=header)).status_code == 503
        assert shop.facilitator.spent == {}


@pytest.mark.parametrize("step", ["find", "reserve", "start_settlement", "settled"])
async def test_a_ledger_that_fails_is_a_503_and_forgets_nothing(
    ledger_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise LedgerUnavailableError("database or disk is full")

    async with bench(ledger_path) as shop:
        header = await shop.caller.payment(valid_before=FAR)
        with monkeypatch.context() as patched:
            patched.setattr(Ledger, step, refuse)
            response = await shop.caller.ask(payment=header)
            comes_back(response, "ledger")
            assert shop.backend.text not in response.text
        assert (await shop.caller.ask(payment=header)).status_code == 200
        assert (shop.facilitator.count("settle"), len(shop.facilitator.spent)) == (1, 1)


async def test_receipts_that_cannot_be_read_are_a_503(ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise LedgerUnavailableError("database or disk is full")

    async with bench(ledger_path) as shop:
        monkeypatch.setattr(Ledger, "receipt", refuse)
        comes_back(await shop.caller.get("/v1/aci/receipts/rcpt-1"), "ledger")


@pytest.mark.parametrize("why", ["model", "house"])
async def test_an_owed_answer_that_cannot_be_made_now_is_not_called_free(ledger_path: Path, why: str) -> None:
    """Paid before a restart. The money has moved, so "nothing was charged" would send the buyer away for good."""
    body = distinct_body("owed")
    async with bench(ledger_path) as shop:
        header = await shop.caller.payment(body, valid_before=FAR)
        assert (await shop.caller.ask(body, payment=header)).status_code == 200
        chain = shop.facilitator
    async with bench(ledger_path, facilitator=chain, slots=1, queue=0) as shop:
        if why == "model":
            shop.backend.failure = BackendUnavailable("gone")
            response = await shop.caller.ask(body, payment=header)
        else:
            async with shop.service.admission.slot():
                response = await shop.caller.ask(body, payment=header)
        assert response.status_code == 503
        assert "nothing was charged" not in response.text.lower()
        assert "payment" in response.json()["detail"]
        shop.backend.failure = None
        assert (await shop.caller.ask(body, payment=header)).status_code == 200
    assert chain.count("settle") == 1


async def test_a_saturated_service_is_still_alive(ledger_path: Path) -> None:
    def small(service: Service) -> Service:
        return replace(service, admission=Admission(1, 0))

    async with bench(ledger_path, wrap=small) as shop, shop.service.admission.slot():
        comes_back(await shop.caller.ask(request_body()), "busy")
        assert (await shop.caller.get("/healthz")).status_code == 200
