"""Keeps an agent and its records as they should be: reads first, sends only the differences, reads back.

Two steps, because a keyset names the agent it belongs to: `ensure_agent` finds the agent or mints it once, then, with
the keyset made for that agent, `publish` brings its URI and its two records up to date. A restart with the same agent,
manifest and keyset sends nothing.

The operator (the writer's account) pays; the agent belongs to the owner. When they differ, the owner must first have
called setApprovalForAll for the operator: that is checked before anything is minted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from attestation.encoding import address as parse_address
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import AgentChoiceError, NonceTakenError, NotOurAgentError, RevertedError
from attestation.registry.find import received_from, registrations
from attestation.registry.readback import Sent
from attestation.registry.records import (
    MANIFEST_KEY,
    KeyRecord,
    encode_key,
    encode_manifest,
    key_name,
    parse_key,
    parse_manifest,
)
from attestation.registry.writer import IdentityWriter, Registered

MINT_TRIES: Final = 5
"""How often a search for the agent is repeated because the account sent something else in between."""


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
    withdrawn: int | None = None
    """An agent that this process minted and does not use, because another process was first; its URI is empty."""


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
    writer: IdentityWriter,
    *,
    agent_uri: str,
    owner: str,
    agent_id: int | None = None,
    mint: bool = False,
    by_uri: bool = False,
    metadata: Mapping[str, bytes] | None = None,
) -> Publication:
    """The agent to run as: the named one, else the one found on the chain, else (when allowed) a new one.

    An agent found in the operator's hands, left there by a start that was cut short, is handed over to the owner.

    Of several processes that start at the same moment with one account, one mints: the registration is sent with the
    account nonce from before the search, so it can be mined only when the account has sent nothing since, and the
    others search again. Processes with accounts of their own may each mint; then the lowest id stays, and the others
    keep theirs to themselves, without a URI (docs/adr/0010).

    Args:
        agent_uri: given to a new agent; also tells several agents of one owner apart.
        owner: who shall own the agent; may be the writer's own account.
        agent_id: the agent to use, when it is known. 0 is an agent.
        mint: whether a new agent may be made.
        by_uri: only an agent with this very URI is the one; an owner may have others.
        metadata: given to a new agent that stays with the writer's account. One that is handed over gets none: its
            owner has not said it.

    Raises:
        UnknownAgentError: the named agent does not exist.
        NotOurAgentError: it belongs to somebody else, or the owner has not approved the operator.
        AgentChoiceError: there is none and none may be made, or there are several and none is named.
        RegistryError: see `IdentityWriter`.
    """
    owner = parse_address(owner, "owner")
    await writer.reader.check()
    if agent_id is not None:
        return await _named(writer, owner, agent_id)
    nonce = 0
    for _ in range(MINT_TRIES):
        if mint:
            # Also waits for a registration that a start which was cut short has sent.
            nonce = await writer.settled_nonce()
        since = await writer.reader.chain.block_number()
        agent_id = await _find(writer, owner, agent_uri, by_uri=by_uri)
        if agent_id is not None:
            return await _take(writer, owner, agent_id)
        if not mint:
            raise AgentChoiceError(
                f"{owner} has no agent in {writer.reader.registry_id}",
                hint="Allow a new one to be minted, or name its id.",
            )
        await _require_operator(writer, owner)
        try:
            registered = await writer.register(agent_uri, metadata if owner == writer.address else None, nonce=nonce)
        except NonceTakenError:
            continue  # somebody with this account was faster, perhaps with this very agent
        kept = await _only_one(writer, owner, agent_uri, registered, since)
        if kept == registered.agent_id:
            sent = [registered.sent, *await _hand_over(writer, owner, kept)]
            return _publication(kept, sent, minted=True)
        sent = [registered.sent, await writer.set_agent_uri(registered.agent_id, "")]
        return _publication(kept, sent, minted=True, withdrawn=registered.agent_id)
    raise NonceTakenError("registering", writer.address, nonce)


async def _named(writer: IdentityWriter, owner: str, agent_id: int) -> Publication:
    holder = await writer.reader.owner_of(agent_id)
    if holder not in (owner, writer.address):
        raise NotOurAgentError(
            f"agent {agent_id} belongs to {holder}, not to {owner}",
            hint="It was sold, or agent_owner or agent_id name another one than was meant.",
        )
    return await _take(writer, owner, agent_id)


async def _take(writer: IdentityWriter, owner: str, agent_id: int) -> Publication:
    """An agent that exists, in its owner's hands, which the writer may change."""
    if not await _may_write(writer, owner, agent_id):
        await _require_operator(writer, owner)
    return _publication(agent_id, await _hand_over(writer, owner, agent_id), minted=False)


async def _hand_over(writer: IdentityWriter, owner: str, agent_id: int) -> list[Sent]:
    if await writer.reader.owner_of(agent_id) == owner:
        return []
    try:
        return [await writer.transfer(agent_id, owner)]
    except RevertedError:
        # Another process with this account may have done it in the meantime.
        if await writer.reader.owner_of(agent_id) != owner:
            raise
        return []


async def _only_one(writer: IdentityWriter, owner: str, agent_uri: str, minted: Registered, since: int) -> int:
    """The agent that stays, after minting one: a process with another account may have minted one too.

    Ids are given in order, so whoever has the lowest sees no lower one, and everybody else sees it.
    """
    reader = writer.reader
    rivals = [
        other.agent_id
        async for other in registrations(reader, from_block=since)
        if other.agent_id < minted.agent_id
        and other.agent_uri == agent_uri
        and (other.registered_by == owner or await reader.is_operator(owner, other.registered_by))
    ]
    return min(rivals, default=minted.agent_id)


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


async def clear_keys(writer: IdentityWriter, agent_id: int, slots: Sequence[str]) -> Publication:
    """Empties slots (each follows ``tee.key.``): from then on no new purchase under their keys is believed. Purchases
    from before stay verifiable, because the events keep what a slot held when.

    Raises:
        MalformedError: a slot's name is none.
        RegistryError: see `IdentityWriter`.
    """
    return await publish_records(writer, agent_id, {key_name(slot): b"" for slot in slots})


async def publish_records(writer: IdentityWriter, agent_id: int, records: Mapping[str, bytes]) -> Publication:
    """Makes metadata keys hold these values, with one transaction for each that differs or is stale.

    Raises:
        RegistryError: see `IdentityWriter`.
    """
    return summary_of(agent_id, *await _write(writer, agent_id, records))


async def publish_key(writer: IdentityWriter, agent_id: int, slot: str, key: KeyRecord) -> Publication:
    """Makes one slot (`slot` follows ``tee.key.``) hold this key, and touches nothing else.

    A running service whose keys change has no say about the agent's URI and manifest: another replica, of a newer
    build, may have changed them since.

    Raises:
        MalformedError: `slot` or a field of `key` cannot be encoded.
        RegistryError: see `IdentityWriter`.
    """
    return await publish_records(writer, agent_id, {key_name(slot): encode_key(key)})


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
        # A stale record that is empty says nothing, whoever wrote it.
        if there.value != value or (there.stale and value):
            sent.append(await writer.set_metadata(agent_id, key, value))
    return sent


async def _find(writer: IdentityWriter, owner: str, agent_uri: str, *, by_uri: bool) -> int | None:
    reader, ours = writer.reader, (owner, writer.address)
    owned = set(await reader.find_agents(registered_by=ours, held_by=(owner,)))
    waiting = await reader.find_agents(registered_by=ours, held_by=(writer.address,)) if writer.address != owner else ()
    # What another operator of the owner registered and handed over. A gift of anybody else is not taken for ours.
    for agent_id, senders in (await received_from(reader, owner)).items():
        if agent_id not in owned and await _any_operator(reader, owner, senders):
            owned.update([agent_id] if await reader.owner_of(agent_id) == owner else [])
    # One with our URI is ours, the first when there are several: every process chooses the same.
    for agent_id in sorted({*owned, *waiting}):
        if await reader.token_uri(agent_id) == agent_uri:
            return agent_id
    if by_uri:
        return None
    # Without one: a service that moved keeps its only agent, but an agent that waits in the operator's hands under
    # another URI may be meant for another owner. Agents without a URI were withdrawn.
    candidates = [agent_id for agent_id in sorted(owned) if await reader.token_uri(agent_id)] or sorted(owned)
    if len(candidates) > 1:
        listed = ", ".join(str(agent_id) for agent_id in candidates)
        raise AgentChoiceError(f"{owner} has several agents ({listed})", hint="Name the id of the one to use.")
    return candidates[0] if candidates else None


async def _any_operator(reader: IdentityReader, owner: str, accounts: Collection[str]) -> bool:
    for account in accounts:
        if int(account, 16) and await reader.is_operator(owner, account):
            return True
    return False


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


def summary_of(agent_id: int, *sent: Sent) -> Publication:
    """What was sent for an agent that was there before."""
    return _publication(agent_id, list(sent), minted=False)


def combine(agent_id: int, *parts: Publication) -> Publication:
    """Several changes to one agent as one."""
    return Publication(
        agent_id=agent_id,
        transactions=tuple(sent for part in parts for sent in part.transactions),
        gas_used=sum(part.gas_used for part in parts),
        minted=any(part.minted for part in parts),
    )


def _publication(agent_id: int, sent: list[Sent], *, minted: bool, withdrawn: int | None = None) -> Publication:
    return Publication(
        agent_id=agent_id,
        transactions=tuple(one.transaction for one in sent),
        gas_used=sum(one.gas_used for one in sent),
        minted=minted,
        withdrawn=withdrawn,
    )
