"""Reading the ERC-8004 identity registry: who owns an agent, and what it says about itself. Needs no key.

A transfer of an agent clears its wallet but keeps its other metadata (ERC-8004 contracts v2.0.0), so a sold agent still
shows its old owner's signing keys. Metadata is therefore read together with the events that made it: what was written
before the last change of hands is stale.
"""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Final

from eth_utils.crypto import keccak
from web3.contract import AsyncContract
from web3.types import LogReceipt

from attestation.closing import AsyncCloseable
from attestation.encoding import address as parse_address
from attestation.registry.abi import METADATA_SET, REGISTERED, TRANSFER
from attestation.registry.errors import RegistryError, RevertedError, UnknownAgentError
from attestation.registry.rpc import DEFAULT_TIMEOUT, Chain, checksum, word

MAX_AGENT_ID: Final = (1 << 256) - 1
_NOBODY: Final = "0x" + "0" * 40


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where in the chain an event is. Later positions compare greater."""

    block: int
    log_index: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """An agent changed hands. Addresses are lower-case."""

    sender: str
    receiver: str
    position: Position


@dataclass(frozen=True, slots=True)
class Metadata:
    """One metadata entry. `value` is empty when nothing is set.

    written: where it was last written; None when it never was.
    stale: it was written before the agent last changed hands, so the present owner has not said it.
    """

    value: bytes
    written: Position | None
    stale: bool


class IdentityReader(AsyncCloseable):
    """The identity registry at `address` on chain `chain_id`, through the node at `rpc_url`.

    Args:
        rpc_url: an http or https JSON-RPC endpoint.
        chain_id: the chain it must serve.
        address: the registry, any spelling of its case.
        from_block: the first block whose logs matter, for nodes that serve few blocks of logs at a time; no later than
            the block in which the registry was deployed, or the agents in question were made.
        timeout: seconds for one request.

    Every method raises `WrongChainError` or `NoContractError` when that is the case, and `RpcError` when the node could
    not be asked. Close it, or use it with `async with`.
    """

    def __init__(
        self, rpc_url: str, chain_id: int, address: str, *, from_block: int = 0, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.address: Final = parse_address(address, "identity registry")
        self.chain: Final = Chain(rpc_url, chain_id, timeout=timeout)
        self.from_block: Final = from_block

    @property
    def registry_id(self) -> str:
        """``eip155:<chainId>:<address>``, as registration files name a registry."""
        return f"eip155:{self.chain.chain_id}:{self.address}"

    async def aclose(self) -> None:
        """Closes the connection to the node."""
        await self.chain.aclose()

    async def check(self) -> None:
        """Makes sure that the node serves the right chain and that there is a contract at the registry's address."""
        await self.contract()

    async def contract(self) -> AsyncContract:
        """The registry with its ABI, checked."""
        return await self.chain.contract("identity", self.address)

    async def owner_of(self, agent_id: int) -> str:
        """The agent's owner, lower-case.

        Raises:
            UnknownAgentError: there is no such agent.
        """
        contract = await self.contract()
        return str(await self._ask_agent(agent_id, contract.functions.ownerOf(agent_id), "the agent's owner")).lower()

    async def token_uri(self, agent_id: int) -> str:
        """The agent's URI; empty when none is set.

        Raises:
            UnknownAgentError: there is no such agent.
        """
        contract = await self.contract()
        return str(await self._ask_agent(agent_id, contract.functions.tokenURI(agent_id), "the agent's URI"))

    async def get_agent_wallet(self, agent_id: int) -> str | None:
        """The wallet that agreed to serve the agent, lower-case; None when there is none.

        Raises:
            UnknownAgentError: there is no such agent.
        """
        contract = await self.contract()
        function = contract.functions.getAgentWallet(agent_id)
        wallet = str(await self._ask_agent(agent_id, function, "the agent's wallet")).lower()
        return None if wallet == _NOBODY else wallet

    async def get_metadata(self, agent_id: int, key: str) -> bytes:
        """The bytes stored under `key`; empty for an unknown key and for an unknown agent.

        They may be stale: see `metadata`.
        """
        contract = await self.contract()
        return bytes(await self.chain.call(contract.functions.getMetadata(agent_id, key), f"the metadata {key}"))

    async def metadata(self, agent_id: int, key: str) -> Metadata:
        """The bytes stored under `key`, and whether the present owner stands behind them.

        Raises:
            RegistryError: there is a value, but the logs do not show where it was written (`from_block` is too late, or
                the node has pruned them).
        """
        value = await self.get_metadata(agent_id, key)
        written = await self.last_metadata_set(agent_id, key)
        if written is None:
            if value:
                raise RegistryError(
                    f"no event from block {self.from_block} on wrote {key} of agent {agent_id}, which has a value",
                    hint="Name an earlier first block, or a node that keeps all logs.",
                )
            return Metadata(value, None, stale=False)
        transfer = await self.last_transfer(agent_id)
        return Metadata(value, written, stale=transfer is not None and transfer.position > written)

    async def metadata_since(self, agent_id: int, key: str, block: int) -> tuple[Metadata, ...]:
        """The values that `key` had in `block` or later, the newest first, from the events.

        A value is stale when the agent changed hands between its being written and `block`.

        Raises:
            RegistryError: see the class.
        """
        contract = await self.contract()
        transfer = await self.last_transfer(agent_id, to_block=block)
        topics = (METADATA_SET, word(agent_id), keccak(text=key))
        found: list[Metadata] = []
        async for log in self.chain.logs_newest_first(self.address, topics, from_block=self.from_block):
            with self.chain.asking(f"the event that wrote {key}"):
                value = bytes(contract.events.MetadataSet().process_log(log)["args"]["metadataValue"])
            written = position_of(log)
            found.append(Metadata(value, written, stale=transfer is not None and transfer.position > written))
            if written.block <= block:
                break
        return tuple(found)

    async def last_metadata_set(self, agent_id: int, key: str) -> Position | None:
        """Where `key` was last written (event MetadataSet), or None."""
        topics = (METADATA_SET, word(agent_id), keccak(text=key))
        await self.contract()
        async for log in self.chain.logs_newest_first(self.address, topics, from_block=self.from_block):
            return position_of(log)
        return None

    async def last_transfer(self, agent_id: int, *, to_block: int | None = None) -> Transfer | None:
        """The last time the agent changed hands, or None. Being minted is not changing hands.

        Args:
            to_block: the last block that counts; None for all.
        """
        async for transfer in self._transfers(agent_id, to_block):
            return transfer
        return None

    async def transfers(self, agent_id: int) -> tuple[Transfer, ...]:
        """Every time the agent changed hands, the newest first. Being minted is not changing hands."""
        return tuple([transfer async for transfer in self._transfers(agent_id, None)])

    async def _transfers(self, agent_id: int, to_block: int | None) -> AsyncIterator[Transfer]:
        topics = (TRANSFER, None, None, word(agent_id))
        await self.contract()
        async for log in self.chain.logs_newest_first(
            self.address, topics, from_block=self.from_block, to_block=to_block
        ):
            sender, receiver = _address(log["topics"][1]), _address(log["topics"][2])
            # Some versions of the contract mint after writing the first metadata, so a mint proves nothing stale.
            if sender != _NOBODY:
                yield Transfer(sender, receiver, position_of(log))

    async def is_authorized(self, account: str, agent_id: int) -> bool:
        """Whether `account` may change the agent: its owner, an operator of the owner, or approved for this agent.

        Raises:
            UnknownAgentError: there is no such agent.
        """
        owner = await self.owner_of(agent_id)
        if parse_address(account, "account") == owner or await self.is_operator(owner, account):
            return True
        contract = await self.contract()
        function = contract.functions.getApproved(agent_id)
        return str(await self._ask_agent(agent_id, function, "the approved account")).lower() == account.lower()

    async def is_operator(self, owner: str, operator: str) -> bool:
        """Whether `owner` has made `operator` an operator of all its agents (ERC-721 setApprovalForAll)."""
        contract = await self.contract()
        function = contract.functions.isApprovedForAll(checksum(owner), checksum(operator))
        return bool(await self.chain.call(function, "the operator's rights"))

    async def find_agents(self, *, registered_by: Collection[str], held_by: Collection[str]) -> tuple[int, ...]:
        """The agents that one of `registered_by` registered and one of `held_by` owns now, in order of their ids.

        Found from the events: an agent that somebody else registered and then sent to a holder does not count.
        """
        await self.contract()
        holders = {parse_address(holder, "holder") for holder in held_by}
        candidates: set[int] = set()
        for account in {parse_address(account, "registrant") for account in registered_by}:
            topics = (REGISTERED, None, word(account))
            async for log in self.chain.logs_newest_first(self.address, topics, from_block=self.from_block):
                candidates.add(int.from_bytes(log["topics"][1], "big"))
        return tuple([agent_id for agent_id in sorted(candidates) if await self.owner_of(agent_id) in holders])

    async def _ask_agent(self, agent_id: int, function: object, what: str) -> object:
        try:
            return await self.chain.call(function, what)
        except RevertedError as error:
            if error.reason == "ERC721NonexistentToken":
                raise UnknownAgentError(agent_id) from error
            raise


def position_of(log: LogReceipt) -> Position:
    """Where an event is."""
    return Position(int(log["blockNumber"]), int(log["logIndex"]))


def _address(topic: bytes) -> str:
    return "0x" + bytes(topic)[-20:].hex()
