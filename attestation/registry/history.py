"""What an agent's records have said over time, from the registry's events: which key was valid in which block."""

from collections.abc import Sequence
from dataclasses import dataclass

from attestation.errors import MalformedError
from attestation.registry.abi import METADATA_SET
from attestation.registry.erc8004 import IdentityReader, Position, Transfer, position_of
from attestation.registry.records import KEY_PREFIX, KeyRecord, parse_key
from attestation.registry.rpc import word


@dataclass(frozen=True, slots=True)
class Entry:
    """One value that a metadata key had, from the event that wrote it.

    until: where it was written over or emptied; None while it stands.
    lapsed: where the agent first changed hands after it was written; from there on nobody stands behind it. None when
        it did not.
    """

    key: str
    value: bytes
    written: Position
    until: Position | None
    lapsed: Position | None

    @property
    def stands(self) -> bool:
        """Whether it is what the key holds now, and the present owner is who wrote it."""
        return self.until is None and self.lapsed is None

    def holds_at(self, block: int) -> bool:
        """Whether it held at the end of a block, and its owner still stood behind it then."""
        ends = [end.block for end in (self.until, self.lapsed) if end is not None]
        return self.written.block <= block and all(end > block for end in ends)

    @property
    def record(self) -> KeyRecord | None:
        """The key record in it; None for another kind of entry, and for bytes that are none."""
        if not self.key.startswith(KEY_PREFIX):
            return None
        try:
            return parse_key(self.value)
        except MalformedError:
            return None


async def history(reader: IdentityReader, agent_id: int) -> tuple[Entry, ...]:
    """Every metadata entry that the agent ever had, the oldest first. Empty values are ends, not entries.

    Raises:
        RegistryError: see `IdentityReader`.
    """
    contract = await reader.contract()
    transfers = await reader.transfers(agent_id)
    newest: dict[str, Position] = {}
    found: list[Entry] = []
    topics = (METADATA_SET, word(agent_id))
    async for log in reader.chain.logs_newest_first(reader.address, topics, from_block=reader.from_block):
        with reader.chain.asking("a metadata event"):
            event = contract.events.MetadataSet().process_log(log)["args"]
            key, value = str(event["metadataKey"]), bytes(event["metadataValue"])
        written = position_of(log)
        if value:
            found.append(Entry(key, value, written, newest.get(key), _first_after(transfers, written)))
        newest[key] = written
    return tuple(reversed(found))


def _first_after(transfers: Sequence[Transfer], written: Position) -> Position | None:
    after = [transfer.position for transfer in transfers if transfer.position > written]
    return min(after) if after else None
