"""The registry client tells apart what the chain says, what it refuses, and what could not be asked."""

import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount

from attestation.registry import rpc
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import (
    FeeTooHighError,
    NoContractError,
    NoGasError,
    RegistryError,
    RevertedError,
    RpcError,
    RpcRefusedError,
    UnconfirmedError,
    UnknownAgentError,
    WrongChainError,
)
from attestation.registry.rpc import Chain
from attestation.registry.sender import FeeCaps
from attestation.registry.writer import IdentityWriter, agent_wallet_typed_data
from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, LocalChain


@pytest_asyncio.fixture
async def reader(chain: LocalChain) -> AsyncIterator[IdentityReader]:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        yield reader


@pytest.fixture
def owner(chain: LocalChain, reader: IdentityReader) -> IdentityWriter:
    return IdentityWriter(reader, Account.from_key(chain.owner_key))


async def test_agent_0_is_read_like_any_other(reader: IdentityReader, owner: IdentityWriter) -> None:
    registered = await owner.register("ipfs://zero", {"colour": b"\x00\xff"})

    assert registered.agent_id == 0
    assert await reader.owner_of(0) == owner.address
    assert await reader.token_uri(0) == "ipfs://zero"
    assert await reader.get_agent_wallet(0) == owner.address
    assert await reader.get_metadata(0, "colour") == b"\x00\xff"
    assert await reader.last_metadata_set(0, "colour") is not None
    assert await reader.last_transfer(0) is None
    with pytest.raises(UnknownAgentError, match="no agent 1"):
        await reader.owner_of(1)


async def test_events_of_one_agent_are_not_taken_for_those_of_another(
    reader: IdentityReader, owner: IdentityWriter, stranger: LocalAccount
) -> None:
    await owner.register("ipfs://zero")
    await owner.register("ipfs://one", {"colour": b"red"})
    await owner.transfer(1, stranger.address)

    assert await reader.last_metadata_set(0, "colour") is None
    assert await reader.last_transfer(0) is None
    assert (await reader.metadata(1, "colour")).stale
    assert (await reader.metadata(0, "colour")).written is None


async def test_an_unknown_key_is_empty_and_not_stale(reader: IdentityReader, owner: IdentityWriter) -> None:
    await owner.register("ipfs://zero")

    metadata = await reader.metadata(0, "nothing")

    assert (metadata.value, metadata.written, metadata.stale) == (b"", None, False)


async def test_a_value_without_the_event_that_wrote_it_is_not_believed(
    chain: LocalChain, owner: IdentityWriter
) -> None:
    sent = (await owner.register("ipfs://zero", {"colour": b"red"})).sent
    async with IdentityReader(
        chain.rpc, chain.chain_id, chain.identity_registry, from_block=sent.block + 1
    ) as too_late:
        with pytest.raises(RegistryError, match="no event"):
            await too_late.metadata(0, "colour")


async def test_a_node_of_another_chain_is_refused(chain: LocalChain) -> None:
    async with IdentityReader(chain.rpc, 8453, chain.identity_registry) as reader:
        with pytest.raises(WrongChainError, match="serves chain 84532, not chain 8453"):
            await reader.check()


async def test_an_address_without_a_contract_is_refused(chain: LocalChain) -> None:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.buyer) as reader:
        with pytest.raises(NoContractError, match=chain.buyer.lower()):
            await reader.owner_of(0)


async def test_a_contract_that_is_no_registry_is_not_believed(chain: LocalChain) -> None:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.token) as reader:
        with pytest.raises(RegistryError):
            await reader.owner_of(0)


async def test_a_node_that_is_gone_is_an_rpc_error_that_does_not_show_the_access_key() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v2/secret-access-key"
        async with IdentityReader(url, 84532, "0x" + "11" * 20, timeout=2) as reader:
            with pytest.raises(RpcError) as caught:
                await reader.check()
    assert "no connection" in str(caught.value)
    assert "secret-access-key" not in str(caught.value)


async def test_refusals_are_sentences(chain: LocalChain, reader: IdentityReader, owner: IdentityWriter) -> None:
    await owner.register("ipfs://zero")
    stranger = IdentityWriter(reader, Account.from_key(chain.buyer_key))

    with pytest.raises(RevertedError, match="neither the agent's owner nor an operator") as caught:
        await stranger.set_metadata(0, "k", b"v")
    assert caught.value.reason == "Not authorized"
    with pytest.raises(RevertedError, match="only be changed with setAgentWallet"):
        await owner.set_metadata(0, "agentWallet", b"\x01" * 20)
    with pytest.raises(RevertedError, match="may not transfer the agent"):
        await stranger.transfer(0, chain.buyer)


async def test_one_agents_operator_is_authorized_for_that_agent_only(
    chain: LocalChain, reader: IdentityReader, owner: IdentityWriter
) -> None:
    await owner.register("ipfs://zero")
    await owner.register("ipfs://one")
    await owner.set_operator(chain.operator, approved=False)
    assert not await reader.is_authorized(chain.operator, 0)

    await owner.approve(0, chain.operator)

    assert await reader.is_authorized(chain.operator, 0)
    assert not await reader.is_authorized(chain.operator, 1)


async def test_a_wallet_is_set_with_its_consent_and_cleared_by_a_transfer(
    chain: LocalChain, anvil: Anvil, reader: IdentityReader, owner: IdentityWriter, stranger: LocalAccount
) -> None:
    await owner.register("ipfs://zero")
    deadline = int(Deployer(anvil.rpc, stranger).w3.eth.get_block("latest")["timestamp"]) + 200
    document = agent_wallet_typed_data(
        chain_id=chain.chain_id,
        registry=chain.identity_registry,
        agent_id=0,
        wallet=stranger.address,
        owner=chain.owner,
        deadline=deadline,
    )
    consent = bytes(stranger.sign_message(encode_typed_data(full_message=document)).signature)

    with pytest.raises(RevertedError, match="did not sign"):
        await owner.set_agent_wallet(0, chain.buyer, deadline, consent)
    await owner.set_agent_wallet(0, stranger.address, deadline, consent)
    assert await reader.get_agent_wallet(0) == stranger.address.lower()
    await owner.transfer(0, chain.buyer)
    assert await reader.get_agent_wallet(0) is None


@pytest.mark.parametrize("fees", [FeeCaps(max_fee_per_gas=1), FeeCaps(max_gas=50_000)])
async def test_a_transaction_beyond_the_caps_is_not_sent(
    chain: LocalChain, reader: IdentityReader, fees: FeeCaps
) -> None:
    writer = IdentityWriter(reader, Account.from_key(chain.owner_key), fees=fees)
    with pytest.raises(FeeTooHighError, match="the cap is"):
        await writer.register("ipfs://zero")
    with pytest.raises(UnknownAgentError):
        await reader.owner_of(0)


async def test_an_account_without_gas_money_is_told_so(chain: LocalChain, reader: IdentityReader) -> None:
    poor = IdentityWriter(reader, Account.from_key(chain.buyer_key))
    with pytest.raises(NoGasError, match="insufficient funds") as caught:
        await poor.register("ipfs://zero")
    assert chain.buyer.lower() in caught.value.diagnostics(), "whoever runs it must know which account to fill"


async def test_a_transaction_that_is_not_mined_in_time_is_unconfirmed(
    chain: LocalChain, anvil: Anvil, reader: IdentityReader
) -> None:
    writer = IdentityWriter(reader, Account.from_key(chain.owner_key), receipt_timeout=0.3)
    node = Deployer(anvil.rpc, Account.create())
    node.anvil("evm_setAutomine", False)
    try:
        with pytest.raises(UnconfirmedError, match="may still be"):
            await writer.register("ipfs://zero")
    finally:
        node.anvil("evm_setAutomine", True)
        node.anvil("evm_mine")


async def test_logs_are_found_on_a_node_that_serves_few_blocks_at_a_time(
    chain: LocalChain, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        owner = IdentityWriter(reader, Account.from_key(chain.owner_key))
        first = (await owner.register("ipfs://zero", {"colour": b"red"})).sent
        Deployer(anvil.rpc, Account.create()).anvil("anvil_mine", hex(250))
        asked: list[int] = []
        real = Chain._logs

        async def miserly(self: Chain, address: str, topics: list[bytes], low: int, high: int) -> object:
            asked.append(high - low + 1)
            if high - low + 1 > 120:
                raise RpcRefusedError("block range too large")
            return await real(self, address, topics, low, high)

        monkeypatch.setattr(Chain, "_logs", miserly)
        found = await reader.last_metadata_set(0, "colour")
        monkeypatch.setattr(rpc, "MAX_LOG_REQUESTS", 2)
        with pytest.raises(RpcError, match="2 requests did not do"):
            await reader.last_metadata_set(0, "colour")

    assert found is not None
    assert found.block == first.block
    assert min(asked) <= 120 < max(asked)
