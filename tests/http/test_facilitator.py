"""Our facilitator as others use it: with the official SDK's client, with strange requests, and when it is busy."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.schemas import SettleResponse, SupportedResponse, VerifyResponse

from service.app import create_app
from service.boot import BootError, boot
from service.http import facilitator as resource
from service.http import problems
from service.http.facilitator import MAX_BODY_BYTES, router_for
from service.localchain.anvil import Anvil
from service.localchain.deploy import LocalChain
from service.payment.local import LocalFacilitator
from service.pricing import Asset
from service.settings import Settings
from tests.http.conftest import Stack, running
from tests.http.world import Caller, problem_of
from tests.payments import PRICE, as_document, offer, pay

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

STRANGER = "0x" + "77" * 20
"""Somebody else who sells something."""


def asset_of(chain: LocalChain) -> Asset:
    return Asset(f"eip155:{chain.chain_id}", chain.token, 6, "USDC", "2", "USDC")


def local(chain: LocalChain, **options: Any) -> LocalFacilitator:
    return LocalFacilitator(rpc_url=chain.rpc, operator_key=chain.operator_key, assets=[asset_of(chain)], **options)


def body(chain: LocalChain, **deviations: Any) -> dict[str, Any]:
    """A request about a payment to a stranger."""
    requirements = offer(asset_of(chain), pay_to=STRANGER)
    payload = pay(requirements, **{"key": chain.buyer_key, **deviations})
    return {
        "x402Version": 2,
        "paymentPayload": as_document(payload),
        "paymentRequirements": requirements.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


@asynccontextmanager
async def desk(facilitator: LocalFacilitator) -> AsyncIterator[httpx.AsyncClient]:
    """The resources alone."""
    app = FastAPI()
    problems.install(app)
    app.include_router(router_for((facilitator,)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://facilitator.test", timeout=30) as client:
        yield client


async def test_the_official_client_verifies_and_settles_here(stack: Stack) -> None:
    """Through the whole service, whose responses are signed; the recipient is somebody else."""
    facilitator = local(stack.chain)
    app = create_app(replace(stack.service, served=(facilitator,)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=stack.url, timeout=30) as http:
        client = HTTPFacilitatorClient(FacilitatorConfig(url=f"{stack.url}/facilitator", http_client=http))
        requirements = offer(asset_of(stack.chain), pay_to=STRANGER)
        payload = pay(requirements, key=stack.chain.buyer_key)
        before = await stack.reader.token_balance(stack.chain.token, STRANGER)
        verified = await client.verify(payload, requirements)
        assert verified.is_valid
        first = await client.settle(payload, requirements)
        second = await client.settle(payload, requirements)
        assert first.success
        assert (first.network, first.amount) == (requirements.network, str(PRICE))
        assert second.transaction == first.transaction
        assert await stack.reader.token_balance(stack.chain.token, STRANGER) == before + PRICE
        assert (await client.verify(payload, requirements)).invalid_reason == "invalid_exact_evm_nonce_already_used"

        caller = Caller(http, stack.caller.keyset, stack.chain.buyer_key, stack.caller.clock)  # checks signatures
        supported = SupportedResponse.model_validate((await caller.get("/facilitator/supported")).json())
        (kind,) = supported.kinds
        assert (kind.x402_version, kind.scheme, kind.network) == (2, "exact", requirements.network)
        assert supported.signers == {requirements.network: [stack.chain.operator]}
        await caller.send("POST", "/facilitator/verify", json=body(stack.chain))
    await facilitator.close()


async def test_it_is_not_there_unless_it_is_enabled(stack: Stack) -> None:
    assert (await stack.caller.get("/facilitator/supported")).status_code == 404


async def test_a_setting_enables_it(anvil: Anvil, tmp_path: Path) -> None:
    async with running(anvil, tmp_path, serve_facilitator="true") as own:
        assert (await own.caller.get("/facilitator/supported")).status_code == 200
        answer = await own.caller.send("POST", "/facilitator/settle", json=body(own.chain))
        assert answer.json()["success"]


async def test_only_our_own_facilitator_can_be_served(stack: Stack) -> None:
    changed = {"facilitator": "http://127.0.0.1:9", "serve_facilitator": True}
    remote = Settings.model_validate(stack.service.settings.model_dump() | changed)
    with pytest.raises(BootError, match="only our own can be served"):
        async with boot(remote):
            pass


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"valid_before": 1_000_000_000}, "invalid_exact_evm_payload_authorization_valid_before"),
    "other amount": ({"value": PRICE + 1}, "invalid_exact_evm_payload_authorization_value_mismatch"),
    "other recipient": ({"to": "0x" + "55" * 20}, "invalid_exact_evm_payload_recipient_mismatch"),
    "other key": ({"signing_key": "0x" + "55" * 32}, "invalid_exact_evm_payload_signature"),
    "no money": ({"key": "0x" + "66" * 32}, "invalid_exact_evm_insufficient_balance"),
}


@pytest.mark.parametrize("name", list(BAD))
async def test_an_invalid_payment_is_an_answer_and_no_error(chain: LocalChain, name: str) -> None:
    deviations, reason = BAD[name]
    facilitator = local(chain)
    async with desk(facilitator) as client:
        for path, model in (("verify", VerifyResponse), ("settle", SettleResponse)):
            response = await client.post(f"/facilitator/{path}", json=body(chain, **deviations))
            assert response.status_code == 200
            answer = model.model_validate_json(response.content)
            said = answer.invalid_reason if isinstance(answer, VerifyResponse) else answer.error_reason
            assert said == reason
    await facilitator.close()


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "another token": ({"asset": STRANGER}, "invalid_payment_requirements"),
    "another network": ({"network": "eip155:1"}, "network_mismatch"),
    "another scheme": ({"scheme": "upto"}, "unsupported_scheme"),
    "another name of the token": ({"extra": {"name": "Gold", "version": "2"}}, "invalid_exact_evm_token_name_mismatch"),
    "no name of the token": ({"extra": {}}, "invalid_exact_evm_token_name_mismatch"),
    "an amount in words": ({"amount": "ten"}, "invalid_payment_requirements"),
    "a negative amount": ({"amount": "-1"}, "invalid_payment_requirements"),
    "a recipient that is none": ({"payTo": "me"}, "invalid_payment_requirements"),
    "an asset that is none": ({"asset": "USDC"}, "invalid_payment_requirements"),
    "a number for a network": ({"network": 1}, "invalid_payment_requirements"),
}


@pytest.mark.parametrize("name", list(FOREIGN))
async def test_terms_that_are_not_settled_here_are_refused_by_name(chain: LocalChain, name: str) -> None:
    changes, reason = FOREIGN[name]
    facilitator = local(chain)
    request = body(chain)
    request["paymentRequirements"] |= changes
    request["paymentPayload"]["accepted"] |= changes
    async with desk(facilitator) as client:
        verified = await client.post("/facilitator/verify", json=request)
        assert (verified.status_code, verified.json()["invalidReason"]) == (200, reason)
        settled = await client.post("/facilitator/settle", json=request)
        assert (settled.status_code, settled.json()["errorReason"]) == (200, reason)
    await facilitator.close()


async def test_requests_that_are_none_are_problems(chain: LocalChain) -> None:
    facilitator = local(chain)
    good = body(chain)
    async with desk(facilitator) as client:
        for path in ("/facilitator/verify", "/facilitator/settle"):
            for missing in ("paymentPayload", "paymentRequirements"):
                short = {name: value for name, value in good.items() if name != missing}
                problem_of(await client.post(path, json=short), 400, "malformed-body", missing)
            problem_of(await client.post(path, json=[]), 400, "malformed-body", "body")
            problem_of(await client.post(path, data={"a": "b"}), 415, "not-json", "content-type")
            long = json.dumps({**good, "pad": "x" * MAX_BODY_BYTES})
            headers = {"content-type": "application/json"}
            problem_of(await client.post(path, content=long, headers=headers), 413, "body-too-large", "body")
            for version in (1, 3, True, "2", None):
                answer = (await client.post(path, json={**good, "x402Version": version})).json()
                assert "invalid_x402_version" in (answer.get("invalidReason"), answer.get("errorReason"))
    await facilitator.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["0x", "eip155:84532", "exact"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
async def test_no_request_breaks_it(chain: LocalChain, data: st.DataObject) -> None:
    request = body(chain, valid_before=1_000)
    places = [request, request["paymentRequirements"], request["paymentPayload"]]
    places += [request["paymentPayload"]["accepted"], request["paymentPayload"]["payload"]]
    places += [request["paymentPayload"]["payload"]["authorization"]]
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(json_values)
    facilitator = local(chain)
    async with desk(facilitator) as client:
        for path in ("verify", "settle"):
            response = await client.post(f"/facilitator/{path}", json=request)
            assert response.status_code in (200, 400)
            assert not response.json().get("isValid")
            assert not response.json().get("success")
    await facilitator.close()


async def test_a_chain_that_is_away_is_a_503_and_not_an_invalid_payment(chain: LocalChain) -> None:
    facilitator = LocalFacilitator(
        rpc_url="http://127.0.0.1:9/secret-key", operator_key=chain.operator_key, assets=[asset_of(chain)]
    )
    async with desk(facilitator) as client:
        for path in ("verify", "settle"):
            response = await client.post(f"/facilitator/{path}", json=body(chain))
            problem_of(response, 503, "facilitator-unavailable")
            assert response.headers["retry-after"] == "2"
            assert "secret-key" not in response.text
    await facilitator.close()


async def test_too_many_payments_at_once_are_sent_away(chain: LocalChain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "MAX_REQUESTS", 3)
    facilitator = local(chain)
    await facilitator.batches()
    async with desk(facilitator) as client:
        async with facilitator.exclusive():
            waiting = [asyncio.create_task(client.post("/facilitator/settle", json=body(chain))) for _ in range(3)]
            await asyncio.wait(waiting, timeout=0.5)
            refused = await client.post("/facilitator/verify", json=body(chain))
        problem_of(refused, 503, "facilitator-unavailable")
        assert all(response.json()["success"] for response in await asyncio.gather(*waiting))
        assert (await client.post("/facilitator/verify", json=body(chain))).json()["isValid"]
    await facilitator.close()


async def test_a_settlement_that_takes_too_long_is_pending(chain: LocalChain) -> None:
    facilitator = local(chain, confirmation_timeout_seconds=0.2)
    request = body(chain)
    async with desk(facilitator) as client:
        async with facilitator.exclusive():
            answer = (await client.post("/facilitator/settle", json=request)).json()
        assert (answer["success"], answer["errorReason"]) == (False, "settlement_pending")
    await facilitator.close()
