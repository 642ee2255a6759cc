"""What the chain is asked, and what is made of honest, clever and broken answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web3.contract import Contract

from service.localchain.deploy import MULTICALL3, Deployer, LocalChain, artifact
from service.payment import chain as chain_module
from service.payment import erc3009
from service.payment.authorization import Authorization
from service.payment.chain import ChainReader
from service.payment.evm_rpc import ChainError, Node
from service.payment.facilitator import Rejected, Settled, Unavailable, Unused, Used, Verified, Void
from service.payment.local import LocalFacilitator
from service.pricing import Asset
from tests.nodes import between
from tests.payments import PAY_TO, PRICE, authorize, offer

STRANGER = "0x" + "77" * 20


def asset_of(chain: LocalChain) -> Asset:
    return Asset(f"eip155:{chain.chain_id}", chain.token, 6, "USDC", "2", "USDC")


def contract_at(deployer: Deployer, name: str, address: str) -> Contract:
    return deployer.w3.eth.contract(address=deployer.w3.to_checksum_address(address), abi=artifact(name)["abi"])


def payment(chain: LocalChain, **deviations: Any) -> Authorization:
    return authorize(offer(asset_of(chain), pay_to=chain.pay_to), key=chain.buyer_key, **deviations)


def call_data(token: Contract, authorization: Authorization) -> Any:
    signed = authorization.payload.payload["authorization"]
    return token.get_function_by_signature(
        "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
    )(
        signed["from"],
        signed["to"],
        authorization.amount,
        authorization.valid_after,
        authorization.valid_before,
        bytes.fromhex(authorization.nonce[2:]),
        bytes.fromhex(authorization.signature[2:]),
    )


@pytest.fixture
async def reader(chain: LocalChain) -> AsyncIterator[ChainReader]:
    opened = ChainReader(chain.rpc, asset_of(chain).network)
    yield opened
    await opened.close()


@pytest.mark.parametrize(
    ("constant", "signature"),
    [
        ("AUTHORIZATION_STATE", "authorizationState(address,bytes32)"),
        ("BALANCE_OF", "balanceOf(address)"),
        ("DECIMALS", "decimals()"),
        ("DOMAIN_SEPARATOR", "DOMAIN_SEPARATOR()"),
        ("AUTHORIZATION_USED", "AuthorizationUsed(address,bytes32)"),
        ("AUTHORIZATION_CANCELED", "AuthorizationCanceled(address,bytes32)"),
        ("TRANSFER", "Transfer(address,address,uint256)"),
        (
            "TRANSFER_VRS",
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)",
        ),
        ("TRANSFER_BYTES", "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"),
    ],
)
def test_selectors_and_topics_are_the_hashes_of_their_signatures(constant: str, signature: str) -> None:
    value = getattr(erc3009, constant)
    text = value if isinstance(value, str) else "0x" + value.hex()
    assert ("0x" + keccak(text=signature).hex())[: len(text)] == text


async def test_a_nonce_executed_in_a_batch_counts_only_for_its_own_transfer(
    reader: ChainReader, chain: LocalChain, stranger: LocalAccount
) -> None:
    """The buyer pays for one answer and, in the same transaction, spends the nonce of a second one on itself."""
    bought, cheated = payment(chain), payment(chain)
    to_self = authorize(offer(asset_of(chain), pay_to=chain.buyer), key=chain.buyer_key, nonce=cheated.nonce)
    deployer = Deployer(chain.rpc, stranger)
    token = contract_at(deployer, "UsdToken", chain.token)
    for order in ([to_self, bought], [payment(chain), payment(chain)]):
        calls = [(token.address, False, call_data(token, one)._encode_transaction_data()) for one in order]
        deployer.send(contract_at(deployer, "Multicall3", MULTICALL3).functions.aggregate3(calls))
        if order[0] is not to_self:
            assert [type(await reader.outcome(one)) for one in order] == [Used, Used]
    assert isinstance(await reader.outcome(bought), Used)
    assert await reader.outcome(cheated) == Void("the payer has spent the nonce on another transfer")


async def test_a_cancelled_authorization_is_void_and_rejected(
    reader: ChainReader, chain: LocalChain, stranger: LocalAccount
) -> None:
    authorization = payment(chain)
    types = {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]}
    domain = {"name": "USDC", "version": "2", "chainId": chain.chain_id, "verifyingContract": chain.token}
    nonce = bytes.fromhex(authorization.nonce[2:])
    signed = Account.sign_typed_data(chain.buyer_key, domain, types, {"authorizer": chain.buyer, "nonce": nonce})
    deployer = Deployer(chain.rpc, stranger)
    cancel = contract_at(deployer, "UsdToken", chain.token).get_function_by_signature(
        "cancelAuthorization(address,bytes32,bytes)"
    )
    deployer.send(cancel(chain.buyer, nonce, bytes(signed.signature)))
    assert await reader.outcome(authorization) == Void("the payer has cancelled the authorization")
    facilitator = LocalFacilitator(rpc_url=chain.rpc, operator_key=chain.operator_key, assets=[asset_of(chain)])
    assert isinstance(await facilitator.settle(authorization), Rejected)
    await facilitator.close()


async def test_a_contract_wallet_pays_like_anybody(reader: ChainReader, chain: LocalChain) -> None:
    owner = Deployer(chain.rpc, Account.from_key(chain.owner_key))
    wallet = owner.deploy("KeyWallet", chain.buyer).address
    owner.send(contract_at(owner, "UsdToken", chain.token).functions.mint(wallet, PRICE))
    authorization = payment(chain, payer=wallet)
    facilitator = LocalFacilitator(rpc_url=chain.rpc, operator_key=chain.operator_key, assets=[asset_of(chain)])
    assert await facilitator.verify(authorization) == Verified(wallet.lower())
    settled = await facilitator.settle(authorization)
    assert isinstance(settled, Settled)
    assert isinstance(await reader.outcome(authorization), Used)
    await facilitator.close()


async def test_an_event_is_found_many_blocks_back_but_not_beyond_the_limit(
    reader: ChainReader, chain: LocalChain, stranger: LocalAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorization = payment(chain)
    deployer = Deployer(chain.rpc, stranger)
    deployer.send(call_data(contract_at(deployer, "UsdToken", chain.token), authorization))
    monkeypatch.setattr(chain_module, "LOG_CHUNK_BLOCKS", 7)
    monkeypatch.setattr(chain_module, "MAX_LOG_BLOCKS", 70)
    deployer.anvil("anvil_mine", hex(60))
    assert isinstance(await reader.outcome(authorization), Used)
    deployer.anvil("anvil_mine", hex(60))
    outcome = await reader.outcome(authorization)
    assert isinstance(outcome, Unavailable)
    assert "not in the last 70 blocks" in outcome.reason


async def test_the_time_of_an_unspent_nonce_is_the_chains(reader: ChainReader, chain: LocalChain) -> None:
    block = Deployer(chain.rpc, Account.from_key(chain.owner_key)).w3.eth.get_block("latest")
    assert await reader.outcome(payment(chain)) == Unused(block["timestamp"])


async def test_readiness_names_what_is_wrong_with_the_terms(reader: ChainReader, chain: LocalChain) -> None:
    good = asset_of(chain)
    assert await reader.problems([good]) == []
    wrong = {
        "EIP-712 domain": replace(good, name="USD Coin"),
        "domain is not": replace(good, version="1"),
        "6 decimals; the terms say 18": replace(good, decimals=18),
        "no contract at this address": replace(good, address=STRANGER),
        "may not be an EIP-3009 token": replace(good, address=MULTICALL3),
    }
    for words, asset in wrong.items():
        (problem,) = await reader.problems([asset])
        assert words in problem or "cannot be checked" in problem


async def test_readiness_names_the_wrong_chain_and_the_unreachable_one(chain: LocalChain) -> None:
    base = ChainReader(chain.rpc, "eip155:8453")
    assert await base.problems([]) == ["the RPC endpoint serves eip155:84532, not eip155:8453"]
    await base.close()
    nowhere = ChainReader("http://127.0.0.1:1/secret-key", "eip155:8453")
    (problem,) = await nowhere.problems([])
    assert "cannot be reached" in problem
    assert "secret-key" not in problem, "an RPC URL may hold an access key"
    await nowhere.close()


async def test_an_operator_who_cannot_pay_gas_is_not_ready(chain: LocalChain) -> None:
    broke = LocalFacilitator(rpc_url=chain.rpc, operator_key="0x" + "99" * 32, assets=[asset_of(chain)])
    (problem,) = await broke.ready()
    assert f"the operator {broke.operator} has 0 wei for gas" in problem
    await broke.close()


async def test_a_local_facilitator_serves_one_network_with_a_real_key(chain: LocalChain) -> None:
    good = asset_of(chain)
    for assets in ([], [good, replace(good, network="eip155:1")]):
        with pytest.raises(ValueError, match="exactly one network"):
            LocalFacilitator(rpc_url=chain.rpc, operator_key=chain.operator_key, assets=assets)
    with pytest.raises(ValueError, match="not a private key") as refusal:
        LocalFacilitator(rpc_url=chain.rpc, operator_key="0xdeadbeef", assets=[good])
    assert "deadbeef" not in str(refusal.value)


def honest_answers(authorization: Authorization) -> dict[str, Any]:
    """What a node says about a payment that was executed."""
    topic = "0x" + authorization.payer[2:].rjust(64, "0")
    used = {
        "address": authorization.asset,
        "topics": [erc3009.AUTHORIZATION_USED, topic, authorization.nonce],
        "data": "0x",
        "transactionHash": "0x" + "ab" * 32,
        "blockNumber": "0x10",
    }
    moved = {
        "address": authorization.asset,
        "topics": [erc3009.TRANSFER, topic, "0x" + authorization.pay_to[2:].rjust(64, "0")],
        "data": f"0x{authorization.amount:064x}",
    }
    return {
        "eth_getBlockByNumber": {"number": "0x20", "timestamp": "0x64"},
        "eth_call": f"0x{1:064x}",
        "eth_getLogs": [used],
        "eth_getTransactionReceipt": {"logs": [used, moved]},
    }


async def ask(authorization: Authorization, answers: dict[str, Any]) -> Any:
    """The outcome read from a node that answers so."""

    class Answering(Node):
        async def _exchange(self, what: str, content: bytes) -> Any:
            return {"result": answers[json.loads(content)["method"]]}

    node = Answering("http://node")
    reader = ChainReader("http://node", authorization.network, node=node)
    return await reader.outcome(authorization)


async def test_only_the_exact_transfer_to_us_counts() -> None:
    authorization = authorize()
    assert await ask(authorization, honest_answers(authorization)) == Used("0x" + "ab" * 32, 16)

    def with_logs(*logs: dict[str, Any]) -> dict[str, Any]:
        return {**honest_answers(authorization), "eth_getTransactionReceipt": {"logs": list(logs)}}

    used, moved = honest_answers(authorization)["eth_getTransactionReceipt"]["logs"]
    other_nonce = {**used, "topics": [*used["topics"][:2], "0x" + "00" * 32]}
    for logs in ([], [moved], [{**used, "address": STRANGER}, moved]):
        # The node has the event in one place and not in the other, so its word is worth nothing.
        assert isinstance(await ask(authorization, with_logs(*logs)), Unavailable), logs
    for logs in (
        [used],
        [moved, used],
        [used, {**moved, "data": f"0x{authorization.amount - 1:064x}"}],
        [used, {**moved, "address": STRANGER}],
        [used, {**moved, "topics": [*moved["topics"][:2], "0x" + STRANGER[2:].rjust(64, "0")]}],
        [used, other_nonce, moved],
    ):
        assert isinstance(await ask(authorization, with_logs(*logs)), Void), logs
    unrelated = {"address": STRANGER, "topics": [], "data": "0x"}
    assert isinstance(await ask(authorization, with_logs(unrelated, used, unrelated, moved)), Used)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["0x", "0x1", "0x" + "00" * 32]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["logs", "topics", "number", "timestamp", "transactionHash", "error"]), inner)
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(method=st.sampled_from(list(honest_answers(authorize()))), value=json_values)
def test_a_node_that_talks_nonsense_never_makes_a_payment_look_made(method: str, value: Any) -> None:
    authorization = authorize()
    outcome = asyncio.run(ask(authorization, {**honest_answers(authorization), method: value}))
    assert isinstance(outcome, Unavailable | Void | Unused)


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"[]", b"null", b"[" * 100_000, b'{"error":{"message":"limit"}}', b"\xff"]
)
async def test_a_node_that_does_not_speak_json_rpc_is_unavailable(raw: bytes) -> None:
    async with between("http://nowhere") as proxy:
        proxy.raw = raw
        reader = ChainReader(proxy.url, authorize().network)
        assert isinstance(await reader.outcome(authorize()), Unavailable)
        (problem,) = await reader.problems([])
        assert "cannot be reached" in problem
        await reader.close()


async def test_a_contract_that_is_no_token_has_no_balance(reader: ChainReader, chain: LocalChain) -> None:
    assert await reader.token_balance(chain.token, chain.buyer) == 1_000 * 10**6
    with pytest.raises(ChainError):
        await reader.token_balance(PAY_TO, chain.buyer)
