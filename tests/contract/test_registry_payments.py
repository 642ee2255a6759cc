"""A payment counts when the chain shows exactly it, and nothing else passes for it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.contract import Contract

from attestation.errors import MalformedError
from attestation.registry.errors import NoContractError, RpcError, WrongChainError
from attestation.registry.payments import Outcome, Payment, PaymentReader
from service.localchain.deploy import MULTICALL3, Deployer, LocalChain, artifact
from tests.chain import Authorization, authorize

PRICE = 10_000


@pytest_asyncio.fixture
async def reader(chain: LocalChain) -> AsyncIterator[PaymentReader]:
    async with PaymentReader(chain.rpc, chain.chain_id) as reader:
        yield reader


@pytest.fixture
def facilitator(chain: LocalChain) -> Deployer:
    return Deployer(chain.rpc, Account.from_key(chain.operator_key))


@pytest.fixture
def token(chain: LocalChain, facilitator: Deployer) -> Contract:
    return facilitator.w3.eth.contract(address=Web3.to_checksum_address(chain.token), abi=artifact("UsdToken")["abi"])


def transfer(token: Contract, signed: Authorization) -> Any:
    return token.get_function_by_signature(
        "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
    )(*signed.arguments())


def signed_by_buyer(chain: LocalChain, amount: int = PRICE, pay_to: str | None = None) -> Authorization:
    return authorize(chain, chain.buyer_key, payer=chain.buyer, pay_to=pay_to or chain.pay_to, amount=amount)


@pytest.fixture
def paid(chain: LocalChain, facilitator: Deployer, token: Contract) -> Payment:
    """A real payment, claimed as it was."""
    signed = signed_by_buyer(chain)
    receipt = facilitator.send(transfer(token, signed))
    return claim(chain, signed, receipt["transactionHash"].to_0x_hex())


def claim(chain: LocalChain, signed: Authorization, transaction: str) -> Payment:
    return Payment(
        network=f"eip155:{chain.chain_id}",
        token=chain.token,
        payer=chain.buyer,
        pay_to=chain.pay_to,
        amount=PRICE,
        nonce=signed.nonce,
        transaction=transaction,
    )


async def test_a_real_payment_is_confirmed_with_its_block_and_time(
    reader: PaymentReader, paid: Payment, facilitator: Deployer
) -> None:
    block = facilitator.w3.eth.get_block("latest")

    finding = await reader.check(paid)

    assert finding.ok, finding.reason
    assert (finding.block, finding.block_time, finding.confirmations) == (block["number"], block["timestamp"], 1)
    assert await reader.balance_of(paid.token, paid.pay_to) == PRICE
    assert await reader.authorization_state(paid.token, paid.payer, paid.nonce)
    assert await reader.find_transaction(paid.token, paid.payer, paid.nonce) == paid.transaction


async def test_the_spelling_of_addresses_does_not_matter(reader: PaymentReader, paid: Payment) -> None:
    lower = replace(paid, token=paid.token.lower(), payer=paid.payer.lower(), pay_to=paid.pay_to.lower())
    assert (await reader.check(lower)).ok


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"amount": PRICE + 1}, "moves 10000, not 10001"),
        ({"amount": PRICE - 1}, "moves 10000, not 9999"),
        ({"pay_to": "0x" + "99" * 20}, "not 0x9999"),
        ({"payer": "0x" + "99" * 20}, "does not use the payer's nonce"),
        ({"nonce": "0x" + "99" * 32}, "does not use the payer's nonce"),
        ({"network": "eip155:8453"}, "not on eip155:84532"),
    ],
)
async def test_any_other_claim_about_the_same_transaction_is_refused(
    reader: PaymentReader, paid: Payment, changes: dict[str, Any], words: str
) -> None:
    finding = await reader.check(replace(paid, **changes))

    assert finding.outcome is Outcome.DIFFERENT
    assert words in finding.reason


async def test_another_token_is_another_payment(reader: PaymentReader, paid: Payment, facilitator: Deployer) -> None:
    other = facilitator.deploy("UsdToken").address

    finding = await reader.check(replace(paid, token=other))

    assert finding.outcome is Outcome.DIFFERENT


async def test_an_unknown_transaction_is_neither_confirmed_nor_an_error(reader: PaymentReader, paid: Payment) -> None:
    finding = await reader.check(replace(paid, transaction="0x" + "ab" * 32))

    assert finding.outcome is Outcome.UNKNOWN_TRANSACTION
    assert (finding.block, finding.block_time) == (None, None)


async def test_a_failed_transaction_moved_nothing(
    chain: LocalChain, reader: PaymentReader, facilitator: Deployer, token: Contract
) -> None:
    signed = authorize(
        chain, chain.buyer_key, payer=chain.buyer, pay_to=chain.pay_to, amount=PRICE, valid_before=1_000_000_000
    )
    account = facilitator.account
    unchecked = transfer(token, signed).build_transaction(
        {"from": account.address, "nonce": facilitator.w3.eth.get_transaction_count(account.address), "gas": 200_000}
    )
    sent = facilitator.w3.eth.send_raw_transaction(account.sign_transaction(unchecked).raw_transaction)
    assert facilitator.w3.eth.wait_for_transaction_receipt(sent)["status"] == 0

    finding = await reader.check(claim(chain, signed, sent.to_0x_hex()))

    assert finding.outcome is Outcome.FAILED
    assert finding.block is not None
    assert not await reader.authorization_state(chain.token, chain.buyer, signed.nonce)
    assert await reader.find_transaction(chain.token, chain.buyer, signed.nonce) is None


async def test_of_two_payments_in_one_transaction_neither_passes_for_the_other(
    chain: LocalChain, reader: PaymentReader, facilitator: Deployer, token: Contract
) -> None:
    cheap, full = signed_by_buyer(chain, amount=1), signed_by_buyer(chain)
    multicall = facilitator.w3.eth.contract(address=MULTICALL3, abi=artifact("Multicall3")["abi"])
    calls = [(chain.token, transfer(token, one)._encode_transaction_data()) for one in (cheap, full)]
    receipt = facilitator.send(multicall.functions.tryAggregate(True, calls))
    transaction = receipt["transactionHash"].to_0x_hex()

    assert (await reader.check(claim(chain, full, transaction))).ok
    finding = await reader.check(claim(chain, cheap, transaction))
    assert finding.outcome is Outcome.DIFFERENT
    assert "moves 1, not 10000" in finding.reason


async def test_an_authorization_and_an_ordinary_transfer_do_not_add_up_to_a_payment(
    chain: LocalChain, reader: PaymentReader, facilitator: Deployer, token: Contract
) -> None:
    # The buyer authorizes 1 unit; the price moves in the same transaction, but not by this authorization.
    owner = Deployer(chain.rpc, Account.from_key(chain.owner_key))
    owner.send(token.functions.mint(MULTICALL3, PRICE))
    cheap = signed_by_buyer(chain, amount=1)
    multicall = facilitator.w3.eth.contract(address=MULTICALL3, abi=artifact("Multicall3")["abi"])
    plain = token.functions.transfer(Web3.to_checksum_address(chain.pay_to), PRICE)._encode_transaction_data()
    calls = [(chain.token, plain), (chain.token, transfer(token, cheap)._encode_transaction_data())]
    receipt = facilitator.send(multicall.functions.tryAggregate(True, calls))

    finding = await reader.check(claim(chain, cheap, receipt["transactionHash"].to_0x_hex()))

    assert finding.outcome is Outcome.DIFFERENT
    assert "moves 1, not 10000" in finding.reason
    assert await reader.balance_of(chain.token, chain.pay_to) == PRICE + 1


async def test_what_cannot_be_asked_is_an_error_and_not_a_no(
    chain: LocalChain, paid: Payment, stranger: LocalAccount
) -> None:
    async with PaymentReader("http://127.0.0.1:9", chain.chain_id, timeout=1) as nobody:
        with pytest.raises(RpcError):
            await nobody.check(paid)
    async with PaymentReader(chain.rpc, 8453) as elsewhere:
        with pytest.raises(WrongChainError):
            await elsewhere.check(replace(paid, network="eip155:8453"))
    async with PaymentReader(chain.rpc, chain.chain_id) as reader:
        with pytest.raises(NoContractError):
            await reader.check(replace(paid, token=stranger.address))


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "base"},
        {"network": "eip155:0"},
        {"transaction": "0x12"},
        {"transaction": "AB" * 32},
        {"nonce": "0x00"},
        {"token": "usdc"},
        {"payer": ""},
    ],
)
async def test_a_claim_without_its_form_is_malformed(
    reader: PaymentReader, paid: Payment, changes: dict[str, Any]
) -> None:
    with pytest.raises(MalformedError):
        await reader.check(replace(paid, **changes))
