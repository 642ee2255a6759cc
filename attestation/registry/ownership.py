"""Whose an agent was, and which wallet it had, at any time: what tells a customer's rating from the agent's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from eth_utils.crypto import keccak

from attestation.registry.abi import APPROVAL, APPROVAL_FOR_ALL, METADATA_SET, TRANSFER
from attestation.registry.erc8004 import IdentityReader, Position, position_of
from attestation.registry.rpc import word
from attestation.registry.validation import topic_address

WALLET_KEY: Final = "agentWallet"
"""The reserved metadata key under which the identity registry keeps an agent's wallet."""
_NOBODY: Final = "0x" + "0" * 40
_ADDRESS_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class Ownership:
    """The past of one agent. Addresses are lower-case; changes are the oldest first.

    owners: who has ever held it. transfers: when it changed hands; being minted is not. wallets: the wallet that was
    set, or None when it was cleared, and when. operators: who was ever allowed to act for it (ERC-721 approvals), and
    since when.
    """

    owners: frozenset[str]
    transfers: tuple[Position, ...]
    wallets: tuple[tuple[Position, str | None], ...]
    operators: Mapping[str, Position]

    def wallet_at(self, at: Position) -> str | None:
        """The agent's wallet when that event happened. Changing hands clears it."""
        before = [(when, wallet) for when, wallet in self.wallets if when < at]
        if not before:
            return None
        written, wallet = before[-1]
        return None if any(written < sold < at for sold in self.transfers) else wallet

    @property
    def accounts(self) -> frozenset[str]:
        """Every account that has ever been the agent's owner or wallet."""
        return self.owners | {wallet for _, wallet in self.wallets if wallet is not None}


async def read_ownership(identity: IdentityReader, agent_id: int) -> Ownership:
    """Reads the past of an agent from the identity registry's events.

    Raises:
        RegistryError: see `IdentityReader`.
    """
    contract = await identity.contract()
    owners: set[str] = {await identity.owner_of(agent_id)}
    transfers: list[Position] = []
    topics = (TRANSFER, None, None, word(agent_id))
    async for log in identity.chain.logs_newest_first(identity.address, topics, from_block=identity.from_block):
        sender = topic_address(log, 1)
        owners |= {sender, topic_address(log, 2)}
        if sender != _NOBODY:
            transfers.append(position_of(log))
    wallets: list[tuple[Position, str | None]] = []
    topics_ = (METADATA_SET, word(agent_id), keccak(text=WALLET_KEY))
    async for log in identity.chain.logs_newest_first(identity.address, topics_, from_block=identity.from_block):
        with identity.chain.asking("the event that set the agent's wallet"):
            value = bytes(contract.events.MetadataSet().process_log(log)["args"]["metadataValue"])
        wallets.append((position_of(log), "0x" + value.hex() if len(value) == _ADDRESS_BYTES else None))
    held_by = frozenset(owners - {_NOBODY})
    return Ownership(
        held_by, tuple(reversed(transfers)), tuple(reversed(wallets)), await _operators(identity, agent_id, held_by)
    )


async def _operators(identity: IdentityReader, agent_id: int, owners: frozenset[str]) -> dict[str, Position]:
    """The first approval of each account, for this agent or by one of its owners for all of theirs."""
    found: dict[str, Position] = {}
    searches: list[tuple[bytes | None, ...]] = [(APPROVAL, None, None, word(agent_id))]
    searches += [(APPROVAL_FOR_ALL, word(owner)) for owner in sorted(owners)]
    for topics in searches:
        async for log in identity.chain.logs_newest_first(identity.address, topics, from_block=identity.from_block):
            if topics[0] == APPROVAL or int.from_bytes(log["data"], "big"):
                account, when = topic_address(log, 2), position_of(log)
                found[account] = min(when, found.get(account, when))
    found.pop(_NOBODY, None)
    return found
