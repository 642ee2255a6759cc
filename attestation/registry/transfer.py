"""What a change of hands has left of an agent: a transfer clears its wallet and keeps all other metadata."""

from dataclasses import dataclass

from attestation.registry.erc8004 import IdentityReader, Transfer
from attestation.registry.history import Entry, history


@dataclass(frozen=True, slots=True)
class TransferReport:
    """An agent as somebody sees it who has bought it, or is about to.

    transfers: every change of hands, the newest first.
    standing: entries that the present owner stands behind.
    stale: entries that an earlier owner wrote and that are still shown. Nobody must believe them.
    wallet: the wallet that agreed to serve the agent, or None.
    """

    agent_id: int
    owner: str
    agent_uri: str
    wallet: str | None
    transfers: tuple[Transfer, ...]
    standing: tuple[Entry, ...]
    stale: tuple[Entry, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing of an earlier owner is left."""
        return not self.stale


async def transfer_report(reader: IdentityReader, agent_id: int) -> TransferReport:
    """What an agent's transfers have left.

    Raises:
        UnknownAgentError: there is no such agent.
        RegistryError: see `IdentityReader`.
    """
    owner = await reader.owner_of(agent_id)
    present = [entry for entry in await history(reader, agent_id) if entry.until is None]
    return TransferReport(
        agent_id=agent_id,
        owner=owner,
        agent_uri=await reader.token_uri(agent_id),
        wallet=await reader.get_agent_wallet(agent_id),
        transfers=await reader.transfers(agent_id),
        standing=tuple(entry for entry in present if entry.lapsed is None),
        stale=tuple(entry for entry in present if entry.lapsed is not None),
    )
