"""OpenAI's npm client, which knows nothing of payments, over the x402 SDK's fetch, which makes them."""

from typing import Any

import httpx
import pytest

from tests.e2e.chainside import Token
from tests.e2e.conftest import RunScript
from tests.e2e.stack import MODEL, PRICE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]


@pytest.fixture(scope="module")
def chatted(stack: Stack, token: Token, javascript: RunScript) -> dict[str, Any]:
    """One answer as a whole, one as a stream, one refusal; with what it cost."""
    before = token.balance_of(stack.dev.pay_to)
    allow = [{"network": f"eip155:{stack.dev.chain_id}", "asset": stack.dev.token, "maxAmountPerPayment": str(PRICE)}]
    order = {"url": stack.dev.url, "model": MODEL, "key": stack.dev.buyer_key, "allow": allow}
    result: dict[str, Any] = javascript("chat.mjs", order)
    return {**result, "received": token.balance_of(stack.dev.pay_to) - before}


def test_it_lists_the_model(chatted: dict[str, Any]) -> None:
    assert chatted["models"] == [MODEL]


def test_it_gets_an_answer(chatted: dict[str, Any]) -> None:
    answer = chatted["answer"]
    (choice,) = answer["choices"]
    assert choice["message"]["content"].strip()
    assert choice["finish_reason"] in ("stop", "length")
    assert 0 < answer["usage"]["completion_tokens"] <= 12


def test_it_reads_a_stream_to_its_end(chatted: dict[str, Any]) -> None:
    *told, last = chatted["chunks"]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in told).strip()
    assert told[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]


def test_each_answer_costs_its_price_once_and_has_its_receipt(chatted: dict[str, Any], stack: Stack) -> None:
    assert chatted["received"] == 2 * PRICE
    assert len(chatted["receipts"]) == 2
    for identifier in chatted["receipts"]:
        receipt = httpx.get(f"{stack.dev.url}/v1/aci/receipts/{identifier}").json()
        assert receipt["endpoint"] == "/v1/chat/completions"
        assert receipt["event_log"][-1]["complete"] is True


def test_a_refusal_is_one_of_the_clients_own_errors(chatted: dict[str, Any]) -> None:
    refused = chatted["refused"]
    assert (refused["name"], refused["status"]) == ("UnprocessableEntityError", 422)
    assert (refused["code"], refused["param"]) == ("invalid-request", "n")
