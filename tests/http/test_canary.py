"""Documents, answers, payment signatures and keys stay where they belong."""

import logging

import pytest

from attestation.encoding import b64
from service.payment.authorization import decode_payment_header
from tests.http.conftest import Stack
from tests.http.world import DOCUMENT, PRICE, request_body, texts_of
from tests.models import failing

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]


TALKATIVE = ("asyncio", "httpcore", "httpx", "service", "sqlalchemy", "sqlalchemy.engine", "urllib3", "uvicorn", "web3")
"""Loggers that an operator may turn up when looking for a fault."""


async def test_no_secret_reaches_a_log_an_error_or_the_ledger(
    stack: Stack, caplog: pytest.LogCaptureFixture, canary: str
) -> None:
    for name in ("", *TALKATIVE):
        caplog.set_level(logging.DEBUG, logger=name)
    answer = f"answer{canary}"
    body = request_body(f"{DOCUMENT} The code word is {canary}.")
    stack.model.text = f"They said {answer}."
    first_seen = len(stack.caller.seen)

    header = await stack.caller.payment(body)
    signature = decode_payment_header(header).payload["signature"].removeprefix("0x")
    stack.model.answer = failing(400, {"error": {"message": f"cannot read {canary}", "type": "bad_request"}})
    assert (await stack.caller.ask(body, payment=header)).status_code == 503
    stack.model.answer = failing(500, {"error": {"message": f"crashed on {canary}"}})
    assert (await stack.caller.ask(body, payment=header)).status_code == 503
    stack.model.answer = failing(200, f"not JSON: {canary}")
    assert (await stack.caller.ask(body, payment=header)).status_code == 503
    stack.model.answer = None
    paid = await stack.caller.ask(body, payment=header)
    assert answer in paid.json()["summary"]
    assert (await stack.caller.ask(body, payment=header)).content == paid.content
    assert (await stack.caller.ask(body + b" ", payment=header)).status_code == 409
    assert (await stack.caller.ask(payment=header.replace("A", "B", 9))).status_code in (400, 402, 409)
    for mistake in (body[:-1], request_body(f"{canary} is too short"), request_body(DOCUMENT, tone=canary)):
        assert (await stack.caller.ask(mistake, payment=header)).status_code in (400, 422)
    for wrong in ({"value": PRICE + 1}, {"signing_key": "0x" + "55" * 32}, {"valid_before": 1_000_000_000}):
        assert (await stack.caller.ask(body, payment=await stack.caller.payment(body, **wrong))).status_code == 402

    keys = (stack.chain.operator_key, stack.chain.owner_key, stack.chain.buyer_key)
    secrets = {"the document": canary, "the answer": answer, "the payment's signature": signature}
    secrets |= {f"a private key ({number})": key.removeprefix("0x") for number, key in enumerate(keys)}
    log = "\n".join(text.lower() for text in texts_of(caplog.records))
    assert "select" in log or "http" in log, "something was logged, so that this test means something"
    for what, secret in secrets.items():
        assert secret.lower() not in log, f"{what} is in the log"

    stored = stack.ledger.raw()
    assert paid.headers["x-receipt-id"].encode() in stored, "this is the ledger"
    for what in ("the document", "the answer"):
        assert secrets[what].encode() not in stored, f"{what} is in the ledger"
        assert b64(secrets[what].encode())[4:-4].encode() not in stored, f"{what} is in the ledger, encoded"
    for key in keys:
        assert key.removeprefix("0x").encode() not in stored
        assert bytes.fromhex(key.removeprefix("0x")) not in stored

    for exchange in stack.caller.seen[first_seen:]:
        text = exchange.body.decode().lower() + repr(exchange.headers).lower()
        if exchange.status != 200:
            assert canary not in text, f"a {exchange.status} quotes the document"
        for what, secret in secrets.items():
            if what not in ("the document", "the answer"):
                assert secret.lower() not in text, f"a {exchange.status} shows {what}"


async def test_no_key_is_shown_by_anything_that_is_served_or_printed(stack: Stack) -> None:
    key = stack.chain.operator_key.removeprefix("0x")
    for path in (
        "/readyz",
        "/docs",
        "/openapi.json",
        "/v1/aci/attestation",
        "/.well-known/agent-registration.json",
        "/.well-known/http-message-signatures-directory",
        "/.well-known/tee-manifest.json",
    ):
        assert key not in (await stack.caller.get(path)).text
    assert key not in repr(stack.service.settings)
    assert key not in stack.service.settings.model_dump_json()
    assert key not in repr(stack.service.keyholder.current.keys)
    assert key not in repr(stack.chain)


async def test_a_payment_shows_its_signature_to_nobody(stack: Stack) -> None:
    """The ledger keeps it, in a file that only its owner can read: it may have to be settled after a restart."""
    header = await stack.caller.payment()
    signature = decode_payment_header(header).payload["signature"].removeprefix("0x")
    assert (await stack.caller.ask(payment=header)).status_code in (200, 409)
    assert signature.encode() in stack.ledger.raw()
    for file in stack.ledger.path.parent.glob(f"{stack.ledger.path.name}*"):
        assert file.stat().st_mode & 0o077 == 0, f"{file.name} can be read by others"
