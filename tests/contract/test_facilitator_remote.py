"""A facilitator behind HTTP that is slow, broken or lying: never a wrong yes, never a no it has not proven."""

import gzip
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import Request, Response

from service.localchain.deploy import LocalChain
from service.payment.authorization import Authorization
from service.payment.facilitator import FacilitatorUnavailableError, Invalid, Rejected, Settled, Unknown, Verified
from service.payment.facilitator_http import MAX_RESPONSE_BYTES
from service.payment.remote import RemoteFacilitator
from service.pricing import Asset
from tests.facilitators import Handler, answering, serving
from tests.payments import TOKEN, authorize, offer

TRANSACTION = "0x" + "ab" * 32
YES = {"success": True, "transaction": TRANSACTION, "network": TOKEN.network}
NO = {"success": False, "transaction": "", "network": TOKEN.network}


def saying(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def handler(_request: Request) -> Response:
        return Response(content, status_code=status, media_type="application/json", headers=headers)

    return handler


async def hanging(request: Request) -> Response:
    """Says nothing until the client has given up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response(status_code=499)


async def ask(handler: Handler, question: Callable[[RemoteFacilitator], Awaitable[Any]], **options: Any) -> Any:
    options = {"assets": [TOKEN], "timeout_seconds": 0.5, **options}
    with serving(answering(handler)) as url:
        facilitator = RemoteFacilitator(url=url, **options)
        try:
            return await question(facilitator)
        finally:
            await facilitator.close()


async def verify(handler: Handler, authorization: Authorization | None = None) -> Any:
    return await ask(handler, lambda facilitator: facilitator.verify(authorization or authorize()))


async def settle(handler: Handler, authorization: Authorization | None = None, **options: Any) -> Any:
    return await ask(handler, lambda facilitator: facilitator.settle(authorization or authorize()), **options)


async def test_the_request_is_the_one_of_the_specification() -> None:
    seen: list[tuple[str, str, dict[str, Any]]] = []

    async def handler(request: Request) -> Response:
        seen.append((request.url.path, request.headers.get("authorization", ""), await request.json()))
        return Response(json.dumps({"isValid": True}))

    authorization = authorize()
    assert await ask(handler, lambda one: one.verify(authorization)) == Verified(authorization.payer)
    ((path, secret, body),) = seen
    assert (path, secret, body["x402Version"]) == ("/verify", "", 2)
    assert body["paymentPayload"]["payload"]["signature"] == authorization.payload.payload["signature"]
    assert body["paymentRequirements"] == body["paymentPayload"]["accepted"]
    assert body["paymentRequirements"]["amount"] == "10000"


async def test_a_yes_and_a_no_are_understood() -> None:
    assert isinstance(await verify(saying({"isValid": True})), Verified)
    invalid = await verify(saying({"isValid": False, "invalidReason": "insufficient_funds"}))
    assert invalid == Invalid("insufficient_funds", "the payer's balance is smaller than the price")
    assert isinstance(await verify(saying({"isValid": False, "invalidReason": "new_reason"}, 400)), Invalid)
    assert await settle(saying(YES)) == Settled(TRANSACTION, authorize().payer, None)


GARBAGE: dict[str, Handler] = {
    "nothing": saying(b""),
    "html": saying(b"<html>busy</html>"),
    "a list": saying([]),
    "empty": saying({}),
    "strings for booleans": saying({"isValid": "true", "success": "true", "transaction": TRANSACTION, "network": "x"}),
    "a redirect": saying({"isValid": True, **YES}, 302, {"location": "/elsewhere"}),
    "an error with a yes in it": saying({"isValid": True, **YES}, 500),
    "a refusal with a yes in it": saying({"isValid": True, **YES}, 403),
    "too much": saying(b'{"isValid":true,"x":"' + b"x" * MAX_RESPONSE_BYTES + b'"}'),
    "silence": hanging,
    "a packed yes": saying(
        gzip.compress(json.dumps({"isValid": True, **YES}).encode()), headers={"content-encoding": "gzip"}
    ),
    "numbers for text": saying({"isValid": True, "payer": 7, **YES, "transaction": 7}),
    "depth": saying(b"[" * 50_000),
}


@pytest.mark.parametrize("name", list(GARBAGE))
async def test_what_is_no_answer_is_neither_yes_nor_no(name: str) -> None:
    with pytest.raises(FacilitatorUnavailableError):
        await verify(GARBAGE[name])
    assert isinstance(await settle(GARBAGE[name]), Unknown)


async def test_a_facilitator_that_is_not_there_is_neither_yes_nor_no() -> None:
    facilitator = RemoteFacilitator(url="http://127.0.0.1:1", assets=[TOKEN])
    with pytest.raises(FacilitatorUnavailableError):
        await facilitator.verify(authorize())
    assert isinstance(await facilitator.settle(authorize()), Unknown)
    assert "cannot be reached" in (await facilitator.ready())[0]
    await facilitator.close()


@pytest.mark.parametrize("status", [200, 400, 402])
@pytest.mark.parametrize(
    ("reason", "definite"),
    [
        ("insufficient_funds", True),
        ("invalid_exact_evm_payload_signature", True),
        ("invalid_exact_evm_payload_authorization_valid_before", True),
        ("invalid_exact_evm_nonce_already_used", False),
        ("settlement_pending", False),
        ("transaction_failed", False),
        ("unexpected_settle_error", False),
        ("invalid_transaction_state", False),
        ("something_new", False),
        (None, False),
    ],
)
async def test_only_reasons_that_exclude_a_transfer_are_a_no(reason: str | None, definite: bool, status: int) -> None:
    result = await settle(saying({**NO, "errorReason": reason}, status))
    assert isinstance(result, Rejected if definite else Unknown)


async def test_a_no_that_names_a_transaction_is_not_believed() -> None:
    result = await settle(saying({**NO, "errorReason": "insufficient_funds", "transaction": TRANSACTION}))
    assert result == Unknown("the facilitator could not settle (insufficient_funds)", TRANSACTION)


@pytest.mark.parametrize(
    "lie",
    [
        {"transaction": ""},
        {"transaction": "0x" + "00" * 32},
        {"transaction": "pending"},
        {"network": "eip155:1"},
        {"payer": "0x" + "44" * 20},
        {"amount": "9999"},
    ],
)
async def test_a_yes_that_does_not_fit_the_payment_is_not_believed(lie: dict[str, str]) -> None:
    assert isinstance(await settle(saying({**YES, **lie})), Unknown)


async def test_a_yes_about_another_payer_is_not_believed() -> None:
    with pytest.raises(FacilitatorUnavailableError, match="another payer"):
        await verify(saying({"isValid": True, "payer": "0x" + "44" * 20}))


@pytest.mark.parametrize("reason", ["unexpected_verify_error", "unexpected_error"])
async def test_a_facilitators_own_failure_is_not_the_buyers(reason: str) -> None:
    with pytest.raises(FacilitatorUnavailableError):
        await verify(saying({"isValid": False, "invalidReason": reason}))


async def test_with_a_node_to_ask_a_lie_about_success_is_not_believed(chain: LocalChain) -> None:
    asset = Asset(f"eip155:{chain.chain_id}", chain.token, 6, "USDC", "2", "USDC")
    authorization = authorize(offer(asset, pay_to=chain.pay_to), key=chain.buyer_key)
    options = {"assets": [asset], "rpc_url": chain.rpc, "confirmation_timeout_seconds": 0.0}
    result = await settle(saying(YES), authorization, **options)
    assert result == Unknown("the facilitator says settled, but the chain does not show it yet", TRANSACTION)


async def test_readiness_asks_what_the_facilitator_supports() -> None:
    kind = {"x402Version": 2, "scheme": "exact", "network": TOKEN.network}
    assert await ask(saying({"kinds": [kind]}), lambda one: one.ready()) == []
    for other in ({"x402Version": 1}, {"scheme": "upto"}, {"network": "eip155:1"}):
        (problem,) = await ask(saying({"kinds": [{**kind, **other}]}), lambda one: one.ready())
        assert "does not support exact payments on eip155:84532" in problem


async def test_many_payments_share_connections() -> None:
    clients = set()

    async def handler(request: Request) -> Response:
        assert request.client is not None
        clients.add(request.client.port)
        return Response(json.dumps({"isValid": True}))

    async def one_after_the_other(facilitator: RemoteFacilitator) -> None:
        for _ in range(20):
            await facilitator.verify(authorize())

    await ask(handler, one_after_the_other)
    assert len(clients) == 1
