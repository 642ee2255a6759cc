"""Keeps an agent and its records as they should be: reads first, sends only the differences, reads back.

Two steps, because a keyset names the agent it belongs to: `ensure_agent` finds the agent or mints it once, then, with
the keyset made for that agent, `publish` brings its URI and its two records up to date. A restart with the same agent,
manifest and keyset sends nothing.

The operator (the writer's account) pays; the agent belongs to the owner. When they differ, the owner must first have
called setApprovalForAll for the operator: that is checked before anything is minted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from attestation.encoding import address as parse_address
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import AgentChoiceError, NotOurAgentError
from attestation.registry.records import (
    MANIFEST_KEY,
    KeyRecord,
    encode_key,
    encode_manifest,
    key_name,
    parse_key,
    parse_manifest,
)
from attestation.registry.writer import IdentityWriter, Sent


@dataclass(frozen=True, slots=True)
class Desired:
    """What the chain should say.

    agent_uri: where the registration file is.
    manifest_digest: ``sha256:<hex>`` of the build manifest.
    replica: the name of this instance (see `records.key_name`).
    key: the keyset this instance runs under.
    """

    agent_uri: str
    manifest_digest: str
    replica: str
    key: KeyRecord


@dataclass(frozen=True, slots=True)
class Publication:
    """What had to be done. `transactions` are hashes in the order they were sent; none when nothing had changed."""

    agent_id: int
    transactions: tuple[str, ...]
    gas_used: int
    minted: bool


@dataclass(frozen=True, slots=True)
class Published:
    """What the chain says about an agent. A record is None when it is not there.

    A stale record was written before the agent last changed hands: it must not be believed.
    """

    agent_id: int
    owner: str
    agent_uri: str
    manifest_digest: str | None
    manifest_stale: bool
    key: KeyRecord | None
    key_stale: bool


async def ensure_agent(
    writer: IdentityWriter, *, agent_uri: str, owner: str, agent_id: int | None = None, mint: bool = False
) -> Publication:
    """The agent to run as: the named one, else the one found on the chain, else (when allowed) a new one.

    An agent found in the operator's hands, left there by a start that was cut short, is handed over to the owner.

    Args:
        agent_uri: given to a new agent; also tells several agents of one owner apart.
        owner: who shall own the agent; may be the writer's own account.
        agent_id: the agent to use, when it is known. 0 is an agent.
        mint: whether a new agent may be made.

    Raises:
        UnknownAgentError: the named agent does not exist.
        NotOurAgentError: it belongs to somebody else, or the owner has not approved the operator.
        AgentChoiceError: there is none and none may be made, or there are several and none is named.
        RegistryError: see `IdentityWriter`.
    """
    owner = parse_address(owner, "owner")
    reader = writer.reader
    if agent_id is None:
        if mint:
            await writer.catch_up()  # a start that was cut short may have sent a registration that is not mined yet
        agent_id = await _find(writer, owner, agent_uri)
    else:
        holder = await reader.owner_of(agent_id)
        if holder not in (owner, writer.address):
            raise NotOurAgentError(f"agent {agent_id} belongs to {holder}, not to {owner}")
    if agent_id is None and not mint:
        raise AgentChoiceError(
            f"{owner} has no agent in {reader.registry_id}", hint="Allow a new one to be minted, or name its id."
        )
    if agent_id is None or not await _may_write(writer, owner, agent_id):
        await _require_operator(writer, owner)
    sent: list[Sent] = []
    minted = agent_id is None
    if agent_id is None:
        registered = await writer.register(agent_uri)
        agent_id = registered.agent_id
        sent.append(registered.sent)
    if await reader.owner_of(agent_id) != owner:
        sent.append(await writer.transfer(agent_id, owner))
    return _publication(agent_id, sent, minted=minted)


async def publish(writer: IdentityWriter, agent_id: int, desired: Desired) -> Publication:
    """Makes the chain say `desired` about the agent, with one transaction for each thing that differs.

    A record with the right bytes that was written before the agent last changed hands is written again.

    Raises:
        MalformedError: a field of `desired` cannot be encoded.
        RegistryError: see `IdentityWriter`.
    """
    records = {
        MANIFEST_KEY: encode_manifest(desired.manifest_digest),
        key_name(desired.replica): encode_key(desired.key),
    }
    sent: list[Sent] = []
    if await writer.reader.token_uri(agent_id) != desired.agent_uri:
        sent.append(await writer.set_agent_uri(agent_id, desired.agent_uri))
    sent.extend(await _write(writer, agent_id, records))
    return _publication(agent_id, sent, minted=False)


async def publish_key(writer: IdentityWriter, agent_id: int, slot: str, key: KeyRecord) -> Publication:
    """Makes one slot (`slot` follows ``tee.key.``) hold this key, and touches nothing else.

    A running service whose keys change has no say about the agent's URI and manifest: another replica, of a newer
    build, may have changed them since.

    Raises:
        MalformedError: `slot` or a field of `key` cannot be encoded.
        RegistryError: see `IdentityWriter`.
    """
    sent = await _write(writer, agent_id, {key_name(slot): encode_key(key)})
    return _publication(agent_id, sent, minted=False)


async def published(reader: IdentityReader, agent_id: int, replica: str) -> Published:
    """What the chain says about an agent and one of its replicas. Needs no key.

    Raises:
        MalformedError: a record is there and is not one.
        RegistryError: see `IdentityReader`.
    """
    manifest = await reader.metadata(agent_id, MANIFEST_KEY)
    key = await reader.metadata(agent_id, key_name(replica))
    return Published(
        agent_id=agent_id,
        owner=await reader.owner_of(agent_id),
        agent_uri=await reader.token_uri(agent_id),
        manifest_digest=parse_manifest(manifest.value) if manifest.value else None,
        manifest_stale=manifest.stale,
        key=parse_key(key.value) if key.value else None,
        key_stale=key.stale,
    )


async def _write(writer: IdentityWriter, agent_id: int, records: Mapping[str, bytes]) -> list[Sent]:
    sent: list[Sent] = []
    for key, value in records.items():
        there = await writer.reader.metadata(agent_id, key)
        if there.stale or there.value != value:
            sent.append(await writer.set_metadata(agent_id, key, value))
    return sent


async def _find(writer: IdentityWriter, owner: str, agent_uri: str) -> int | None:
    ours = (owner, writer.address)
    reader = writer.reader
    owned = await reader.find_agents(registered_by=ours, held_by=(owner,))
    waiting = await reader.find_agents(registered_by=ours, held_by=(writer.address,)) if writer.address != owner else ()
    same = [agent_id for agent_id in (*owned, *waiting) if await reader.token_uri(agent_id) == agent_uri]
    # One with our URI is ours. Without one: a service that moved keeps its only agent, but an agent that waits in the
    # operator's hands under another URI may be meant for another owner.
    candidates = same or owned
    if len(candidates) > 1:
        listed = ", ".join(str(agent_id) for agent_id in candidates)
        raise AgentChoiceError(f"{owner} has several agents ({listed})", hint="Name the id of the one to use.")
    return candidates[0] if candidates else None


async def _may_write(writer: IdentityWriter, owner: str, agent_id: int) -> bool:
    """Whether the operator can write now and still could after handing the agent over."""
    held_by_owner = await writer.reader.owner_of(agent_id) == owner
    return held_by_owner and await writer.reader.is_authorized(writer.address, agent_id)


async def _require_operator(writer: IdentityWriter, owner: str) -> None:
    if writer.address != owner and not await writer.reader.is_operator(owner, writer.address):
        raise NotOurAgentError(
            f"{owner} has not made {writer.address} an operator of its agents",
            hint=f"The owner calls setApprovalForAll({writer.address}, true) on {writer.reader.address} once.",
        )


def _publication(agent_id: int, sent: list[Sent], *, minted: bool) -> Publication:
    return Publication(
        agent_id=agent_id,
        transactions=tuple(one.transaction for one in sent),
        gas_used=sum(one.gas_used for one in sent),
        minted=minted,
    )
