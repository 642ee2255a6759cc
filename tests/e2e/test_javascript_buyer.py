"""A buyer that others wrote, in another language: npm @x402/fetch pays, @x402/extensions checks offer and receipt."""

from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address

from attestation.keyset import ALGO_PAYMENT, parse_keyset
from attestation.payment_proof import address_of
from tests.e2e.chainside import Registry, Token
from tests.e2e.conftest import RunScript
from tests.e2e.stack import DOCUMENT, PRICE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]


def order(stack: Stack, *, allow: Any, **body: Any) -> dict[str, Any]:
    return {
        "url": f"{stack.dev.url}/v1/summarize",
        "key": stack.dev.buyer_key,
        "allow": allow,
        "body": {"document": DOCUMENT, "max_words": 5, **body},
    }


def local_token(stack: Stack, limit: int) -> list[dict[str, str]]:
    return [{"network": f"eip155:{stack.dev.chain_id}", "asset": stack.dev.token, "maxAmountPerPayment": str(limit)}]


@pytest.fixture(scope="module")
def paid(stack: Stack, token: Token, javascript: RunScript) -> dict[str, Any]:
    """One purchase by the JavaScript buyer, with what it did to the balances."""
    buyer = Account.from_key(stack.dev.buyer_key).address
    before = token.balance_of(stack.dev.pay_to), token.balance_of(buyer)
    result: dict[str, Any] = javascript("buyer.mjs", order(stack, allow=local_token(stack, PRICE)))
    after = token.balance_of(stack.dev.pay_to), token.balance_of(buyer)
    return {**result, "received": after[0] - before[0], "spent": before[1] - after[1]}


def test_it_gets_a_summary(paid: dict[str, Any]) -> None:
    assert paid["status"] == 200, paid
    answer = paid["body"]
    assert set(answer) == {"id", "object", "created", "model", "summary", "finish_reason", "usage"}
    assert answer["object"] == "summary"
    assert answer["summary"].strip()
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_it_paid_exactly_the_price_once(paid: dict[str, Any]) -> None:
    assert paid["received"] == paid["spent"] == PRICE
    assert [exchange["paid"] for exchange in paid["exchanges"]] == [False, True]


def test_the_transaction_it_was_told_is_the_transfer(paid: dict[str, Any], stack: Stack, token: Token) -> None:
    receipt = token.ask("eth_getTransactionReceipt", paid["settlement"]["transaction"])
    assert receipt["status"] == "0x1"
    moved = [
        log
        for log in receipt["logs"]
        if log["address"] == stack.dev.token.lower()
        and len(log["topics"]) == 3
        and log["topics"][2][-40:] == stack.dev.pay_to[2:].lower()
    ]
    assert [int(log["data"], 16) for log in moved] == [PRICE]


def test_offer_and_receipt_are_signed_by_the_attested_key_that_is_on_the_chain(
    paid: dict[str, Any], stack: Stack
) -> None:
    report = httpx.get(f"{stack.dev.url}/v1/aci/attestation").json()
    keyset = parse_keyset(report["attestation"]["workload_keyset"])
    attested = to_checksum_address(address_of(keyset.key(ALGO_PAYMENT).public_key))
    record = Registry(stack.dev.rpc, stack.dev.identity_registry).metadata(stack.dev.agent_id, "tee.key.main")
    on_chain = to_checksum_address(record[1:21])
    assert {paid["offer"]["signer"], paid["receipt"]["signer"]} == {attested} == {on_chain}


def test_the_receipt_matches_the_offer_for_this_payer_and_for_nobody_else(paid: dict[str, Any]) -> None:
    assert paid["matches"] is True
    assert paid["matches_a_stranger"] is False


def test_the_offer_is_one_of_the_terms_and_says_what_was_paid(paid: dict[str, Any], stack: Stack) -> None:
    assert paid["accepts"] == paid["required"]["accepts"][0]
    payload = paid["offer"]["payload"]
    assert (payload["payTo"], payload["amount"]) == (stack.dev.pay_to, str(PRICE))
    assert payload["resourceUrl"] == paid["receipt"]["payload"]["resourceUrl"] == f"{stack.dev.url}/v1/summarize"
    assert paid["receipt"]["payload"]["transaction"] == paid["settlement"]["transaction"]


def test_a_client_that_does_not_know_the_token_does_not_pay(stack: Stack, token: Token, javascript: RunScript) -> None:
    before = token.balance_of(stack.dev.pay_to)
    result = javascript("buyer.mjs", order(stack, allow=None))
    assert "refused" in result, result
    assert [exchange["status"] for exchange in result["exchanges"]] == [402]
    assert token.balance_of(stack.dev.pay_to) == before


def test_a_client_with_a_limit_below_the_price_does_not_pay(stack: Stack, token: Token, javascript: RunScript) -> None:
    before = token.balance_of(stack.dev.pay_to)
    result = javascript("buyer.mjs", order(stack, allow=local_token(stack, PRICE - 1)))
    assert "refused" in result, result
    assert token.balance_of(stack.dev.pay_to) == before


def test_a_request_that_cannot_be_served_is_refused_before_any_terms(
    stack: Stack, token: Token, javascript: RunScript
) -> None:
    before = token.balance_of(stack.dev.pay_to)
    result = javascript("buyer.mjs", order(stack, allow=local_token(stack, PRICE), document="  \n "))
    assert result["status"] == 422
    assert len(result["exchanges"]) == 1
    assert token.balance_of(stack.dev.pay_to) == before
