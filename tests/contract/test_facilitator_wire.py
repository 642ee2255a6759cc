"""Facilitators that break HTTP itself, and several that stand in for each other."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from eth_account import Account

from service.localchain.deploy import Deployer, LocalChain
from service.payment.authorization import Authorization
from service.payment.breaker import FAILURES, OPEN_SECONDS
from service.payment.facilitator import FacilitatorUnavailableError, Invalid, Rejected, Settled, Unknown, Verified
from service.payment.local import LocalFacilitator
from service.payment.remote import RemoteFacilitator
from service.pricing import Asset
from tests.facilitators import serving, working
from tests.payments import TOKEN, authorize, offer
from tests.wires import Wire, http, listening

TRANSACTION = "0x" + "ab" * 32
YES = json.dumps({"isValid": True, "success": True, "transaction": TRANSACTION, "network": TOKEN.network}).encode()
NOWHERE = "http://127.0.0.1:1"


@asynccontextmanager
async def asking(*wires: Wire, **options: Any) -> AsyncIterator[RemoteFacilitator]:
    async with listening(*wires) as urls:
        facilitator = RemoteFacilitator(**{"url": urls, "assets": [TOKEN], "timeout_seconds": 0.5, **options})
        try:
            yield facilitator
        finally:
            await facilitator.close()


BROKEN: dict[str, Callable[[], Wire]] = {
    "half an answer": lambda: Wire([http(YES[:20], length=len(YES))], hang_up=True),
    "a drip that never ends": lambda: Wire([http(b"", length=10_000), *[b" "] * 1_000], pause=0.05),
    "headers without end": lambda: Wire([b"HTTP/1.1 200 OK\r\n", *[b"x: y\r\n"] * 1_000], pause=0.05),
    "one endless header": lambda: Wire([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000]),
    "no HTTP": lambda: Wire([b"SSH-2.0-OpenSSH_9.9\r\n"]),
    "a hangup": lambda: Wire([], hang_up=True),
    "two lengths": lambda: Wire([b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n" + http(YES).partition(b"\r\n")[2]]),
    "another protocol": lambda: Wire(
        [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"]
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
async def test_what_is_no_http_is_neither_yes_nor_no(name: str) -> None:
    async with asking(BROKEN[name]()) as facilitator:
        with pytest.raises(FacilitatorUnavailableError):
            await facilitator.verify(authorize())
    async with asking(BROKEN[name]()) as facilitator:
        assert isinstance(await facilitator.settle(authorize()), Unknown)


async def test_a_second_answer_is_nobodys_answer() -> None:
    """Two responses to one request: the second must not be taken for the answer to the next payment."""
    refusal = json.dumps({"isValid": False, "invalidReason": "insufficient_funds"}).encode()
    wire = Wire([http(refusal) + http(YES)])
    async with asking(wire) as facilitator:
        for _ in range(4):
            try:
                assert isinstance(await facilitator.verify(authorize()), Invalid)
            except FacilitatorUnavailableError:
                continue


async def test_a_facilitator_that_is_slow_but_in_time_is_waited_for() -> None:
    async with asking(Wire([http(YES)[:90], http(YES)[90:]], pause=0.1)) as facilitator:
        assert isinstance(await facilitator.settle(authorize()), Settled)


# Several facilitators

UNUSABLE = [http(YES, status="500 x"), http(b"{}"), http(b"garbage"), b"", http(YES[:9], length=99)]

Question = Callable[[RemoteFacilitator], Awaitable[Any]]


async def verify(facilitator: RemoteFacilitator) -> Any:
    return await facilitator.verify(authorize())


async def settle(facilitator: RemoteFacilitator) -> Any:
    return await facilitator.settle(authorize())


async def test_the_first_facilitator_is_asked_and_no_other() -> None:
    first, second = Wire([http(YES)]), Wire([http(YES)])
    async with asking(first, second) as facilitator:
        assert isinstance(await verify(facilitator), Verified)
        assert isinstance(await settle(facilitator), Settled)
    assert [path for path, _ in first.requests] == ["/verify", "/settle"]
    assert second.requests == []


@pytest.mark.parametrize("question", [verify, settle])
async def test_a_facilitator_that_is_not_there_is_stood_in_for(question: Question) -> None:
    second = Wire([http(YES)])
    async with listening(second) as urls, asking(url=[NOWHERE, *urls]) as facilitator:
        assert isinstance(await question(facilitator), Verified | Settled)
    assert len(second.requests) == 1


@pytest.mark.parametrize(
    "bad", [http(YES, status="500 x"), http(b"{}"), http(b"garbage"), b"", http(YES[:9], length=99)]
)
async def test_a_verification_goes_on_to_the_next_facilitator(bad: bytes) -> None:
    first, second = Wire([bad]), Wire([http(YES)])
    async with asking(first, second) as facilitator:
        assert isinstance(await verify(facilitator), Verified)
    assert len(second.requests) == 1


async def test_a_refused_payment_is_not_shown_around() -> None:
    no = json.dumps({"isValid": False, "invalidReason": "insufficient_funds"}).encode()
    first, second = Wire([http(no)]), Wire([http(YES)])
    async with asking(first, second) as facilitator:
        assert isinstance(await verify(facilitator), Invalid)
    assert second.requests == []


@pytest.mark.parametrize(
    "bad", [http(YES, status="500 x"), http(b"{}"), http(b"garbage"), b"", http(YES[:9], length=99)]
)
async def test_a_settlement_that_one_facilitator_may_have_goes_to_no_other(bad: bytes) -> None:
    first, second = Wire([bad]), Wire([http(YES)])
    async with asking(first, second) as facilitator:
        assert isinstance(await settle(facilitator), Unknown)
    assert len(first.requests) == 1, "and it is not sent twice"
    assert second.requests == []


async def test_one_facilitator_that_works_is_readiness_enough() -> None:
    kinds = {"kinds": [{"x402Version": 2, "scheme": "exact", "network": TOKEN.network}]}
    broken, good = Wire([http(YES, status="500 x")]), Wire([http(json.dumps(kinds).encode())])
    async with asking(broken, good) as facilitator:
        assert await facilitator.ready() == []
    async with asking(broken, Wire([http(b'{"kinds":[]}')])) as facilitator:
        first, second = await facilitator.ready()
        assert "status 500" in first
        assert "does not support exact payments" in second


async def test_who_fails_again_and_again_is_left_alone_and_then_tried_with_one_request() -> None:
    now = [0.0]
    first, second = Wire([http(YES, status="503 x")]), Wire([http(YES)])
    async with asking(first, second, clock=lambda: now[0]) as facilitator:
        for _ in range(FAILURES + 3):
            assert isinstance(await verify(facilitator), Verified)
        assert len(first.requests) == FAILURES
        assert isinstance(await settle(facilitator), Settled), "with the circuit open nothing was sent to the first"
        now[0] += OPEN_SECONDS
        await asyncio.gather(*(verify(facilitator) for _ in range(5)))
        assert len(first.requests) == FAILURES + 1, "one probe, not five"
        now[0] += OPEN_SECONDS
        first.pieces = [http(YES)]
        for _ in range(3):
            await verify(facilitator)
        assert len(first.requests) == FAILURES + 4, "it works again and is asked first again"


async def test_a_verification_that_met_a_closing_connection_is_repeated_and_a_settlement_is_not() -> None:
    wire = Wire([http(YES)], first=[])
    async with asking(wire) as facilitator:
        assert isinstance(await verify(facilitator), Verified)
    assert len(wire.requests) == 2
    wire = Wire([http(YES)], first=[])
    async with asking(wire) as facilitator:
        assert isinstance(await settle(facilitator), Unknown)
    assert len(wire.requests) == 1


async def test_a_settlement_that_could_be_sent_to_nobody_is_tried_once_more() -> None:
    wire = Wire([http(YES)])
    async with listening(wire) as (url,):
        port = int(url.rpartition(":")[2])
    facilitator = RemoteFacilitator(url=url, assets=[TOKEN], timeout_seconds=2)
    settling = asyncio.create_task(settle(facilitator))
    await asyncio.sleep(0.1)
    server = await asyncio.start_server(wire, "127.0.0.1", port)
    assert isinstance(await settling, Settled)
    assert len(wire.requests) == 1
    await facilitator.close()
    server.close()


async def test_with_every_circuit_open_the_sentence_says_why() -> None:
    wire = Wire([http(YES, status="503 x")])
    async with asking(wire) as facilitator:
        for _ in range(FAILURES // 2):
            with pytest.raises(FacilitatorUnavailableError, match="status 503"):
                await verify(facilitator)
        for _ in range(2):
            with pytest.raises(FacilitatorUnavailableError, match="failed several times in a row"):
                await verify(facilitator)
    assert len(wire.requests) == FAILURES


async def test_a_credential_goes_to_its_facilitator_only_and_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    first, second = Wire([http(YES, status="500 x")]), Wire([http(YES)])
    async with listening(first, second) as urls:
        secret = {urls[0]: "Bearer s3cret-canary"}
        facilitator = RemoteFacilitator(url=urls, assets=[TOKEN], authorizations=secret)
        assert isinstance(await verify(facilitator), Verified)
        result = await settle(facilitator)
        await facilitator.close()
    assert {headers.get("authorization") for _, headers in first.requests} == {"Bearer s3cret-canary"}
    assert {headers.get("authorization") for _, headers in second.requests} == {None}
    assert "s3cret-canary" not in caplog.text + repr(result)


# With a chain


def paying(chain: LocalChain) -> tuple[Asset, Authorization]:
    asset = Asset(f"eip155:{chain.chain_id}", chain.token, 6, "USDC", "2", "USDC")
    return asset, authorize(offer(asset, pay_to=chain.pay_to), key=chain.buyer_key)


async def test_a_settlement_that_happened_and_was_denied_is_found_on_the_chain(chain: LocalChain) -> None:
    asset, authorization = paying(chain)
    own = LocalFacilitator(rpc_url=chain.rpc, operator_key=chain.operator_key, assets=[asset])
    settled = await own.settle(authorization)
    assert isinstance(settled, Settled)
    await own.close()
    denial = json.dumps({"success": False, "errorReason": "insufficient_funds", "transaction": "", "network": "x"})
    for pieces in ([http(denial.encode())], [http(YES, status="500 x")], [b""], [http(b"garbage")]):
        async with asking(Wire(pieces), assets=[asset], rpc_url=chain.rpc) as facilitator:
            found = await facilitator.settle(authorization)
            assert isinstance(found, Settled), pieces
            assert found.transaction == settled.transaction


async def test_a_refusal_is_no_proof_while_an_earlier_attempt_is_on_its_way_into_the_depth(chain: LocalChain) -> None:
    asset, authorization = paying(chain)
    own = LocalFacilitator(rpc_url=chain.rpc, operator_key=chain.operator_key, assets=[asset])
    assert isinstance(await own.settle(authorization), Settled)
    await own.close()
    denial = json.dumps({"success": False, "errorReason": "insufficient_funds", "transaction": ""}).encode()
    options = {"assets": [asset], "rpc_url": chain.rpc, "settlement_depth": 3}
    async with asking(Wire([http(denial)]), **options) as facilitator:
        assert isinstance(await facilitator.settle(authorization), Unknown)
        _, other = paying(chain)
        assert isinstance(await facilitator.settle(other), Rejected), "that one never was on its way"


async def test_a_transfer_counts_when_it_is_as_deep_as_the_settings_say(chain: LocalChain) -> None:
    asset, authorization = paying(chain)
    node = Deployer(chain.rpc, Account.from_key(chain.owner_key))
    inner = working(LocalFacilitator(rpc_url=chain.rpc, operator_key=chain.operator_key, assets=[asset]))
    with serving(inner) as url:
        facilitator = RemoteFacilitator(
            url=f"{url}/facilitator",
            assets=[asset],
            rpc_url=chain.rpc,
            settlement_depth=3,
            confirmation_timeout_seconds=0.0,
        )
        assert isinstance(await facilitator.settle(authorization), Unknown), "one block is not three"
        node.anvil("evm_mine")
        assert isinstance(await facilitator.settle(authorization), Unknown)
        node.anvil("evm_mine")
        assert isinstance(await facilitator.settle(authorization), Settled)
        await facilitator.close()
