"""Finding agents in the identity registry's events: by owner, by who registered them, by what their file offers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from attestation.encoding import address as parse_address
from attestation.registry.abi import REGISTERED, TRANSFER
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import UnknownAgentError
from attestation.registry.rpc import word


@dataclass(frozen=True, slots=True)
class RegisteredAgent:
    """A registration as its event says it. `agent_uri` may have changed since. The address is lower-case."""

    agent_id: int
    agent_uri: str
    registered_by: str
    block: int


async def registrations(
    reader: IdentityReader, *, registered_by: str | None = None, from_block: int | None = None
) -> AsyncIterator[RegisteredAgent]:
    """Registrations from the events, the newest first.

    Args:
        registered_by: only those of this account.
        from_block: the first block that counts; the reader's own by default.

    Raises:
        RegistryError: see `IdentityReader`.
    """
    contract = await reader.contract()
    account = None if registered_by is None else word(parse_address(registered_by, "registrant"))
    first = reader.from_block if from_block is None else max(from_block, reader.from_block)
    async for log in reader.chain.logs_newest_first(reader.address, (REGISTERED, None, account), from_block=first):
        with reader.chain.asking("a registration"):
            event = contract.events.Registered().process_log(log)["args"]
        yield RegisteredAgent(
            int(event["agentId"]), str(event["agentURI"]), str(event["owner"]).lower(), int(log["blockNumber"])
        )


async def received_from(reader: IdentityReader, owner: str) -> dict[int, frozenset[str]]:
    """The agents that ever came to `owner`, each with the accounts it came from; a new one comes from address 0.

    Raises:
        RegistryError: see `IdentityReader`.
    """
    await reader.check()
    topics = (TRANSFER, None, word(parse_address(owner, "owner")), None)
    found: dict[int, set[str]] = {}
    async for log in reader.chain.logs_newest_first(reader.address, topics, from_block=reader.from_block):
        agent_id = int.from_bytes(log["topics"][3], "big")
        found.setdefault(agent_id, set()).add("0x" + bytes(log["topics"][1])[-20:].hex())
    return {agent_id: frozenset(senders) for agent_id, senders in found.items()}


async def owned_by(reader: IdentityReader, owner: str) -> tuple[int, ...]:
    """The agents that `owner` holds now, in order of their ids, however they came to it.

    Raises:
        RegistryError: see `IdentityReader`.
    """
    holder = parse_address(owner, "owner")
    agents = sorted(await received_from(reader, holder))
    return tuple([agent_id for agent_id in agents if await _holder(reader, agent_id) == holder])


async def _holder(reader: IdentityReader, agent_id: int) -> str | None:
    try:
        return await reader.owner_of(agent_id)
    except UnknownAgentError:
        return None  # it was burnt
