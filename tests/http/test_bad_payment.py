"""Payments that must not be taken: malformed, wrong, spent, or for something else. Nobody is charged for trying."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from eth_account import Account

from service.localchain.deploy import Deployer, artifact
from service.payment.authorization import MAX_HEADER_BYTES
from tests.http.bench import bench
from tests.http.conftest import Stack
from tests.http.world import PRICE, distinct_body, new_account, problem_of, request_body
from tests.payments import as_document, as_header, pay

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

STRANGER = "0x" + "77" * 20


def edited(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of a payment with one field changed, or gone when `value` is `...`."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    *parents, last = path.split(".")
    place = copy
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


def replaced(path: str, value: object) -> Callable[[dict[str, Any]], str]:
    return lambda document: as_header(edited(document, path, value))


def encoded(data: bytes) -> Callable[[dict[str, Any]], str]:
    return lambda _: base64.b64encode(data).decode()


HEADER = "PAYMENT-SIGNATURE"
SIGNED = "payload.authorization"

MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], str], str, str]] = {
    "empty": (lambda _: "", HEADER, ""),
    "not base64": (lambda _: "not base64!", HEADER, "base64"),
    "base64 with a stray sign": (lambda document: "*" + as_header(document), HEADER, "base64"),
    "base64 of nothing JSON": (encoded(b"hello"), HEADER, "JSON"),
    "not UTF-8": (encoded(b'{"x402Version":2,"payload":"\xff"}'), HEADER, "UTF-8"),
    "a list": (encoded(b"[]"), HEADER, "JSON object"),
    "deep nesting": (encoded(b"[" * 9_000), HEADER, "JSON"),
    "NaN": (encoded(b'{"x402Version":NaN}'), HEADER, "JSON"),
    "oversized": (replaced("padding", "x" * 16_384), HEADER, f"{MAX_HEADER_BYTES} bytes"),
    "version 1": (replaced("x402Version", 1), "x402Version", "version 1 is not supported"),
    "version as text": (replaced("x402Version", "2"), "x402Version", "must be 2"),
    "no version": (replaced("x402Version", ...), "x402Version", "must be 2"),
    "no payload": (replaced("payload", ...), "payload", "is missing"),
    "no terms": (replaced("accepted", ...), "accepted", "is missing"),
    "terms without a network": (replaced("accepted.network", ...), "accepted.network", "required"),
    "no authorization": (replaced(SIGNED, ...), SIGNED, "JSON object"),
    "no signature": (replaced("payload.signature", ...), "payload.signature", "hex"),
    "short signature": (replaced("payload.signature", "0x1234"), "payload.signature", "65 to 4096 bytes, not 2"),
    "Permit2": (replaced("payload.permit2Authorization", {}), "payload.permit2Authorization", "EIP-3009"),
    "no nonce": (replaced(f"{SIGNED}.nonce", ...), f"{SIGNED}.nonce", "32 bytes"),
    "short nonce": (replaced(f"{SIGNED}.nonce", "0x12"), f"{SIGNED}.nonce", "32 bytes"),
    "no payer": (replaced(f"{SIGNED}.from", ...), f"{SIGNED}.from", "address"),
    "value as number": (replaced(f"{SIGNED}.value", PRICE), f"{SIGNED}.value", "decimal"),
    "negative value": (replaced(f"{SIGNED}.value", "-1"), f"{SIGNED}.value", "decimal"),
    "value beyond uint256": (replaced(f"{SIGNED}.value", str(2**256)), f"{SIGNED}.value", "uint256"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_payment_is_a_400_that_names_the_part(stack: Stack, name: str) -> None:
    make, field, says = MALFORMED[name]
    rows, earned = len(stack.ledger.rows()), await stack.earned()
    document = as_document(pay(await stack.caller.terms(), key=stack.chain.buyer_key))
    problem = problem_of(await stack.caller.ask(payment=make(document)), 400, "malformed-payment", field)
    assert says in problem["detail"]
    assert document["payload"]["signature"][2:40] not in json.dumps(problem)
    assert (len(stack.ledger.rows()), await stack.earned()) == (rows, earned)


async def test_a_payment_in_the_header_of_version_1_is_no_payment(stack: Stack) -> None:
    header = await stack.caller.payment()
    assert (await stack.caller.ask(headers={"x-payment": header})).status_code == 402


@dataclass(frozen=True)
class Wrong:
    """A well-formed payment that is not the one asked for."""

    says: str
    signed: dict[str, Any] | None = None
    """Deviations that the buyer signs."""
    copied: tuple[str, object] | None = None
    """A field of the payment that is changed after signing."""


SOON = object()
"""Forty seconds from the moment of the test, which may run long after this module was read."""

WRONG = {
    "expired": Wrong("has expired", {"valid_before": 1_000_000_000}),
    "about to expire": Wrong("at least 60 seconds", {"valid_before": SOON}),
    "not yet valid": Wrong("not valid yet", {"valid_after": int(time.time()) + 3_600, "valid_before": 1 << 40}),
    "never valid": Wrong("later than validAfter", {"valid_after": 1 << 41, "valid_before": 1 << 40}),
    "signed by somebody else": Wrong("signature", {"signing_key": "0x" + "55" * 32}),
    "signed for somebody else": Wrong("signature", {"payer": STRANGER}),
    "a flipped bit in the signature": Wrong("signature", copied=("payload.signature", "0x" + "11" * 64 + "1b")),
    "a changed nonce": Wrong("signature", copied=(f"{SIGNED}.nonce", "0x" + "ab" * 32)),
    "less than the price": Wrong("exactly the price", {"value": PRICE - 1}),
    "more than the price": Wrong("exactly the price", {"value": PRICE + 1}),
    "terms with another amount": Wrong("the price is 10000", copied=("accepted.amount", "1")),
    "to another recipient": Wrong("authorization.to: must pay", {"to": STRANGER}),
    "terms with another recipient": Wrong("another recipient", copied=("accepted.payTo", STRANGER)),
    "another asset": Wrong("asset: is not accepted", copied=("accepted.asset", STRANGER)),
    "another network": Wrong("network: is not accepted", copied=("accepted.network", "eip155:8453")),
    "another scheme": Wrong("scheme: must be exact", copied=("accepted.scheme", "upto")),
    "another token name": Wrong("extra.name", copied=("accepted.extra.name", "USD Coin")),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_payment_is_a_402_that_says_why(stack: Stack, name: str) -> None:
    wrong = WRONG[name]
    rows, earned = len(stack.ledger.rows()), await stack.earned()
    requirements = await stack.caller.terms()
    signed: dict[str, Any] = {
        name: int(time.time()) + 40 if value is SOON else value for name, value in (wrong.signed or {}).items()
    }
    document = as_document(pay(requirements, **{"key": stack.chain.buyer_key, **signed}))
    if wrong.copied is not None:
        document = edited(document, *wrong.copied)
    response = await stack.caller.ask(payment=as_header(document))
    assert response.status_code == 402, response.text
    assert wrong.says in response.json()["error"]
    assert response.headers["cache-control"] == "no-store"
    assert "payment-response" not in response.headers
    assert response.json()["accepts"], "the terms come along, so that it can be done right"
    assert (len(stack.ledger.rows()), await stack.earned()) == (rows, earned)


async def test_a_payer_without_money_is_told_so(stack: Stack) -> None:
    rows = len(stack.ledger.rows())
    response = await stack.caller.ask(payment=await stack.caller.payment(key=new_account()))
    assert response.status_code == 402
    assert "balance is smaller than the price" in response.json()["error"]
    assert len(stack.ledger.rows()) == rows


async def test_money_that_goes_before_settlement_buys_nothing(stack: Stack) -> None:
    """The payer could pay when the payment was checked, and spends the money elsewhere while the answer is made."""
    owner = Deployer(stack.chain.rpc, Account.from_key(stack.chain.owner_key))
    token = owner.w3.eth.contract(
        address=owner.w3.to_checksum_address(stack.chain.token), abi=artifact("UsdToken")["abi"]
    )
    buyer = Account.create()
    key = "0x" + bytes(buyer.key).hex()
    await asyncio.to_thread(owner.send, token.functions.mint(buyer.address, PRICE))
    body, earned = distinct_body("vanishing money"), await stack.earned()
    header = await stack.caller.payment(body, key=key)
    stack.model.hold = asyncio.Event()
    stack.model.started.clear()
    asked = asyncio.create_task(stack.caller.ask(body, payment=header))
    await stack.model.started.wait()
    spender = Deployer(stack.chain.rpc, buyer)
    await asyncio.to_thread(spender.fund, buyer.address)
    await asyncio.to_thread(spender.send, token.functions.transfer(STRANGER, PRICE))
    stack.model.hold.set()
    response = await asked
    assert response.status_code == 402
    assert "balance" in response.json()["error"]
    assert stack.model.text not in response.text
    assert await stack.earned() == earned
    assert stack.ledger.states()[-1] == "REJECTED"
    assert stack.ledger.rows()[-1]["result"] is None, "an answer that nobody paid for is not kept"


async def test_a_nonce_that_the_chain_has_seen_buys_nothing(stack: Stack) -> None:
    """The payer has cancelled the authorization, which spends its nonce."""
    requirements = await stack.caller.terms()
    document = as_document(pay(requirements, key=stack.chain.buyer_key))
    nonce = bytes.fromhex(document["payload"]["authorization"]["nonce"][2:])
    types = {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]}
    domain = {
        "name": "USDC",
        "version": "2",
        "chainId": stack.chain.chain_id,
        "verifyingContract": stack.chain.token,
    }
    signed = Account.sign_typed_data(
        stack.chain.buyer_key, domain, types, {"authorizer": stack.chain.buyer, "nonce": nonce}
    )
    owner = Deployer(stack.chain.rpc, Account.from_key(stack.chain.owner_key))
    token = owner.w3.eth.contract(
        address=owner.w3.to_checksum_address(stack.chain.token), abi=artifact("UsdToken")["abi"]
    )
    cancel = token.get_function_by_signature("cancelAuthorization(address,bytes32,bytes)")
    await asyncio.to_thread(owner.send, cancel(stack.chain.buyer, nonce, bytes(signed.signature)))
    rows = len(stack.ledger.rows())
    response = await stack.caller.ask(payment=as_header(document))
    assert response.status_code == 402
    assert "nonce is already spent" in response.json()["error"]
    assert len(stack.ledger.rows()) == rows


async def test_a_payment_for_one_request_does_not_buy_another(stack: Stack) -> None:
    body = distinct_body("mine")
    header = await stack.caller.payment(body)
    first = await stack.caller.ask(body, payment=header)
    earned, calls = await stack.earned(), len(stack.model.bodies)
    for other in (distinct_body("not mine"), body + b" ", request_body()):
        problem_of(await stack.caller.ask(other, payment=header), 409, "payment-used")
    assert (await stack.earned(), len(stack.model.bodies)) == (earned, calls)
    assert (await stack.caller.ask(body, payment=header)).content == first.content, "the buyer's own is still there"


async def test_a_payment_for_one_request_does_not_buy_another_meanwhile(stack: Stack) -> None:
    body = distinct_body("in progress")
    header = await stack.caller.payment(body)
    stack.model.hold = asyncio.Event()
    stack.model.started.clear()
    asked = asyncio.create_task(stack.caller.ask(body, payment=header))
    await stack.model.started.wait()
    problem_of(await stack.caller.ask(distinct_body("another"), payment=header), 409, "payment-used")
    stack.model.hold.set()
    assert (await asked).status_code == 200


async def test_the_same_nonce_signed_twice_is_one_payment(stack: Stack) -> None:
    """Somebody who saw the nonce on the chain, and knows the request, still has no claim to the answer."""
    body, nonce = distinct_body("nonce"), "0x" + "5a" * 32
    requirements = await stack.caller.terms(body)
    mine = as_header(as_document(pay(requirements, key=stack.chain.buyer_key, nonce=nonce)))
    document = as_document(pay(requirements, key=stack.chain.buyer_key, nonce=nonce))
    forged = as_header(edited(document, "payload.signature", "0x" + "22" * 64 + "1c"))
    stack.model.hold = asyncio.Event()
    stack.model.started.clear()
    asked = asyncio.create_task(stack.caller.ask(body, payment=mine))
    await stack.model.started.wait()
    meanwhile = asyncio.create_task(stack.caller.ask(body, payment=forged))
    await asyncio.wait([meanwhile], timeout=0.5)
    stack.model.hold.set()
    assert (await asked).status_code == 200
    assert (await meanwhile).status_code == 409
    problem_of(await stack.caller.ask(body, payment=forged), 409, "payment-used")


async def test_the_same_payment_again_gets_the_same_answer_and_costs_nothing(stack: Stack) -> None:
    body = distinct_body("again")
    header = await stack.caller.payment(body)
    first = await stack.caller.ask(body, payment=header)
    earned, calls = await stack.earned(), len(stack.model.bodies)
    for _ in range(2):
        again = await stack.caller.ask(body, payment=header)
        assert again.status_code == 200
        assert again.content == first.content
        for name in ("x-receipt", "x-receipt-id", "payment-response"):
            assert again.headers[name] == first.headers[name]
    assert (await stack.earned(), len(stack.model.bodies)) == (earned, calls)


async def test_the_same_payment_twenty_times_at_once_is_charged_once(stack: Stack) -> None:
    body = distinct_body("twenty")
    header = await stack.caller.payment(body)
    earned, calls = await stack.earned(), len(stack.model.bodies)
    answers = await asyncio.gather(*(stack.caller.ask(body, payment=header) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["x-receipt"] for answer in answers}) == 1
    assert len({answer.headers["payment-response"] for answer in answers}) == 1
    assert await stack.earned() == earned + PRICE
    assert len(stack.model.bodies) == calls + 1


async def test_ten_payments_at_once_buy_ten_answers(stack: Stack) -> None:
    """More than there are slots and places in the queue: those without one are told to come back, and are served."""
    earned = await stack.earned()

    async def buy(number: int) -> str:
        body = distinct_body(f"crowd {number}")
        header = await stack.caller.payment(body)
        for _ in range(50):
            response = await stack.caller.ask(body, payment=header)
            if response.status_code == 200:
                return str(response.json()["id"])
            assert response.status_code == 503
            await asyncio.sleep(0.05)
        raise AssertionError("never served")

    assert len(set(await asyncio.gather(*(buy(number) for number in range(12))))) == 12
    assert await stack.earned() == earned + 12 * PRICE


async def test_what_was_bought_before_the_price_rose_is_still_delivered(ledger_path: Any) -> None:
    body = distinct_body("old price")
    async with bench(ledger_path) as shop:
        header = await shop.caller.payment(body, valid_before=1 << 40)
        assert (await shop.caller.ask(body, payment=header)).status_code == 200
        chain = shop.facilitator
    async with bench(ledger_path, price="0.02", facilitator=chain) as shop:
        assert (await shop.caller.ask(body, payment=header)).status_code == 200
        assert (await shop.caller.terms(body)).amount == "20000"
    assert chain.count("settle") == 1


async def test_a_payment_that_bought_nothing_is_worth_its_amount_and_no_more(ledger_path: Any) -> None:
    """Released because the model failed, it can be used again, but not below today's price."""
    async with bench(ledger_path) as shop:
        header = await shop.caller.payment(valid_before=1 << 40)
        shop.backend.failure = RuntimeError("gone")
        assert (await shop.caller.ask(payment=header)).status_code == 500
        assert shop.ledger.states() == ["RELEASED"]
    async with bench(ledger_path, price="0.02") as shop:
        response = await shop.caller.ask(distinct_body("dearer"), payment=header)
        assert response.status_code == 402
        assert "the price is 20000" in response.json()["error"]
        assert shop.facilitator.calls == []


@pytest.mark.parametrize("header", ["payment-signature", "Payment-Signature", "PAYMENT-SIGNATURE"])
async def test_the_header_is_found_in_any_spelling(ledger_path: Any, header: str) -> None:
    async with bench(ledger_path) as shop:
        payment = await shop.caller.payment(valid_before=1 << 40)
        assert (await shop.caller.ask(headers={header: payment})).status_code == 200
