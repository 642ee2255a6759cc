"""Settling many payments in few transactions, on real chains that do what chains do."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3.contract import Contract
from web3.exceptions import Web3Exception
from web3.types import Nonce, TxParams, Wei

from service.localchain.anvil import Anvil
from service.localchain.deploy import MULTICALL3, Deployer, LocalChain, artifact, deploy
from service.localchain.toolchain import ensure_anvil
from service.payment.authorization import Authorization
from service.payment.facilitator import Invalid, Rejected, Settled, SettleResult, Unknown, Unused, Used, Verified
from service.payment.local import LocalFacilitator
from service.payment.sender import Pace
from service.payment.settler import Pipeline
from service.pricing import Asset
from tests.chain import CACHE_DIR
from tests.nodes import Proxy, between
from tests.payments import PRICE, authorize, offer

QUICK = Pace(poll=0.05, resend=0.2, replace=0.6, patience=0.4)
"""Seconds instead of tens of seconds, for chains that are made to misbehave."""

ENDLESS = "0x5b600056"
"""Code that uses up all gas: JUMPDEST, PUSH1 0, JUMP."""


@dataclass
class World:
    """A chain of its own, what is done to it, and payers."""

    chain: LocalChain
    deployer: Deployer
    token: Contract
    opened: list[LocalFacilitator] = field(default_factory=list)

    def anvil(self, method: str, *params: object) -> Any:
        return self.deployer.anvil(method, *params)

    @property
    def asset(self) -> Asset:
        return Asset(f"eip155:{self.chain.chain_id}", self.chain.token, 6, "USDC", "2", "USDC")

    def facilitator(self, *, rpc: str | None = None, **options: Any) -> LocalFacilitator:
        options = {"operator_key": self.chain.operator_key, "assets": [self.asset], "pace": QUICK, **options}
        self.opened.append(LocalFacilitator(rpc_url=rpc or self.chain.rpc, **options))
        return self.opened[-1]

    def payment(self, payer: LocalAccount | None = None, **deviations: Any) -> Authorization:
        """The price, paid by an account or by the chain's buyer."""
        key = self.chain.buyer_key if payer is None else "0x" + bytes(payer.key).hex()
        return authorize(offer(self.asset, pay_to=self.chain.pay_to), key=key, **deviations)

    def payer(self, amount: int = 100 * PRICE) -> LocalAccount:
        """A new account with dollars."""
        account: LocalAccount = Account.create()
        if amount:
            self.deployer.send(self.token.functions.mint(account.address, amount))
        return account

    def earned(self) -> int:
        balance: int = self.token.functions.balanceOf(self.chain.pay_to).call()
        return balance

    def sent(self) -> int:
        """Transactions of the operator that are in blocks."""
        return self.deployer.w3.eth.get_transaction_count(self.operator)

    @property
    def operator(self) -> Any:
        return self.deployer.w3.to_checksum_address(self.chain.operator)

    def nothing_from_operator(self, nonce: int) -> None:
        """Somebody else who has the operator's key sends with this nonce, and pays well for it."""
        operator: LocalAccount = Account.from_key(self.chain.operator_key)
        fees = {"type": 2, "maxFeePerGas": 10**11, "maxPriorityFeePerGas": 10**11, "gas": 21_000}
        where = {"chainId": self.chain.chain_id, "nonce": nonce, "to": self.operator, "value": 0}
        signed = operator.sign_transaction({**fees, **where})
        self.deployer.w3.eth.send_raw_transaction(signed.raw_transaction)

    def gas_used(self, transaction: str) -> int:
        return int(self.deployer.w3.eth.get_transaction_receipt(transaction)["gasUsed"])  # type: ignore[arg-type]

    def pool(self) -> list[str]:
        """Hashes of the transactions that wait for a block."""
        pending = self.anvil("txpool_content")["pending"]
        return [one["hash"] for by_nonce in pending.values() for one in by_nonce.values()]

    async def pooled(self, count: int = 1) -> list[str]:
        """As `pool`, once so many wait."""
        waiting: list[str] = await until(lambda: found if len(found := self.pool()) >= count else None)
        return waiting


async def until(found: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `found` returns, as soon as it is something."""
    deadline = time.monotonic() + seconds
    while True:
        value = await asyncio.to_thread(found)
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with Anvil(ensure_anvil(CACHE_DIR)) as node:
        chain = deploy(node.rpc)
        deployer = Deployer(chain.rpc, Account.from_key(chain.owner_key))
        w3 = deployer.w3
        token = w3.eth.contract(address=w3.to_checksum_address(chain.token), abi=artifact("UsdToken")["abi"])
        world = World(chain, deployer, token)
        yield world
        for facilitator in world.opened:
            await facilitator.close()


@pytest.fixture
def facilitator(world: World) -> LocalFacilitator:
    return world.facilitator()


@contextlib.asynccontextmanager
async def through_proxy(world: World, **options: Any) -> AsyncIterator[tuple[LocalFacilitator, Proxy]]:
    async with between(world.chain.rpc) as proxy:
        facilitator = world.facilitator(rpc=proxy.url, **options)
        yield facilitator, proxy
        proxy.change, proxy.raw, proxy.withheld = None, None, set()
        await facilitator.close()


def settled(result: SettleResult) -> Settled:
    assert isinstance(result, Settled), result
    return result


async def all_of(*settlements: Awaitable[SettleResult]) -> list[SettleResult]:
    return list(await asyncio.gather(*settlements))


async def test_one_transaction_settles_many_and_a_bad_one_sinks_nobody(
    world: World, facilitator: LocalFacilitator
) -> None:
    poor, blind = world.payer(PRICE - 1), world.payer()
    spent = world.payment()
    settled(await facilitator.settle(spent))
    before = world.sent()
    good = [world.payment(world.payer()) for _ in range(3)]
    bad = {
        "insufficient_balance": world.payment(poor),
        "valid_before": world.payment(valid_before=int(time.time()) - 100_000),
        "signature": world.payment(blind, signing_key="0x" + "77" * 32),
    }
    results = await all_of(*(facilitator.settle(one) for one in [*good, *bad.values(), spent]))
    assert len({settled(one).transaction for one in results[:3]}) == 1
    for word, result in zip(bad, results[3:6], strict=True):
        assert isinstance(result, Rejected)
        assert word in result.reason
    settled(results[6])
    assert world.earned() == 4 * PRICE
    assert world.sent() == before + 1


async def test_a_transfer_that_fails_in_its_block_gets_its_own_reason(
    world: World, facilitator: LocalFacilitator
) -> None:
    """The payer takes the money away after the simulation, in the same block but before the batch."""
    thief, others = world.payer(PRICE), [world.payer() for _ in range(4)]
    world.deployer.fund(thief.address)
    await facilitator.batches()
    world.anvil("evm_setAutomine", False)
    payers = [*others[:2], thief, *others[2:]]
    tasks = [asyncio.create_task(facilitator.settle(world.payment(one))) for one in payers]
    await world.pooled()
    call = world.token.functions.transfer(world.chain.owner, PRICE)
    fee = Wei(10**11)
    terms: TxParams = {"maxFeePerGas": fee, "maxPriorityFeePerGas": fee, "gas": 100_000, "nonce": Nonce(0)}
    unsigned = call.build_transaction({"from": thief.address, "chainId": world.chain.chain_id, **terms})
    signed = thief.sign_transaction(cast(dict[str, Any], unsigned))
    world.deployer.w3.eth.send_raw_transaction(signed.raw_transaction)
    world.anvil("evm_mine")
    world.anvil("evm_setAutomine", True)
    results = await asyncio.gather(*tasks)
    lost = results.pop(2)
    assert isinstance(lost, Rejected)
    assert "insufficient_balance" in lost.reason
    assert len({settled(one).transaction for one in results}) == 1
    assert world.earned() == 4 * PRICE


async def test_slow_blocks_get_few_and_full_transactions(world: World, facilitator: LocalFacilitator) -> None:
    payers = [world.payer() for _ in range(5)]
    payments = [world.payment(payers[number % 5]) for number in range(250)]
    before = world.sent()
    world.anvil("evm_setAutomine", False)
    world.anvil("evm_setIntervalMining", 2)
    results = await all_of(*(facilitator.settle(one) for one in payments))
    blocks = {settled(one).block for one in results}
    assert len(blocks) <= 3
    assert world.sent() - before <= 5
    assert world.earned() == 250 * PRICE


async def test_a_payment_in_a_batch_costs_at_most_three_fifths_of_one_alone(
    world: World, facilitator: LocalFacilitator
) -> None:
    payers = [world.payer() for _ in range(10)]
    world.deployer.send(world.token.functions.mint(world.chain.pay_to, 1))
    alone = settled(await facilitator.settle(world.payment(payers[0])))
    payments = [world.payment(payers[number % 10]) for number in range(101)]
    results = [settled(one) for one in await all_of(*(facilitator.settle(one) for one in payments))]
    batch = max({one.transaction for one in results}, key=world.gas_used)
    together = sum(one.transaction == batch for one in results)
    assert together >= 50
    assert world.gas_used(batch) / together <= 0.6 * world.gas_used(alone.transaction)


@pytest.mark.parametrize("depth", [2, 3])
async def test_nothing_is_settled_before_it_is_deep_enough(world: World, depth: int) -> None:
    facilitator = world.facilitator(depth=depth)
    payment = world.payment()
    task = asyncio.create_task(facilitator.settle(payment))
    await until(lambda: world.earned() == PRICE)
    for _ in range(depth - 1):
        await asyncio.wait([task], timeout=0.3)
        assert not task.done()
        assert not isinstance(await facilitator.outcome(payment), Used)
        world.anvil("evm_mine")
    settled(await task)
    assert isinstance(await facilitator.outcome(payment), Used)


async def test_a_payment_whose_block_is_replaced_is_sent_again_and_not_settled_before(world: World) -> None:
    facilitator = world.facilitator(depth=2)
    payment = world.payment()
    task = asyncio.create_task(facilitator.settle(payment))
    await until(lambda: world.earned() == PRICE)
    mined = world.deployer.w3.eth.block_number
    world.anvil("evm_setAutomine", False)
    world.anvil("anvil_reorg", 1, [])
    for hash_ in world.pool():
        world.anvil("anvil_dropTransaction", hash_)
    assert world.earned() == 0
    world.anvil("evm_mine")
    await asyncio.wait([task], timeout=0.3)
    assert not task.done(), "the block it was in does not exist any more"
    await world.pooled()
    world.anvil("evm_mine")
    world.anvil("evm_mine")
    result = settled(await task)
    assert result.block is not None
    assert result.block > mined
    assert world.earned() == PRICE


async def test_a_dropped_transaction_is_sent_again(world: World) -> None:
    facilitator = world.facilitator(pace=replace(QUICK, replace=60.0))
    await facilitator.batches()
    world.anvil("evm_setAutomine", False)
    task = asyncio.create_task(facilitator.settle(world.payment()))
    (first,) = await world.pooled()
    world.anvil("anvil_dropTransaction", first)
    assert world.pool() == []
    assert await world.pooled() == [first]
    world.anvil("evm_mine")
    settled(await task)
    assert world.earned() == PRICE


async def test_a_transaction_that_pays_too_little_is_replaced_by_one_that_pays_more(
    world: World, facilitator: LocalFacilitator
) -> None:
    await facilitator.batches()
    world.anvil("evm_setAutomine", False)
    before = world.sent()
    task = asyncio.create_task(facilitator.settle(world.payment()))
    (first,) = await world.pooled()
    world.anvil("anvil_setNextBlockBaseFeePerGas", hex(20 * 10**9))
    world.anvil("evm_mine")
    assert world.earned() == 0, "its fee is below the block's"
    (second,) = await until(lambda: found if (found := world.pool()) != [first] and found else None)
    world.anvil("evm_mine")
    result = settled(await task)
    assert result.transaction == second
    assert world.earned() == PRICE
    assert world.sent() == before + 1


async def test_nothing_is_sent_while_gas_costs_more_than_we_pay(world: World) -> None:
    facilitator = world.facilitator(max_fee_wei=30 * 10**9)
    assert await facilitator.ready() == []
    world.anvil("anvil_setNextBlockBaseFeePerGas", hex(50 * 10**9))
    world.anvil("evm_mine")
    before = world.sent()
    result = await facilitator.settle(world.payment())
    assert isinstance(result, Unknown)
    assert "max_fee_wei" in result.reason
    (problem,) = await facilitator.ready()
    assert "max_fee_wei" in problem
    assert (world.sent(), world.earned()) == (before, 0)


async def test_an_operator_key_that_somebody_else_uses_too_settles_all_the_same(
    world: World, facilitator: LocalFacilitator
) -> None:
    assert await facilitator.batches()

    async def disturb() -> None:
        with contextlib.suppress(Web3Exception):  # also when the nonce is taken by a settlement
            await asyncio.to_thread(world.nothing_from_operator, await asyncio.to_thread(world.sent))

    results = []
    for _ in range(20):
        result, _ = await asyncio.gather(facilitator.settle(world.payment()), disturb())
        results.append(result)
    assert all(isinstance(one, Settled) for one in results), results
    assert world.earned() == 20 * PRICE


async def test_a_transaction_whose_nonce_somebody_else_has_used_is_made_anew(
    world: World, facilitator: LocalFacilitator
) -> None:
    await facilitator.batches()
    world.anvil("evm_setAutomine", False)
    nonce = world.sent()
    task = asyncio.create_task(facilitator.settle(world.payment()))
    await world.pooled()
    world.nothing_from_operator(nonce)
    world.anvil("evm_mine")
    assert world.earned() == 0
    await world.pooled()
    world.anvil("evm_mine")
    settled(await task)
    assert (world.earned(), world.sent()) == (PRICE, nonce + 2)


async def test_a_chain_that_goes_back_leaves_no_gap_in_the_nonces(world: World, facilitator: LocalFacilitator) -> None:
    """Two payments are settled, the chain forgets both, and a third is under way when it does."""
    await facilitator.batches()
    snapshot = world.anvil("evm_snapshot")
    for _ in range(2):
        settled(await facilitator.settle(world.payment()))
    world.anvil("evm_setAutomine", False)
    task = asyncio.create_task(facilitator.settle(world.payment()))
    await world.pooled()
    world.anvil("evm_revert", snapshot)
    world.anvil("evm_setAutomine", True)
    settled(await task)
    assert world.earned() == PRICE
    settled(await facilitator.settle(world.payment()))


async def test_a_wallet_that_burns_gas_starves_nobody_and_is_refused(
    world: World, facilitator: LocalFacilitator
) -> None:
    guzzler, honest = world.payer(), [world.payer() for _ in range(4)]
    world.anvil("anvil_setCode", guzzler.address, ENDLESS)
    payments = [world.payment(one) for one in honest]
    bad = world.payment(guzzler)
    verdicts = await asyncio.gather(*(facilitator.verify(one) for one in (*payments, bad)))
    assert [type(one) for one in verdicts] == [Verified] * 4 + [Invalid]
    *results, refused = await all_of(*(facilitator.settle(one) for one in (*payments, bad)))
    assert all(isinstance(one, Settled) for one in results)
    assert isinstance(refused, Rejected)


async def test_a_payer_that_becomes_a_wallet_after_the_simulation_is_singled_out(
    world: World, facilitator: LocalFacilitator
) -> None:
    """It uses up the gas of those behind it in the block; they are sent again without it."""
    await facilitator.batches()
    guzzler, honest = world.payer(), [world.payer() for _ in range(3)]
    before = world.sent()
    world.anvil("evm_setAutomine", False)
    keys = [honest[0], guzzler, *honest[1:]]
    tasks = [asyncio.create_task(facilitator.settle(world.payment(one))) for one in keys]
    await world.pooled()
    world.anvil("anvil_setCode", guzzler.address, ENDLESS)
    world.anvil("evm_mine")
    world.anvil("evm_setAutomine", True)
    results = await asyncio.gather(*tasks)
    refused = results.pop(1)
    assert isinstance(refused, Rejected)
    assert all(isinstance(one, Settled) for one in results), results
    assert world.earned() == 3 * PRICE
    assert world.sent() == before + 2, "those that were starved share a transaction again"


async def test_without_multicall3_every_payment_gets_a_transaction(world: World, facilitator: LocalFacilitator) -> None:
    world.anvil("anvil_setCode", MULTICALL3, "0x")
    assert await facilitator.ready() == []
    assert not await facilitator.batches()
    before = world.sent()
    results = await all_of(*(facilitator.settle(world.payment()) for _ in range(12)))
    assert len({settled(one).transaction for one in results}) == 12
    assert (world.sent() - before, world.earned()) == (12, 12 * PRICE)


async def test_more_payments_than_may_wait_are_sent_away_and_nothing_is_sent_for_them(world: World) -> None:
    facilitator = world.facilitator(pipeline=Pipeline(waiting=3), confirmation_timeout_seconds=1)
    await facilitator.batches()
    async with facilitator.exclusive():
        tasks = [asyncio.create_task(facilitator.settle(world.payment())) for _ in range(3)]
        await asyncio.wait(tasks, timeout=0.3)
        full = facilitator.busy
        refused = await facilitator.settle(world.payment())
    assert full
    assert isinstance(refused, Unknown)
    assert "nothing was sent" in refused.reason
    assert all(isinstance(one, Settled) for one in await asyncio.gather(*tasks))
    assert not facilitator.busy
    assert world.earned() == 3 * PRICE


async def test_an_operator_with_little_gas_money_sends_smaller_batches(world: World) -> None:
    facilitator = world.facilitator(min_operator_wei=1)
    await facilitator.batches()
    money = 15 * 10**9 * 500_000  # for a few transfers at a time
    world.anvil("anvil_setBalance", world.chain.operator, hex(money))
    results = await all_of(*(facilitator.settle(world.payment()) for _ in range(12)))
    paid = [one for one in results if isinstance(one, Settled)]
    assert len(paid) >= 2
    assert len({one.transaction for one in paid}) > 1
    assert world.earned() == len(paid) * PRICE
    assert all("for gas" in one.reason for one in results if isinstance(one, Unknown))


async def test_many_verifications_share_few_requests(world: World) -> None:
    async with through_proxy(world) as (facilitator, proxy):
        await facilitator.verify(world.payment())
        before = proxy.requests
        verdicts = await asyncio.gather(*(facilitator.verify(world.payment()) for _ in range(200)))
        assert all(isinstance(one, Verified) for one in verdicts)
        assert proxy.requests - before <= 6


async def test_an_answer_to_a_transaction_that_gets_lost_costs_nobody_anything(world: World) -> None:
    async with through_proxy(world) as (facilitator, proxy):
        await facilitator.batches()
        proxy.withheld = {"eth_sendRawTransaction"}
        task = asyncio.create_task(facilitator.settle(world.payment()))
        await until(lambda: proxy.asked.count("eth_sendRawTransaction") >= 2)
        proxy.withheld = set()
        settled(await task)
        assert world.earned() == PRICE


async def test_a_node_that_goes_away_and_comes_back_settles_what_it_was_given(world: World) -> None:
    async with through_proxy(world, confirmation_timeout_seconds=0.5) as (facilitator, proxy):
        await facilitator.batches()
        proxy.withheld = {"eth_getTransactionReceipt"}
        payment = world.payment()
        unknown = await facilitator.settle(payment)
        assert isinstance(unknown, Unknown)
        assert unknown.transaction is not None
        assert world.earned() == PRICE
        proxy.withheld = set()
        assert settled(await facilitator.settle(payment)).transaction == unknown.transaction


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no events": lambda receipt: {**receipt, "logs": []},
    "it failed": lambda receipt: {**receipt, "status": "0x0", "logs": []},
    "another transaction": lambda receipt: {**receipt, "transactionHash": "0x" + "00" * 32},
    "another block": lambda receipt: {**receipt, "blockHash": "0x" + "00" * 32},
    "a later block": lambda receipt: {**receipt, "blockNumber": "0xffffff"},
    "no logs": lambda receipt: {name: value for name, value in receipt.items() if name != "logs"},
    "a number": lambda _: 7,
    "a list": lambda _: [],
    "a text": lambda _: "0x01",
    "strange status": lambda receipt: {**receipt, "status": "0x7"},
}


@pytest.mark.parametrize("lie", list(LIES))
async def test_a_receipt_that_lies_is_neither_a_yes_nor_a_no(world: World, lie: str) -> None:
    def change(method: str, _: list[Any], answer: dict[str, Any]) -> dict[str, Any]:
        if method == "eth_getTransactionReceipt" and answer.get("result"):
            return {**answer, "result": LIES[lie](answer["result"])}
        return answer

    async with through_proxy(world, confirmation_timeout_seconds=0.5) as (facilitator, proxy):
        await facilitator.batches()
        payment = world.payment()
        proxy.change = change
        assert isinstance(await facilitator.settle(payment), Unknown)
        proxy.change = None
        settled(await facilitator.settle(payment))
        assert world.earned() == PRICE


async def test_an_invented_receipt_settles_nothing(world: World) -> None:
    """The node claims that a transaction is in the latest block, with all the right events; it was never mined."""
    payment = world.payment()
    honest = world.facilitator()
    example = settled(await honest.settle(payment))
    logs = world.deployer.w3.provider.make_request("eth_getTransactionReceipt", [example.transaction])["result"]["logs"]  # type: ignore[arg-type]
    second = world.payment()

    def change(method: str, params: list[Any], answer: dict[str, Any]) -> dict[str, Any]:
        if method != "eth_getTransactionReceipt":
            return answer
        head = world.deployer.w3.eth.get_block("latest")
        topics = [[second.nonce if topic == payment.nonce else topic for topic in log["topics"]] for log in logs]
        claimed = {
            "transactionHash": params[0],
            "blockNumber": hex(head["number"]),
            "blockHash": head["hash"].to_0x_hex(),
            "status": "0x1",
            "gasUsed": "0x5208",
            "logs": [{**log, "topics": words} for log, words in zip(logs, topics, strict=True)],
        }
        return {**answer, "result": claimed}

    async with through_proxy(world, confirmation_timeout_seconds=0.5) as (facilitator, proxy):
        await facilitator.batches()
        world.anvil("evm_setAutomine", False)
        proxy.change = change
        assert isinstance(await facilitator.settle(second), Unknown)
        assert isinstance(await facilitator.outcome(second), Unused)


async def test_no_error_shows_the_nodes_url(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with through_proxy(world, confirmation_timeout_seconds=0.5) as (facilitator, proxy):
        proxy.raw = (
            f'{{"jsonrpc":"2.0","id":0,"error":{{"code":-1,"message":"{proxy.url} is over its limit"}}}}'.encode()
        )
        said = [*await facilitator.ready(), str(await facilitator.settle(world.payment()))]
        with pytest.raises(Exception, match="could not be checked") as refused:
            await facilitator.verify(world.payment())
        said += [str(refused.value), caplog.text]
        assert "over its limit" in said[0]
        assert not [text for text in said if "key-of-an-account" in text]


async def test_a_node_that_stands_still_is_not_ready(world: World) -> None:
    facilitator = world.facilitator(max_head_age_seconds=60, clock=lambda: time.time() + 3_600)
    (problem,) = await facilitator.ready()
    assert "stands still" in problem
    awake = world.facilitator(max_head_age_seconds=600)
    assert await awake.ready() == []
