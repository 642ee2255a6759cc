"""Single changes to an agent, each sent only when the chain does not show it already."""

import time
from collections.abc import Awaitable, Callable

from attestation.encoding import address as parse_address
from attestation.errors import MalformedError
from attestation.registry.publication import Publication, publish_key, summary_of
from attestation.registry.records import SECOND_SLOT, KeyRecord, key_name, parse_key
from attestation.registry.writer import MAX_WALLET_DEADLINE, IdentityWriter, agent_wallet_typed_data

Consent = Callable[[dict[str, object]], Awaitable[bytes]]
"""Has the new wallet sign an EIP-712 document; gives the signature."""


async def set_uri(writer: IdentityWriter, agent_id: int, agent_uri: str) -> Publication:
    """Points the agent at a registration file.

    Raises:
        RegistryError: see `IdentityWriter`.
    """
    if await writer.reader.token_uri(agent_id) == agent_uri:
        return summary_of(agent_id)
    return summary_of(agent_id, await writer.set_agent_uri(agent_id, agent_uri))


async def set_wallet(writer: IdentityWriter, agent_id: int, wallet: str, consent: Consent) -> Publication:
    """Sets the agent's wallet, which agrees to it by signing (ERC-8004, setAgentWallet).

    Raises:
        RegistryError: see `IdentityWriter`; also what `consent` raises.
    """
    reader, wanted = writer.reader, parse_address(wallet, "wallet")
    if await reader.get_agent_wallet(agent_id) == wanted:
        return summary_of(agent_id)
    # The chain's clock decides, and a consent that ends sooner than it may has room for one that is ahead of ours.
    with reader.chain.asking("the newest block"):
        now = max(int((await reader.chain.w3.eth.get_block("latest"))["timestamp"]), int(time.time()))
    document = agent_wallet_typed_data(
        chain_id=reader.chain.chain_id,
        registry=reader.address,
        agent_id=agent_id,
        wallet=wanted,
        owner=await reader.owner_of(agent_id),
        deadline=now + MAX_WALLET_DEADLINE - 60,
    )
    signature = await consent(document)
    return summary_of(
        agent_id, await writer.set_agent_wallet(agent_id, wanted, document["message"]["deadline"], signature)
    )


async def unset_wallet(writer: IdentityWriter, agent_id: int) -> Publication:
    """Leaves the agent without a wallet.

    Raises:
        RegistryError: see `IdentityWriter`.
    """
    if await writer.reader.get_agent_wallet(agent_id) is None:
        return summary_of(agent_id)
    return summary_of(agent_id, await writer.unset_agent_wallet(agent_id))


async def approve_operator(writer: IdentityWriter, operator: str, *, approved: bool) -> Publication | None:
    """Lets `operator` act for all agents of the writer's account, or ends that; None when it is so already.

    Raises:
        RegistryError: see `IdentityWriter`.
    """
    if await writer.reader.is_operator(writer.address, operator) is approved:
        return None
    return summary_of(0, await writer.set_operator(operator, approved=approved))


async def approve_for_agent(writer: IdentityWriter, agent_id: int, operator: str) -> Publication:
    """Lets `operator` act for one agent, until the agent changes hands.

    Raises:
        RegistryError: see `IdentityWriter`.
    """
    if await writer.reader.is_authorized(operator, agent_id):
        return summary_of(agent_id)
    return summary_of(agent_id, await writer.approve(agent_id, operator))


async def rotate_key(writer: IdentityWriter, agent_id: int, replica: str, record: KeyRecord) -> Publication:
    """Publishes a replica's new key in the slot of its two whose key is missed least; the other one stays.

    Raises:
        MalformedError: `replica` or the record cannot be encoded.
        RegistryError: see `IdentityWriter`.
    """
    ends: dict[str, int] = {}
    for slot in (replica, replica + SECOND_SLOT):
        there = await writer.reader.metadata(agent_id, key_name(slot))
        try:
            found = parse_key(there.value)
        except MalformedError:
            ends[slot] = 0
            continue
        if found == record and not there.stale:
            return summary_of(agent_id)
        ends[slot] = 0 if there.stale else found.expires_at
    slot = min(ends, key=lambda name: ends[name])
    return await publish_key(writer, agent_id, slot, record)
