"""A name for a purchase: sending it twice is one purchase, however the payment was lost in between."""

from pathlib import Path

from tests.http.bench import bench
from tests.http.world import FAR, distinct_body, problem_of

NAME = {"idempotency-key": "purchase-0000001"}


async def test_the_same_purchase_by_name_gets_the_same_answer(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        header = await shop.caller.payment(valid_before=FAR)
        first = await shop.caller.ask(payment=header, headers=NAME)
        again = await shop.caller.ask(payment=header, headers=NAME)
        assert first.status_code == again.status_code == 200
        assert first.content == again.content
        assert shop.facilitator.count("settle") == 1


async def test_a_second_payment_for_a_named_purchase_is_not_taken(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        first = await shop.caller.ask(payment=await shop.caller.payment(valid_before=FAR), headers=NAME)
        assert first.status_code == 200
        second = await shop.caller.payment(valid_before=FAR)
        problem_of(await shop.caller.ask(payment=second, headers=NAME), 409, "payment-used")
        assert shop.facilitator.count("settle") == 1
        assert (await shop.caller.ask(payment=second)).status_code == 200, "it was not used up either"


async def test_a_name_buys_one_request(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        assert (await shop.caller.ask(payment=await shop.caller.payment(valid_before=FAR), headers=NAME)).is_success
        other = distinct_body(2)
        payment = await shop.caller.payment(other, valid_before=FAR)
        problem_of(await shop.caller.ask(other, payment=payment, headers=NAME), 409, "payment-used")


async def test_a_payment_that_is_refused_takes_no_name(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        late = await shop.caller.payment(valid_before=shop.clock.now)
        assert (await shop.caller.ask(payment=late, headers=NAME)).status_code == 402
        good = await shop.caller.payment(valid_before=FAR)
        assert (await shop.caller.ask(payment=good, headers=NAME)).status_code == 200


async def test_a_name_of_another_form_is_a_400_that_says_so(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        payment = await shop.caller.payment(valid_before=FAR)
        answer = await shop.caller.ask(payment=payment, headers={"idempotency-key": "short"})
        problem_of(answer, 400, "malformed-payment", "Idempotency-Key")
