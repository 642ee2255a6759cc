"""Writing to the ERC-8004 identity registry, with an explicit signer.

Every write goes through `Sender`, is read back and compared.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from web3.types import TxReceipt

from attestation.encoding import address as parse_address
from attestation.registry.abi import REGISTERED
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import ReadBackError
from attestation.registry.readback import READ_BACK_SECONDS, Sent, read_back
from attestation.registry.rpc import checksum
from attestation.registry.sender import FeeCaps, Sender
from attestation.registry.signer import Signer

MAX_WALLET_DEADLINE: Final = 300
"""Seconds from now that the contract accepts as the deadline of a wallet's consent."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A new agent."""

    agent_id: int
    sent: Sent


class IdentityWriter:
    """Changes agents in the registry that `reader` reads, as `account`, which pays the gas.

    Args:
        reader: the registry; also used to read back. The caller closes it.
        account: signs and pays: a key, or a `Signer`.
        fees, receipt_timeout, confirmations: see `Sender`.
        read_back_timeout: seconds a lagging node gets to show what was mined.

    Methods that write raise what `Sender.send` raises, `ReadBackError`, and what `IdentityReader` raises.
    """

    def __init__(
        self,
        reader: IdentityReader,
        account: LocalAccount | Signer,
        *,
        fees: FeeCaps | None = None,
        receipt_timeout: float = 120.0,
        read_back_timeout: float = READ_BACK_SECONDS,
        confirmations: int = 1,
    ) -> None:
        self.reader: Final = reader
        self.sender: Final = Sender(
            reader.chain, account, fees=fees, receipt_timeout=receipt_timeout, confirmations=confirmations
        )
        self.address: Final = self.sender.address
        self._read_back_timeout = read_back_timeout

    async def register(
        self, agent_uri: str, metadata: Mapping[str, bytes] | None = None, *, nonce: int | None = None
    ) -> Registered:
        """Mints an agent to this account.

        Args:
            nonce: see `Sender.send`.
        """
        contract = await self.reader.contract()
        entries = [(key, value) for key, value in (metadata or {}).items()]
        if entries:
            function = contract.get_function_by_signature("register(string,(string,bytes)[])")(agent_uri, entries)
        else:
            function = contract.get_function_by_signature("register(string)")(agent_uri)
        receipt = await self._send(function, "registering", nonce=nonce)
        agent_id = self._minted(receipt)
        await self._seen("the new agent's owner", self.address, lambda: self.reader.owner_of(agent_id))
        await self._seen("the new agent's URI", agent_uri, lambda: self.reader.token_uri(agent_id))
        for key, value in entries:
            await self._seen_metadata(agent_id, key, value)
        return Registered(agent_id, Sent.of(receipt))

    async def set_metadata(self, agent_id: int, key: str, value: bytes) -> Sent:
        """Writes one metadata entry; an empty value clears it."""
        contract = await self.reader.contract()
        receipt = await self._send(contract.functions.setMetadata(agent_id, key, value), f"writing {key}")
        await self._seen_metadata(agent_id, key, value)
        return Sent.of(receipt)

    async def set_agent_uri(self, agent_id: int, agent_uri: str) -> Sent:
        """Points the agent at another registration file."""
        contract = await self.reader.contract()
        receipt = await self._send(contract.functions.setAgentURI(agent_id, agent_uri), "changing the agent's URI")
        await self._seen("the agent's URI", agent_uri, lambda: self.reader.token_uri(agent_id))
        return Sent.of(receipt)

    async def set_agent_wallet(self, agent_id: int, wallet: str, deadline: int, signature: bytes) -> Sent:
        """Sets the agent's wallet, with the wallet's consent: `signature` over `agent_wallet_typed_data`.

        Args:
            wallet: the new wallet, a key's address or a contract wallet (ERC-1271).
            deadline: unix seconds, at most MAX_WALLET_DEADLINE from now.
        """
        contract = await self.reader.contract()
        function = contract.functions.setAgentWallet(agent_id, checksum(wallet), deadline, signature)
        receipt = await self._send(function, "changing the agent's wallet")
        expected = parse_address(wallet, "wallet")
        await self._seen("the agent's wallet", expected, lambda: self.reader.get_agent_wallet(agent_id))
        return Sent.of(receipt)

    async def unset_agent_wallet(self, agent_id: int) -> Sent:
        """Leaves the agent without a wallet."""
        contract = await self.reader.contract()
        receipt = await self._send(contract.functions.unsetAgentWallet(agent_id), "removing the agent's wallet")
        await self._seen("the agent's wallet", None, lambda: self.reader.get_agent_wallet(agent_id))
        return Sent.of(receipt)

    async def approve(self, agent_id: int, operator: str) -> Sent:
        """Lets `operator` act for this one agent (ERC-721 approve; ends with the next transfer)."""
        contract = await self.reader.contract()
        receipt = await self._send(contract.functions.approve(checksum(operator), agent_id), "approving an operator")
        await self._seen("the operator's rights", True, lambda: self.reader.is_authorized(operator, agent_id))
        return Sent.of(receipt)

    async def set_operator(self, operator: str, *, approved: bool) -> Sent:
        """Lets `operator` act for all agents of this account, or ends that (ERC-721 setApprovalForAll)."""
        contract = await self.reader.contract()
        function = contract.functions.setApprovalForAll(checksum(operator), approved)
        receipt = await self._send(function, "changing an operator's rights")
        await self._seen("the operator's rights", approved, lambda: self.reader.is_operator(self.address, operator))
        return Sent.of(receipt)

    async def transfer(self, agent_id: int, receiver: str) -> Sent:
        """Gives the agent to `receiver`. Clears its wallet; all other metadata becomes stale."""
        contract = await self.reader.contract()
        owner = await self.reader.owner_of(agent_id)
        function = contract.functions.transferFrom(checksum(owner), checksum(receiver), agent_id)
        receipt = await self._send(function, "transferring the agent")
        expected = parse_address(receiver, "receiver")
        await self._seen("the agent's owner", expected, lambda: self.reader.owner_of(agent_id))
        return Sent.of(receipt)

    async def settled_nonce(self) -> int:
        """See `Sender.settled_nonce`."""
        return await self.sender.settled_nonce()

    async def _send(self, function: Any, what: str, *, nonce: int | None = None) -> TxReceipt:
        return await self.sender.send(function, what, nonce=nonce)

    def _minted(self, receipt: TxReceipt) -> int:
        for log in receipt["logs"]:
            if log["address"].lower() == self.reader.address and bytes(log["topics"][0]) == REGISTERED:
                return int.from_bytes(log["topics"][1], "big")
        raise ReadBackError(f"transaction {receipt['transactionHash'].to_0x_hex()} registered no agent")

    async def _seen_metadata(self, agent_id: int, key: str, value: bytes) -> None:
        await self._seen(f"the metadata {key}", value, lambda: self.reader.get_metadata(agent_id, key))

    async def _seen(self, what: str, expected: object, read: Callable[[], Awaitable[object]]) -> None:
        await read_back(what, expected, read, seconds=self._read_back_timeout)


def agent_wallet_typed_data(
    *, chain_id: int, registry: str, agent_id: int, wallet: str, owner: str, deadline: int
) -> dict[str, Any]:
    """The EIP-712 document that a new agent wallet signs (ERC-8004 identity registry, setAgentWallet)."""
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "AgentWalletSet": [
                {"name": "agentId", "type": "uint256"},
                {"name": "newWallet", "type": "address"},
                {"name": "owner", "type": "address"},
                {"name": "deadline", "type": "uint256"},
            ],
        },
        "primaryType": "AgentWalletSet",
        "domain": {
            "name": "ERC8004IdentityRegistry",
            "version": "1",
            "chainId": chain_id,
            "verifyingContract": checksum(registry),
        },
        "message": {
            "agentId": agent_id,
            "newWallet": checksum(wallet),
            "owner": checksum(owner),
            "deadline": deadline,
        },
    }
