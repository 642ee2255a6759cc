"""Payments that a killed process left behind, brought to their end on a real chain by the next one."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, LocalChain, artifact, deploy
from service.localchain.toolchain import ensure_anvil
from service.payment.authorization import Authorization
from service.payment.ledger import Ledger, Row, State
from service.payment.local import LocalFacilitator
from service.payment.reconcile import REORG_MARGIN_SECONDS, reconcile
from service.pricing import Asset
from tests.chain import CACHE_DIR
from tests.ledgers import OWNER, in_state
from tests.payments import PRICE, authorize, offer


class Stack:
    """A ledger, a facilitator and a chain of their own."""

    def __init__(self, ledger: Ledger, facilitator: LocalFacilitator, chain: LocalChain) -> None:
        self.ledger = ledger
        self.facilitator = facilitator
        self.chain = chain
        self.deployer = Deployer(chain.rpc, Account.from_key(chain.owner_key))

    def payment(self, **deviations: Any) -> Authorization:
        asset = Asset(f"eip155:{self.chain.chain_id}", self.chain.token, 6, "USDC", "2", "USDC")
        return authorize(offer(asset, pay_to=self.chain.pay_to), key=self.chain.buyer_key, **deviations)

    def paid_out(self) -> int:
        w3 = self.deployer.w3
        token = w3.eth.contract(address=w3.to_checksum_address(self.chain.token), abi=artifact("UsdToken")["abi"])
        balance: int = token.functions.balanceOf(self.chain.pay_to).call()
        return balance

    async def again(self, row: Row) -> Row:
        found = await self.ledger.find(row.authorization.key)
        assert found is not None
        return found


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    with Anvil(ensure_anvil(CACHE_DIR)) as node:
        chain = deploy(node.rpc)
        asset = Asset(f"eip155:{chain.chain_id}", chain.token, 6, "USDC", "2", "USDC")
        facilitator = LocalFacilitator(
            rpc_url=chain.rpc, operator_key=chain.operator_key, assets=[asset], confirmation_timeout_seconds=1.0
        )
        ledger = await Ledger.open(f"sqlite:///{tmp_path}/ledger.db", owner=OWNER)
        yield Stack(ledger, facilitator, chain)
        await ledger.close()
        await facilitator.close()


@pytest.mark.parametrize("state", [State.SETTLING, State.UNKNOWN])
async def test_a_transfer_that_happened_is_recorded_and_not_repeated(stack: Stack, state: State) -> None:
    row = await in_state(stack.ledger, state, stack.payment())
    settled = await stack.facilitator.settle(row.authorization)
    report = await reconcile(stack.ledger, stack.facilitator, lambda: 1, owner=OWNER)
    after = await stack.again(row)
    assert (after.state, after.transaction) == (State.SETTLED, getattr(settled, "transaction", None))
    assert (report.settled, stack.paid_out()) == (1, PRICE)


@pytest.mark.parametrize("state", [State.SERVED, State.SETTLING, State.UNKNOWN])
async def test_a_transfer_that_did_not_happen_is_made_once(stack: Stack, state: State) -> None:
    row = await in_state(stack.ledger, state, stack.payment())
    await reconcile(stack.ledger, stack.facilitator, lambda: 1, owner=OWNER)
    await reconcile(stack.ledger, stack.facilitator, lambda: 2, owner=OWNER)
    assert (await stack.again(row)).state is State.SETTLED
    assert stack.paid_out() == PRICE


@pytest.mark.parametrize("state", [State.SETTLING, State.UNKNOWN])
async def test_a_transfer_that_cannot_happen_any_more_is_rejected_by_the_chains_clock(
    stack: Stack, state: State
) -> None:
    row = await in_state(stack.ledger, state, stack.payment())
    far = row.authorization.valid_before + REORG_MARGIN_SECONDS
    stack.deployer.anvil("evm_setNextBlockTimestamp", far)
    stack.deployer.anvil("evm_mine")
    await reconcile(stack.ledger, stack.facilitator, lambda: 1, owner=OWNER)
    assert (await stack.again(row)).state is State.REJECTED
    assert stack.paid_out() == 0


async def test_a_waiting_transaction_is_left_until_the_chain_has_decided(stack: Stack) -> None:
    row = await in_state(stack.ledger, State.SERVED, stack.payment())
    stack.deployer.anvil("evm_setAutomine", False)
    first = await reconcile(stack.ledger, stack.facilitator, lambda: 1, owner=OWNER)
    assert ((await stack.again(row)).state, len(first.waiting)) == (State.UNKNOWN, 1)
    stack.deployer.anvil("evm_mine")
    second = await reconcile(stack.ledger, stack.facilitator, lambda: 2, owner=OWNER)
    assert (second.settled, (await stack.again(row)).state) == (1, State.SETTLED)
    assert stack.paid_out() == PRICE


async def test_what_was_only_reserved_is_free_again_and_not_charged(stack: Stack) -> None:
    row = await in_state(stack.ledger, State.RESERVED, stack.payment())
    report = await reconcile(stack.ledger, stack.facilitator, lambda: 1, owner=OWNER)
    assert (report.released, (await stack.again(row)).state, stack.paid_out()) == (1, State.RELEASED, 0)
