"""Writing to the ERC-8004 identity registry, with an explicit signer.

Every write is estimated first (so a refusal costs nothing), capped in price, waited for, read back and compared.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from eth_account.signers.local import LocalAccount
from web3.exceptions import TimeExhausted
from web3.types import TxParams, TxReceipt, Wei

from attestation.encoding import address as parse_address
from attestation.registry.abi import REGISTERED
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import (
    FeeTooHighError,
    ReadBackError,
    RevertedError,
    UnconfirmedError,
    UnknownAgentError,
)
from attestation.registry.rpc import checksum

MAX_WALLET_DEADLINE: Final = 300
"""Seconds from now that the contract accepts as the deadline of a wallet's consent."""


@dataclass(frozen=True, slots=True)
class FeeCaps:
    """The most one transaction may cost.

    max_fee_per_gas: wei for one unit of gas, tip included.
    max_gas: units of gas, the margin over the estimate included.
    """

    max_fee_per_gas: int = 50 * 10**9
    max_gas: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Sent:
    """A mined and checked transaction. `transaction` is its hash: 0x and 64 lower-case hex characters."""

    transaction: str
    gas_used: int
    block: int


@dataclass(frozen=True, slots=True)
class Registered:
    """A new agent."""

    agent_id: int
    sent: Sent


class IdentityWriter:
    """Changes agents in the registry that `reader` reads, as `account`, which pays the gas.

    Args:
        reader: the registry; also used to read back. The caller closes it.
        account: signs and pays.
        fees: caps; a transaction beyond them is not sent.
        receipt_timeout: seconds to wait until a transaction is mined.
        read_back_timeout: seconds a lagging node gets to show what was mined.

    Methods that write raise `RevertedError` (the contract refuses), `FeeTooHighError`, `UnconfirmedError`,
    `ReadBackError`, and what `IdentityReader` raises.
    """

    _MARGIN: Final = 125
    """Percent of the estimate that is sent along: the same call may cost a little more in the block it lands in."""

    def __init__(
        self,
        reader: IdentityReader,
        account: LocalAccount,
        *,
        fees: FeeCaps | None = None,
        receipt_timeout: float = 120.0,
        read_back_timeout: float = 10.0,
    ) -> None:
        self.reader: Final = reader
        self.address: Final = account.address.lower()
        self._account = account
        self._fees = fees or FeeCaps()
        self._receipt_timeout = receipt_timeout
        self._read_back_timeout = read_back_timeout
        self._one_at_a_time = asyncio.Lock()  # two transactions must not take the same account nonce

    async def register(self, agent_uri: str, metadata: Mapping[str, bytes] | None = None) -> Registered:
        """Mints an agent to this account."""
        contract = await self.reader.contract()
        entries = [(key, value) for key, value in (metadata or {}).items()]
        receipt = await self._send(
            contract.get_function_by_signature("register(string,(string,bytes)[])")(agent_uri, entries), "registering"
        )
        agent_id = self._minted(receipt)
        await self._seen("the new agent's owner", self.address, lambda: self.reader.owner_of(agent_id))
        await self._seen("the new agent's URI", agent_uri, lambda: self.reader.token_uri(agent_id))
        for key, value in entries:
            await self._seen_metadata(agent_id, key, value)
        return Registered(agent_id, _sent(receipt))

    async def set_metadata(self, agent_id: int, key: str, value: bytes) -> Sent:
        """Writes one metadata entry; an empty value clears it."""
        contract = await self.reader.contract()
        receipt = await self._send(contract.functions.setMetadata(agent_id, key, value), f"writing {key}")
        await self._seen_metadata(agent_id, key, value)
        return _sent(receipt)

    async def set_agent_uri(self, agent_id: int, agent_uri: str) -> Sent:
        """Points the agent at another registration file."""
        contract = await self.reader.contract()
        receipt = await self._send(contract.functions.setAgentURI(agent_id, agent_uri), "changing the agent's URI")
        await self._seen("the agent's URI", agent_uri, lambda: self.reader.token_uri(agent_id))
        return _sent(receipt)

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
        return _sent(receipt)

    async def approve(self, agent_id: int, operator: str) -> Sent:
        """Lets `operator` act for this one agent (ERC-721 approve; ends with the next transfer)."""
        contract = await self.reader.contract()
        receipt = await self._send(contract.functions.approve(checksum(operator), agent_id), "approving an operator")
        await self._seen("the operator's rights", True, lambda: self.reader.is_authorized(operator, agent_id))
        return _sent(receipt)

    async def set_operator(self, operator: str, *, approved: bool) -> Sent:
        """Lets `operator` act for all agents of this account, or ends that (ERC-721 setApprovalForAll)."""
        contract = await self.reader.contract()
        function = contract.functions.setApprovalForAll(checksum(operator), approved)
        receipt = await self._send(function, "changing an operator's rights")
        await self._seen("the operator's rights", approved, lambda: self.reader.is_operator(self.address, operator))
        return _sent(receipt)

    async def transfer(self, agent_id: int, receiver: str) -> Sent:
        """Gives the agent to `receiver`. Clears its wallet; all other metadata becomes stale."""
        contract = await self.reader.contract()
        owner = await self.reader.owner_of(agent_id)
        function = contract.functions.transferFrom(checksum(owner), checksum(receiver), agent_id)
        receipt = await self._send(function, "transferring the agent")
        expected = parse_address(receiver, "receiver")
        await self._seen("the agent's owner", expected, lambda: self.reader.owner_of(agent_id))
        return _sent(receipt)

    async def catch_up(self) -> None:
        """Waits until every transaction that this account has sent so far is mined, or was dropped.

        Raises:
            RpcError: the node could not be asked, or one is still not mined after the receipt timeout.
        """
        chain = self.reader.chain
        with chain.asking("the transactions that this account has sent"):
            count = chain.w3.eth.get_transaction_count
            sent = await count(self._account.address, "pending")
            async with asyncio.timeout(self._receipt_timeout):
                while await count(self._account.address, "latest") < sent:
                    await asyncio.sleep(0.2)
                    sent = min(sent, await count(self._account.address, "pending"))

    async def _send(self, function: Any, what: str) -> TxReceipt:
        chain = self.reader.chain
        eth = chain.w3.eth
        async with self._one_at_a_time:
            with chain.asking(what):
                gas = int(await function.estimate_gas({"from": self._account.address})) * self._MARGIN // 100
            if gas > self._fees.max_gas:
                raise FeeTooHighError(f"{what} needs {gas} gas; the cap is {self._fees.max_gas}")
            fee, tip = await self._price(what)
            with chain.asking(what):
                params: TxParams = await function.build_transaction(
                    {
                        "from": self._account.address,
                        "chainId": chain.chain_id,
                        "nonce": await eth.get_transaction_count(self._account.address, "pending"),
                        "gas": gas,
                        "maxFeePerGas": Wei(fee),
                        "maxPriorityFeePerGas": Wei(tip),
                    }
                )
                signed = self._account.sign_transaction(cast(dict[str, Any], params))
                sent = await eth.send_raw_transaction(signed.raw_transaction)
        with chain.asking(f"the receipt of {what}"):
            try:
                receipt = await eth.wait_for_transaction_receipt(sent, self._receipt_timeout, poll_latency=0.1)
            except TimeExhausted as error:
                raise UnconfirmedError(sent.to_0x_hex(), self._receipt_timeout) from error
        if receipt["status"] != 1:
            raise RevertedError(what, f"transaction {sent.to_0x_hex()} failed when it was mined")
        return receipt

    async def _price(self, what: str) -> tuple[int, int]:
        """Fee cap and tip in wei for one unit of gas: room for the base fee to double, never beyond our cap."""
        chain = self.reader.chain
        with chain.asking("the gas price"):
            block = await chain.w3.eth.get_block("latest")
            tip = int(await chain.w3.eth.max_priority_fee)
            base = int(block["baseFeePerGas"])
        cap = self._fees.max_fee_per_gas
        if base + tip > cap:
            raise FeeTooHighError(f"{what} would cost {base + tip} wei for one unit of gas; the cap is {cap}")
        return min(2 * base + tip, cap), tip

    def _minted(self, receipt: TxReceipt) -> int:
        for log in receipt["logs"]:
            if log["address"].lower() == self.reader.address and bytes(log["topics"][0]) == REGISTERED:
                return int.from_bytes(log["topics"][1], "big")
        raise ReadBackError(f"transaction {receipt['transactionHash'].to_0x_hex()} registered no agent")

    async def _seen_metadata(self, agent_id: int, key: str, value: bytes) -> None:
        await self._seen(f"the metadata {key}", value, lambda: self.reader.get_metadata(agent_id, key))

    async def _seen(self, what: str, expected: object, read: Callable[[], Awaitable[object]]) -> None:
        """Reads until `expected` shows. A node behind a load balancer may be a block or two late."""
        try:
            async with asyncio.timeout(self._read_back_timeout):
                while True:
                    try:
                        if await read() == expected:
                            return
                    except (RevertedError, UnknownAgentError):  # an agent so new that this node does not know it yet
                        pass
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise ReadBackError(f"the transaction was mined, but {what} does not show what was written") from error


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


def _sent(receipt: TxReceipt) -> Sent:
    return Sent(receipt["transactionHash"].to_0x_hex(), int(receipt["gasUsed"]), int(receipt["blockNumber"]))
