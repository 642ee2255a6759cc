"""An agent is minted once, its records are sent only when they differ, and everything is read back from the chain."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from eth_account import Account
from eth_account.signers.local import LocalAccount

from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import AgentChoiceError, NotOurAgentError, UnknownAgentError
from attestation.registry.publication import Desired, Publication, ensure_agent, publish, published
from attestation.registry.records import MANIFEST_KEY, KeyRecord
from attestation.registry.writer import IdentityWriter
from service.localchain.deploy import LocalChain

URI = "http://127.0.0.1:8402/.well-known/agent-registration.json"
DESIRED = Desired(
    agent_uri=URI,
    manifest_digest="sha256:" + "11" * 32,
    replica="main",
    key=KeyRecord("0x" + "aa" * 20, "sha256:" + "22" * 32, 1_900_000_000),
)


@pytest_asyncio.fixture
async def reader(chain: LocalChain) -> AsyncIterator[IdentityReader]:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        yield reader


@pytest.fixture
def operator(chain: LocalChain, reader: IdentityReader) -> IdentityWriter:
    return IdentityWriter(reader, Account.from_key(chain.operator_key))


@pytest.fixture
def owner(chain: LocalChain, reader: IdentityReader) -> IdentityWriter:
    return IdentityWriter(reader, Account.from_key(chain.owner_key))


async def boot(
    chain: LocalChain, writer: IdentityWriter, desired: Desired = DESIRED
) -> tuple[Publication, Publication]:
    """What a start of the service does."""
    agent = await ensure_agent(writer, agent_uri=desired.agent_uri, owner=chain.owner, mint=True)
    return agent, await publish(writer, agent.agent_id, desired)


async def test_the_first_boot_mints_agent_0_for_the_owner_and_publishes_both_records(
    chain: LocalChain, operator: IdentityWriter, reader: IdentityReader
) -> None:
    agent, records = await boot(chain, operator)

    assert (agent.agent_id, agent.minted) == (0, True)
    assert len(agent.transactions) == 2  # mint, hand over
    assert len(records.transactions) == 2  # manifest, key
    assert await reader.owner_of(0) == chain.owner.lower() != operator.address
    seen = await published(reader, 0, "main")
    assert (seen.agent_uri, seen.manifest_digest, seen.key) == (URI, DESIRED.manifest_digest, DESIRED.key)
    assert not seen.manifest_stale
    assert not seen.key_stale


async def test_a_restart_sends_nothing_and_never_mints_a_second_agent(
    chain: LocalChain, operator: IdentityWriter, reader: IdentityReader
) -> None:
    await boot(chain, operator)

    agent, records = await boot(chain, operator)

    assert (agent.agent_id, agent.minted, agent.transactions, agent.gas_used) == (0, False, (), 0)
    assert (records.transactions, records.gas_used) == ((), 0)
    with pytest.raises(UnknownAgentError):
        await reader.owner_of(1)


async def test_agent_id_0_in_the_settings_is_an_agent(chain: LocalChain, operator: IdentityWriter) -> None:
    await boot(chain, operator)

    agent = await ensure_agent(operator, agent_uri=URI, owner=chain.owner, agent_id=0, mint=True)

    assert (agent.agent_id, agent.minted) == (0, False)


async def test_a_restart_under_another_url_keeps_the_agent_and_moves_its_uri(
    chain: LocalChain, operator: IdentityWriter, reader: IdentityReader
) -> None:
    await boot(chain, operator)
    moved = replace(DESIRED, agent_uri="http://127.0.0.1:9000/registration.json")

    agent, records = await boot(chain, operator, moved)

    assert (agent.agent_id, agent.minted, len(records.transactions)) == (0, False, 1)
    assert await reader.token_uri(0) == moved.agent_uri


async def test_a_new_keyset_costs_one_transaction(
    chain: LocalChain, operator: IdentityWriter, reader: IdentityReader
) -> None:
    await boot(chain, operator)
    key = KeyRecord("0x" + "bb" * 20, "sha256:" + "33" * 32, 1_900_000_001)

    _, records = await boot(chain, operator, replace(DESIRED, key=key))

    assert len(records.transactions) == 1
    assert (await published(reader, 0, "main")).key == key


async def test_replicas_keep_their_own_records(
    chain: LocalChain, operator: IdentityWriter, reader: IdentityReader
) -> None:
    await boot(chain, operator)
    other = KeyRecord("0x" + "cc" * 20, "sha256:" + "44" * 32, 1_900_000_002)

    _, records = await boot(chain, operator, replace(DESIRED, replica="second", key=other))

    assert len(records.transactions) == 1
    assert (await published(reader, 0, "main")).key == DESIRED.key
    assert (await published(reader, 0, "second")).key == other


async def test_without_leave_to_mint_a_start_without_an_agent_is_refused(
    chain: LocalChain, operator: IdentityWriter
) -> None:
    with pytest.raises(AgentChoiceError, match="has no agent"):
        await ensure_agent(operator, agent_uri=URI, owner=chain.owner)


async def test_nothing_is_minted_for_an_owner_who_has_not_approved_the_operator(
    chain: LocalChain, operator: IdentityWriter, reader: IdentityReader, stranger: LocalAccount
) -> None:
    with pytest.raises(NotOurAgentError, match="has not made"):
        await ensure_agent(operator, agent_uri=URI, owner=stranger.address, mint=True)
    with pytest.raises(UnknownAgentError):
        await reader.owner_of(0)


async def test_a_start_cut_short_between_mint_and_hand_over_is_finished_by_the_next(
    chain: LocalChain, operator: IdentityWriter, reader: IdentityReader
) -> None:
    await operator.register(URI)  # and then the process dies

    agent = await ensure_agent(operator, agent_uri=URI, owner=chain.owner, mint=True)

    assert (agent.agent_id, agent.minted, len(agent.transactions)) == (0, False, 1)
    assert await reader.owner_of(0) == chain.owner.lower()


async def test_an_agent_the_owner_registered_is_found(
    chain: LocalChain, operator: IdentityWriter, owner: IdentityWriter
) -> None:
    await owner.register("ipfs://elsewhere")

    agent = await ensure_agent(operator, agent_uri=URI, owner=chain.owner, mint=True)

    assert (agent.agent_id, agent.minted, agent.transactions) == (0, False, ())


async def test_an_agent_that_a_stranger_sends_to_the_owner_is_not_taken_for_ours(
    chain: LocalChain, operator: IdentityWriter, reader: IdentityReader, stranger: LocalAccount
) -> None:
    giver = IdentityWriter(reader, stranger)
    gift = await giver.register(URI)
    await giver.transfer(gift.agent_id, chain.owner)

    agent = await ensure_agent(operator, agent_uri=URI, owner=chain.owner, mint=True)

    assert (agent.agent_id, agent.minted) == (1, True)


async def test_of_several_agents_the_one_with_our_uri_is_used_and_otherwise_the_id_must_be_named(
    chain: LocalChain, operator: IdentityWriter, owner: IdentityWriter
) -> None:
    await owner.register("ipfs://first")
    await owner.register("ipfs://second")

    with pytest.raises(AgentChoiceError, match=r"several agents \(0, 1\)"):
        await ensure_agent(operator, agent_uri=URI, owner=chain.owner, mint=True)
    by_uri = await ensure_agent(operator, agent_uri="ipfs://second", owner=chain.owner, mint=True)
    by_id = await ensure_agent(operator, agent_uri=URI, owner=chain.owner, agent_id=0)
    assert (by_uri.agent_id, by_id.agent_id) == (1, 0)


async def test_a_sold_agent_still_shows_the_old_key_but_it_is_stale_and_the_seller_gets_another_agent(
    chain: LocalChain, operator: IdentityWriter, owner: IdentityWriter, reader: IdentityReader, stranger: LocalAccount
) -> None:
    await boot(chain, operator)
    await owner.transfer(0, stranger.address)

    seen = await published(reader, 0, "main")
    assert seen.key == DESIRED.key
    assert seen.key_stale
    assert seen.manifest_stale
    with pytest.raises(NotOurAgentError, match=f"belongs to {stranger.address.lower()}"):
        await ensure_agent(operator, agent_uri=URI, owner=chain.owner, agent_id=0)
    again, _ = await boot(chain, operator)
    assert (again.agent_id, again.minted) == (1, True)


async def test_the_same_bytes_are_written_again_when_the_agent_came_back(
    chain: LocalChain, operator: IdentityWriter, owner: IdentityWriter, reader: IdentityReader, stranger: LocalAccount
) -> None:
    await boot(chain, operator)
    await owner.transfer(0, stranger.address)
    await IdentityWriter(reader, stranger).transfer(0, chain.owner)

    _, records = await boot(chain, operator)

    assert len(records.transactions) == 2
    assert not (await published(reader, 0, "main")).key_stale


async def test_records_written_while_minting_are_not_stale(owner: IdentityWriter, reader: IdentityReader) -> None:
    await owner.register(URI, {MANIFEST_KEY: b"\x11" * 32})

    assert not (await reader.metadata(0, MANIFEST_KEY)).stale


async def test_gas_stays_within_the_budget(chain: LocalChain, operator: IdentityWriter) -> None:
    agent, records = await boot(chain, operator)
    key = replace(DESIRED.key, keyset_digest="sha256:" + "55" * 32)
    manifest = "sha256:" + "66" * 32
    _, again = await boot(chain, operator, replace(DESIRED, key=key, manifest_digest=manifest))

    assert agent.gas_used + records.gas_used <= 450_000
    assert again.gas_used < 100_000
