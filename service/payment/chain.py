"""Reading an EIP-3009 token over JSON-RPC: what became of an authorization, and whether the token is what we offer.

The chain is the only authority on whether a payment happened. `authorizationState` says that a nonce is spent;
only the events say on what: the payer may have cancelled it, or signed the same nonce twice and paid somebody else.
Source: EIP-3009, "Specification"; Ethereum JSON-RPC.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import httpx
from pydantic_core import from_json
from x402.mechanisms.evm.eip712 import hash_domain
from x402.mechanisms.evm.types import TypedDataDomain
from x402.mechanisms.evm.utils import is_valid_tx_hash

from service.payment.authorization import Authorization
from service.payment.facilitator import Outcome, Unavailable, Unused, Used, Void
from service.pricing import Asset

# First four bytes of the signature's hash.
AUTHORIZATION_STATE: Final = "0xe94a0102"  # authorizationState(address,bytes32)
BALANCE_OF: Final = "0x70a08231"  # balanceOf(address)
DECIMALS: Final = "0x313ce567"  # decimals()
DOMAIN_SEPARATOR: Final = "0x3644e515"  # DOMAIN_SEPARATOR()

AUTHORIZATION_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
AUTHORIZATION_CANCELED: Final = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"

LOG_CHUNK_BLOCKS: Final = 2_000
"""Blocks per `eth_getLogs`: the range that public nodes commonly allow."""

MAX_LOG_BLOCKS: Final = 100_000
"""How far back an event is searched: more than two days of two-second blocks, longer than any payment lives here."""

MAX_RESPONSE_BYTES: Final = 4 * 1024 * 1024
"""Longest answer read from a node."""

_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_BYTES: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")


class ChainError(Exception):
    """The node cannot be reached, refused the question, or gave an answer that makes no sense."""


class ChainReader:
    """A JSON-RPC connection to one EVM network, for reading only.

    Args:
        rpc_url: HTTP endpoint of a node.
        network: CAIP-2 name the node must be on.
        timeout_seconds: for one request.
        depth: how many blocks deep a payment must be before it counts, its own included; `outcome` tells the state
            of the chain as of so many blocks ago.
    """

    def __init__(self, rpc_url: str, network: str, *, timeout_seconds: float = 10.0, depth: int = 1) -> None:
        self._rpc_url = rpc_url
        self._network = network
        self._depth = depth
        self._client = httpx.AsyncClient(timeout=timeout_seconds)

    async def close(self) -> None:
        """Close pooled connections."""
        await self._client.aclose()

    async def outcome(self, authorization: Authorization, *, depth: int | None = None) -> Outcome:
        """What became of the authorization; never raises for what the node does.

        Args:
            depth: 1 for the newest block, where a transfer may be that does not count yet; that of this reader if None.
        """
        try:
            return await self._outcome(authorization, self._depth if depth is None else depth)
        except ChainError as error:
            return Unavailable(str(error))

    async def native_balance(self, address: str) -> int:
        """Wei held by `address`.

        Raises:
            ChainError: the node did not answer usefully.
        """
        return _quantity(await self._call("eth_getBalance", address, "latest"))

    async def token_balance(self, asset: str, holder: str) -> int:
        """Atomic units of `asset` held by `holder`.

        Raises:
            ChainError: the node did not answer usefully.
        """
        return _word(await self._read(asset, BALANCE_OF + _pad(holder)))

    async def problems(self, assets: Sequence[Asset]) -> list[str]:
        """Why payments in `assets` would fail on this node; empty when they would not."""
        try:
            chain_id = _quantity(await self._call("eth_chainId"))
        except ChainError as error:
            return [f"the chain {self._network} cannot be reached: {error}"]
        if f"eip155:{chain_id}" != self._network:
            return [f"the RPC endpoint serves eip155:{chain_id}, not {self._network}"]
        found = []
        for asset in assets:
            found += await self._asset_problems(asset)
        return found

    async def _asset_problems(self, asset: Asset) -> list[str]:
        name = f"token {asset.symbol} ({asset.address}) on {self._network}"
        domain = TypedDataDomain(
            name=asset.name, version=asset.version, chain_id=asset.chain_id, verifying_contract=asset.address
        )
        try:
            if _bytes(await self._call("eth_getCode", asset.address, "latest")) == b"":
                return [f"{name}: there is no contract at this address"]
            decimals = _word(await self._read(asset.address, DECIMALS))
            separator = await self._read(asset.address, DOMAIN_SEPARATOR)
        except ChainError as error:
            return [f"{name} cannot be checked: {error}"]
        found = []
        if decimals != asset.decimals:
            found.append(f"{name} has {decimals} decimals; the terms say {asset.decimals}")
        if separator != hash_domain(domain):
            found.append(f'{name}: its EIP-712 domain is not the offered "{asset.name}" version "{asset.version}"')
        return found

    async def _outcome(self, authorization: Authorization, depth: int) -> Outcome:
        # State and time must be of one block: "unspent after the authorization ran out" is final only together.
        number, time = await self._block_at(depth)
        data = AUTHORIZATION_STATE + _pad(authorization.payer) + authorization.nonce.removeprefix("0x")
        if not _word(await self._read(authorization.asset, data, hex(number))):
            return Unused(time)

        event = await self._find_event(authorization, number)
        if event is None:
            return Unavailable(f"the nonce is spent, but its event is not in the last {MAX_LOG_BLOCKS} blocks")
        if event["topics"][:1] == [AUTHORIZATION_CANCELED]:
            return Void("the payer has cancelled the authorization")
        transaction, used_in = event.get("transactionHash"), _quantity(event.get("blockNumber"))
        if not is_valid_tx_hash(transaction):
            raise ChainError("the node answered with an event without a transaction")
        if not await self._paid(authorization, transaction):
            return Void("the payer has spent the nonce on another transfer")
        return Used(str(transaction).lower(), used_in)

    async def _block_at(self, depth: int) -> tuple[int, int]:
        """Number and time (unix seconds) of the newest block that is so deep; the head is 1 deep."""
        number, time = await self._block("latest")
        return (number, time) if depth == 1 else await self._block(hex(max(0, number - depth + 1)))

    async def _block(self, name: str) -> tuple[int, int]:
        block = await self._call("eth_getBlockByNumber", name, False)
        if not isinstance(block, dict):
            raise ChainError(f"the node does not have the block {name}")
        return _quantity(block.get("number")), _quantity(block.get("timestamp"))

    async def _find_event(self, authorization: Authorization, head: int) -> dict[str, Any] | None:
        topics = [[AUTHORIZATION_USED, AUTHORIZATION_CANCELED], "0x" + _pad(authorization.payer), authorization.nonce]
        last = head
        while last >= 0 and head - last < MAX_LOG_BLOCKS:
            first = max(0, last - LOG_CHUNK_BLOCKS + 1)
            query = {"address": authorization.asset, "topics": topics, "fromBlock": hex(first), "toBlock": hex(last)}
            logs = _logs(await self._call("eth_getLogs", query))
            if logs:
                return logs[0]
            last = first - 1
        return None

    async def _paid(self, authorization: Authorization, transaction: Any) -> bool:
        """Whether the transfer that followed the event paid exactly us.

        A transaction may execute several authorizations, so only the token's next `Transfer` counts; both USDC and
        OpenZeppelin's ERC-3009 emit it right after `AuthorizationUsed`.
        """
        receipt = await self._call("eth_getTransactionReceipt", transaction)
        if not isinstance(receipt, dict):
            raise ChainError("the node has an event of a transaction, but not its receipt")
        ours = [AUTHORIZATION_USED, "0x" + _pad(authorization.payer), authorization.nonce]
        wanted = [TRANSFER, "0x" + _pad(authorization.payer), "0x" + _pad(authorization.pay_to)]
        seen = False
        for log in _logs(receipt.get("logs")):
            topics = log["topics"]
            if str(log.get("address")).lower() != authorization.asset or not topics:
                continue
            if topics == ours:
                seen = True
            elif seen and topics[0] == TRANSFER:
                return topics == wanted and _word(_bytes(log.get("data"))) == authorization.amount
            elif seen and topics[0] == AUTHORIZATION_USED:
                return False
        return False

    async def _read(self, contract: str, data: str, block: str = "latest") -> bytes:
        return _bytes(await self._call("eth_call", {"to": contract, "data": data}, block))

    async def _call(self, method: str, *params: Any) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        try:
            response = await self._client.post(self._rpc_url, json=request)
            if len(response.content) > MAX_RESPONSE_BYTES:
                raise ChainError(f"{method}: the node's answer is longer than {MAX_RESPONSE_BYTES} bytes")
            answer = from_json(response.content)  # json.loads has no safe limit here, see authorization.py
        except httpx.HTTPError as error:
            # The URL may hold an access key, so only the kind of failure is told.
            raise ChainError(f"{method}: the node did not answer ({type(error).__name__})") from error
        except ValueError as error:
            raise ChainError(f"{method}: the node answered with something that is not JSON") from error
        if not isinstance(answer, dict) or "result" not in answer:
            refusal = answer.get("error") if isinstance(answer, dict) else None
            message = refusal.get("message") if isinstance(refusal, dict) else None
            raise ChainError(f"{method}: the node refused: {str(message)[:200]}")
        return answer["result"]


def _pad(address: str) -> str:
    return address.lower().removeprefix("0x").rjust(64, "0")


def _quantity(value: Any) -> int:
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise ChainError("the node answered with something that is not a number")
    return int(value, 16)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str) or not _BYTES.fullmatch(value):
        raise ChainError("the node answered with something that is not hex bytes")
    return bytes.fromhex(value.removeprefix("0x"))


def _word(value: bytes) -> int:
    if len(value) != 32:
        raise ChainError("the contract did not answer with one 32-byte value; it may not be an EIP-3009 token")
    return int.from_bytes(value, "big")


def _logs(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ChainError("the node answered with something that is not a list of events")
    for log in value:
        well_formed = isinstance(log, dict) and isinstance(log.get("topics"), list)
        if not well_formed or not all(isinstance(topic, str) for topic in log["topics"]):
            raise ChainError("the node answered with an event that makes no sense")
    return [{**log, "topics": [topic.lower() for topic in log["topics"]]} for log in value]
