"""Everything that the identity registry says of one agent, as of one block: what a page about it shows."""

from dataclasses import dataclass
from typing import Final

from attestation.errors import MalformedError
from attestation.registry.abi import METADATA_SET
from attestation.registry.erc8004 import IdentityReader, position_of
from attestation.registry.records import KEY_PREFIX, MANIFEST_KEY, KeyRecord, parse_key, parse_manifest
from attestation.registry.rpc import word
from attestation.registry.validation import text

MAX_SLOTS: Final = 64
"""Key slots that are shown; an owner may write any number."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One `tee.key.<replica>`. `record` is None when it is cleared, or is no record.

    stale: the agent changed hands after it was written, so its present owner has not said it.
    """

    name: str
    record: KeyRecord | None
    block: int
    stale: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """An agent as the chain has it. `uri` is whatever its owner wrote. A wallet that is not set is None."""

    owner: str
    wallet: str | None
    uri: str
    manifest_digest: str | None
    manifest_stale: bool
    slots: tuple[Slot, ...]
    block: int


async def read_profile(identity: IdentityReader, agent_id: int) -> Profile:
    """Reads an agent.

    Raises:
        UnknownAgentError: there is no such agent.
        RegistryError: see `IdentityReader`.
    """
    block = await identity.chain.block_number()
    owner = await identity.owner_of(agent_id)
    transfer = await identity.last_transfer(agent_id)
    manifest = await identity.metadata(agent_id, MANIFEST_KEY)
    slots: dict[str, Slot] = {}
    topics = (METADATA_SET, word(agent_id))
    async for log in identity.chain.logs_newest_first(identity.address, topics, from_block=identity.from_block):
        key, value = identity.chain.w3.codec.decode(["bytes", "bytes"], bytes(log["data"]))
        name = text(key)
        if name in slots or not name.startswith(KEY_PREFIX) or len(slots) == MAX_SLOTS:
            continue
        written = position_of(log)
        stale = transfer is not None and transfer.position > written
        slots[name] = Slot(name, _record(value), written.block, stale)
    return Profile(
        owner=owner,
        wallet=await identity.get_agent_wallet(agent_id),
        uri=await identity.token_uri(agent_id),
        manifest_digest=_manifest(manifest.value),
        manifest_stale=manifest.stale,
        slots=tuple(sorted(slots.values(), key=lambda slot: slot.name)),
        block=block,
    )


def _record(value: bytes) -> KeyRecord | None:
    try:
        return parse_key(value)
    except MalformedError:
        return None


def _manifest(value: bytes) -> str | None:
    try:
        return parse_manifest(value)
    except MalformedError:
        return None
