"""What every facilitator promises, on a real chain: ours in the process, and any other behind HTTP."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3.contract import Contract

from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, LocalChain, artifact, deploy
from service.localchain.toolchain import ensure_anvil
from service.payment.authorization import Authorization
from service.payment.facilitator import (
    Facilitator,
    FacilitatorUnavailableError,
    Invalid,
    Rejected,
    Settled,
    Unavailable,
    Unknown,
    Unused,
    Used,
    Verified,
    Void,
)
from service.payment.local import LocalFacilitator
from service.payment.remote import RemoteFacilitator
from service.pricing import Asset
from tests import chain as chains
from tests.facilitators import serving, working
from tests.payments import PRICE, authorize, offer

STRANGER = "0x" + "77" * 20


def asset_of(chain: LocalChain) -> Asset:
    return Asset(f"eip155:{chain.chain_id}", chain.token, 6, "USDC", "2", "USDC")


def token_of(chain: LocalChain) -> Contract:
    w3 = Deployer(chain.rpc, Account.from_key(chain.owner_key)).w3
    return w3.eth.contract(address=w3.to_checksum_address(chain.token), abi=artifact("UsdToken")["abi"])


def paid_out(chain: LocalChain) -> int:
    balance: int = token_of(chain).functions.balanceOf(chain.pay_to).call()
    return balance


def payment(chain: LocalChain, **deviations: Any) -> Authorization:
    """The buyer's payment of the price."""
    deviations.setdefault("key", chain.buyer_key)
    return authorize(offer(asset_of(chain), pay_to=chain.pay_to), **deviations)


def local(chain: LocalChain, **options: Any) -> LocalFacilitator:
    options = {"operator_key": chain.operator_key, "assets": [asset_of(chain)], **options}
    return LocalFacilitator(rpc_url=chain.rpc, **options)


@pytest.fixture(params=["local", "remote", "remote-without-rpc"])
async def facilitator(request: pytest.FixtureRequest, chain: LocalChain) -> AsyncIterator[Facilitator]:
    with ExitStack() as stack:
        opened: Facilitator
        if request.param == "local":
            opened = local(chain)
        else:
            url = stack.enter_context(serving(working(local(chain)))) + "/facilitator"
            rpc = None if request.param == "remote-without-rpc" else chain.rpc
            opened = RemoteFacilitator(url=url, assets=[asset_of(chain)], rpc_url=rpc)
        yield opened
        await opened.close()


def asks_the_chain(facilitator: Facilitator) -> bool:
    return not isinstance(facilitator, RemoteFacilitator) or facilitator._chain is not None


async def test_a_good_payment_moves_exactly_the_price(facilitator: Facilitator, chain: LocalChain) -> None:
    authorization = payment(chain)
    assert await facilitator.ready() == []
    assert await facilitator.verify(authorization) == Verified(chain.buyer.lower())
    assert paid_out(chain) == 0, "verifying moves nothing"
    settled = await facilitator.settle(authorization)
    assert isinstance(settled, Settled)
    assert settled.payer == chain.buyer.lower()
    assert paid_out(chain) == PRICE
    if asks_the_chain(facilitator):
        assert settled.block is not None
        assert await facilitator.outcome(authorization) == Used(settled.transaction, settled.block)
    else:
        assert isinstance(await facilitator.outcome(authorization), Unavailable)


async def test_an_unspent_payment_is_reported_with_the_chains_time(facilitator: Facilitator, chain: LocalChain) -> None:
    outcome = await facilitator.outcome(payment(chain))
    if asks_the_chain(facilitator):
        assert isinstance(outcome, Unused)
        assert abs(outcome.chain_time - time.time()) < 120


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"valid_before": 1_000_000_000}, "valid_before"),
    "not yet valid": ({"valid_after": int(time.time()) + 3_600, "valid_before": 2**40}, "valid_after"),
    "signed by another key": ({"signing_key": "0x" + "55" * 32}, "signature"),
    "an empty account": ({"key": "0x" + "66" * 32}, "insufficient_balance"),
}


@pytest.mark.parametrize("name", list(BAD))
async def test_a_payment_that_cannot_be_executed_is_a_definite_no(
    facilitator: Facilitator, chain: LocalChain, name: str
) -> None:
    deviations, word = BAD[name]
    authorization = payment(chain, **deviations)
    invalid = await facilitator.verify(authorization)
    assert isinstance(invalid, Invalid)
    assert word in invalid.reason
    assert " " in invalid.message, "there is a sentence for people"
    rejected = await facilitator.settle(authorization)
    assert isinstance(rejected, Rejected)
    assert word in rejected.reason
    assert paid_out(chain) == 0


@pytest.mark.parametrize("field", ["amount", "pay_to", "asset", "network", "extra"])
async def test_a_payment_of_other_terms_than_it_is_settled_for_is_a_definite_no(
    facilitator: Facilitator, chain: LocalChain, field: str
) -> None:
    other: dict[str, Any] = {
        "amount": str(PRICE + 1),
        "pay_to": STRANGER,
        "asset": chain.identity_registry,
        "network": "eip155:1",
        "extra": {"name": "USD Coin", "version": "2"},
    }
    authorization = payment(chain)
    terms = authorization.requirements.model_copy(update={field: other[field]})
    cheated = dataclasses.replace(authorization, requirements=terms)
    assert isinstance(await facilitator.verify(cheated), Invalid)
    assert isinstance(await facilitator.settle(cheated), Rejected)
    assert paid_out(chain) == 0


async def test_settling_twice_pays_once_and_finds_the_first_transaction(
    facilitator: Facilitator, chain: LocalChain
) -> None:
    authorization = payment(chain)
    first = await facilitator.settle(authorization)
    second = await facilitator.settle(authorization)
    assert isinstance(first, Settled)
    assert isinstance(second, Settled)
    assert second.transaction == first.transaction
    assert paid_out(chain) == PRICE


async def test_settling_twice_at_the_same_time_pays_once(facilitator: Facilitator, chain: LocalChain) -> None:
    authorization = payment(chain)
    both = await asyncio.gather(facilitator.settle(authorization), facilitator.settle(authorization))
    assert all(isinstance(one, Settled) for one in both), both
    assert paid_out(chain) == PRICE


async def test_a_spent_payment_does_not_verify_again(facilitator: Facilitator, chain: LocalChain) -> None:
    authorization = payment(chain)
    await facilitator.settle(authorization)
    invalid = await facilitator.verify(authorization)
    assert isinstance(invalid, Invalid)
    assert "nonce_already_used" in invalid.reason


async def test_a_payment_executed_by_somebody_else_counts_as_paid(
    facilitator: Facilitator, chain: LocalChain, stranger: LocalAccount
) -> None:
    authorization = payment(chain)
    execute(chain, stranger, authorization)
    settled = await facilitator.settle(authorization)
    assert isinstance(settled, Settled)
    assert paid_out(chain) == PRICE


async def test_a_nonce_spent_on_somebody_else_is_a_definite_no(
    facilitator: Facilitator, chain: LocalChain, stranger: LocalAccount
) -> None:
    authorization = payment(chain)
    to_self = offer(asset_of(chain), pay_to=STRANGER)
    execute(chain, stranger, authorize(to_self, key=chain.buyer_key, nonce=authorization.nonce))
    if asks_the_chain(facilitator):
        assert isinstance(await facilitator.outcome(authorization), Void)
        assert isinstance(await facilitator.settle(authorization), Rejected)
    else:
        assert isinstance(await facilitator.settle(authorization), Unknown), "a remote's word on a nonce is not enough"
    assert paid_out(chain) == 0


async def test_many_settlements_at_once_are_paid_once_each_in_few_transactions(
    facilitator: Facilitator, chain: LocalChain
) -> None:
    payments = [payment(chain) for _ in range(20)]
    settled = await asyncio.gather(*(facilitator.settle(one) for one in payments))
    assert all(isinstance(one, Settled) for one in settled), settled
    assert len({one.transaction for one in settled if isinstance(one, Settled)}) < 10
    assert paid_out(chain) == 20 * PRICE


@pytest.fixture
def mortal(chain: LocalChain) -> Iterator[tuple[Anvil, LocalChain]]:
    """A chain of its own, for tests that stop or slow it."""
    with Anvil(ensure_anvil(chains.CACHE_DIR)) as node:
        yield node, deploy(node.rpc)


@pytest.fixture(params=["local", "remote", "remote-without-rpc"])
async def doomed(
    request: pytest.FixtureRequest, mortal: tuple[Anvil, LocalChain]
) -> AsyncIterator[tuple[Facilitator, Anvil, LocalChain]]:
    node, chain = mortal
    with ExitStack() as stack:
        opened: Facilitator
        if request.param == "local":
            opened = local(chain, confirmation_timeout_seconds=1.5)
        else:
            inner = working(local(chain, confirmation_timeout_seconds=1.5))
            rpc = None if request.param == "remote-without-rpc" else chain.rpc
            url = stack.enter_context(serving(inner)) + "/facilitator"
            opened = RemoteFacilitator(url=url, assets=[asset_of(chain)], rpc_url=rpc, confirmation_timeout_seconds=0.5)
        yield opened, node, chain
        await opened.close()


async def test_a_dead_chain_is_nobodys_wrong_payment(doomed: tuple[Facilitator, Anvil, LocalChain]) -> None:
    facilitator, node, chain = doomed
    authorization = payment(chain)
    assert isinstance(await facilitator.verify(authorization), Verified)
    node.stop()
    with pytest.raises(FacilitatorUnavailableError):
        await facilitator.verify(authorization)
    assert isinstance(await facilitator.settle(authorization), Unknown)
    assert isinstance(await facilitator.outcome(authorization), Unavailable)
    if asks_the_chain(facilitator):
        assert any("cannot be reached" in problem for problem in await facilitator.ready())


async def test_a_transaction_that_waits_is_unknown_until_the_chain_shows_it(
    doomed: tuple[Facilitator, Anvil, LocalChain],
) -> None:
    facilitator, _, chain = doomed
    deployer = Deployer(chain.rpc, Account.from_key(chain.owner_key))
    authorization = payment(chain)
    deployer.anvil("evm_setAutomine", False)
    unknown = await facilitator.settle(authorization)
    assert isinstance(unknown, Unknown)
    if asks_the_chain(facilitator):
        assert isinstance(await facilitator.outcome(authorization), Unused)
    deployer.anvil("evm_mine")
    if asks_the_chain(facilitator):
        assert isinstance(await facilitator.outcome(authorization), Used)
    assert paid_out(chain) == PRICE
    assert isinstance(await facilitator.settle(authorization), Settled)
    assert paid_out(chain) == PRICE


async def test_an_operator_without_gas_is_not_the_buyers_fault(doomed: tuple[Facilitator, Anvil, LocalChain]) -> None:
    facilitator, _, chain = doomed
    deployer = Deployer(chain.rpc, Account.from_key(chain.owner_key))
    deployer.anvil("anvil_setBalance", chain.operator, hex(0))
    authorization = payment(chain)
    assert isinstance(await facilitator.settle(authorization), Unknown)
    if isinstance(facilitator, LocalFacilitator):
        assert [
            problem for problem in await facilitator.ready() if f"the operator {chain.operator} has 0 wei" in problem
        ]
    deployer.fund(chain.operator)
    assert isinstance(await facilitator.settle(authorization), Settled), "the failed attempt left no gap in the nonces"
    assert paid_out(chain) == PRICE


def execute(chain: LocalChain, sender: LocalAccount, authorization: Authorization) -> None:
    """Send the authorization to the token as `sender`, as anybody may."""
    signed = authorization.payload.payload["authorization"]
    arguments = (
        signed["from"],
        signed["to"],
        authorization.amount,
        authorization.valid_after,
        authorization.valid_before,
        bytes.fromhex(authorization.nonce[2:]),
        bytes.fromhex(authorization.signature[2:]),
    )
    deployer = Deployer(chain.rpc, sender)
    call = token_of(chain).get_function_by_signature(
        "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
    )
    deployer.send(call(*arguments))
