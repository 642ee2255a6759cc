"""Reading an EIP-3009 token: what became of an authorization, and whether the token is what we offer.

The chain is the only authority on whether a payment happened. `authorizationState` says that a nonce is spent;
only the events say on what: the payer may have cancelled it, or signed the same nonce twice and paid somebody else.
Source: EIP-3009, "Specification"; Ethereum JSON-RPC.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from attestation.eip712 import domain_separator
from service.payment.authorization import Authorization
from service.payment.erc3009 import (
    AUTHORIZATION_CANCELED,
    AUTHORIZATION_USED,
    DECIMALS,
    DOMAIN_SEPARATOR,
    Log,
    authorization_state,
    balance_of,
    nonce_key,
    one_word,
    paid_by,
    parse_logs,
    topic,
    transfers,
)
from service.payment.evm_rpc import Call, ChainError, Node, hash_text, hex_data, json_object, quantity
from service.payment.facilitator import Outcome, Unavailable, Unused, Used, Void
from service.pricing import Asset

LOG_CHUNK_BLOCKS: Final = 2_000
"""Blocks per `eth_getLogs`: the range that public nodes commonly allow."""

MAX_LOG_BLOCKS: Final = 100_000
"""How far back an event is searched: more than two days of two-second blocks, longer than any payment lives here."""


class ChainReader:
    """A JSON-RPC connection to one EVM network, for reading only.

    Args:
        rpc_url: HTTP endpoint of a node.
        network: CAIP-2 name the node must be on.
        timeout_seconds: for one request.
        depth: how many blocks deep a payment must be before it counts, its own included; `outcome` tells the state
            of the chain as of so many blocks ago.
        max_head_age_seconds: how old the node's latest block may be; None where blocks are made on demand only.
        clock: unix seconds, for the age of the latest block.
        node: a connection to use instead of one of its own; it stays open.
    """

    def __init__(
        self,
        rpc_url: str,
        network: str,
        *,
        timeout_seconds: float = 10.0,
        depth: int = 1,
        max_head_age_seconds: int | None = None,
        clock: Callable[[], float] = time.time,
        node: Node | None = None,
    ) -> None:
        self._network = network
        self._depth = depth
        self._max_head_age = max_head_age_seconds
        self._clock = clock
        self._node = Node(rpc_url, timeout_seconds=timeout_seconds) if node is None else node
        self._owns_node = node is None
        self._good: set[Asset] = set()
        """Tokens that were found to be what they are offered as: no token changes its name in a running service."""

    async def close(self) -> None:
        """Close pooled connections."""
        if self._owns_node:
            await self._node.close()

    async def outcome(self, authorization: Authorization, *, depth: int | None = None) -> Outcome:
        """What became of the authorization; never raises for what the node does.

        Args:
            depth: 1 for the newest block, where a transfer may be that does not count yet; that of this reader if None.
        """
        try:
            return await self._outcome(authorization, self._depth if depth is None else depth)
        except ChainError as error:
            return Unavailable(str(error))

    async def token_balance(self, asset: str, holder: str) -> int:
        """Atomic units of `asset` held by `holder`.

        Raises:
            ChainError: the node did not answer usefully.
        """
        return one_word(await self._ask(_read(asset, balance_of(holder))))

    async def problems(self, assets: Sequence[Asset]) -> list[str]:
        """Why payments in `assets` would fail on this node; empty when they would not. One request."""
        asked = [asset for asset in assets if asset not in self._good]
        calls: list[Call] = [("eth_chainId", []), ("eth_getBlockByNumber", ["latest", False])]
        for asset in asked:
            calls.append(("eth_getCode", [asset.address, "latest"]))
            calls += [_read(asset.address, DECIMALS), _read(asset.address, DOMAIN_SEPARATOR)]
        try:
            chain_id, block, *answers = await self._node.batch(calls)
            network = f"eip155:{quantity(chain_id)}"
            head = quantity(json_object(block, "latest block").get("timestamp"))
        except ChainError as error:
            return [f"the chain {self._network} cannot be reached: {error}"]
        if network != self._network:
            return [f"the RPC endpoint serves {network}, not {self._network}"]
        found = []
        age = int(self._clock()) - head
        if self._max_head_age is not None and age > self._max_head_age:
            found.append(
                f"the node of {self._network} stands still: its latest block is {age} s old; "
                f"at most {self._max_head_age} s are accepted"
            )
        for index, asset in enumerate(asked):
            wrong = self._asset_problems(asset, *answers[3 * index : 3 * index + 3])
            found += wrong
            if not wrong:
                self._good.add(asset)
        return found

    def _asset_problems(self, asset: Asset, code: Any, decimals: Any, separator: Any) -> list[str]:
        name = f"token {asset.symbol} ({asset.address}) on {self._network}"
        try:
            if hex_data(code) == b"":
                return [f"{name}: there is no contract at this address"]
            has_decimals = one_word(hex_data(decimals))
            has_domain = hex_data(separator)
        except ChainError as error:
            return [f"{name} cannot be checked: {error}"]
        found = []
        if has_decimals != asset.decimals:
            found.append(f"{name} has {has_decimals} decimals; the terms say {asset.decimals}")
        if has_domain != domain_separator(asset.name, asset.version, asset.chain_id, asset.address.lower()):
            found.append(f'{name}: its EIP-712 domain is not the offered "{asset.name}" version "{asset.version}"')
        return found

    async def _ask(self, call: Call) -> bytes:
        method, params = call
        return hex_data(await self._node.call(method, *params))

    async def _outcome(self, authorization: Authorization, depth: int) -> Outcome:
        # State and time must be of one block: "unspent after the authorization ran out" is final only together.
        number, time_ = await self._block_at(depth)
        state = await self._ask(_read(authorization.asset, authorization_state(authorization), hex(number)))
        if not one_word(state):
            return Unused(time_)

        event = await self._find_event(authorization, number)
        if event is None:
            return Unavailable(f"the nonce is spent, but its event is not in the last {MAX_LOG_BLOCKS} blocks")
        used_in = quantity(event.block)
        if event.topics[:1] == (AUTHORIZATION_CANCELED,):
            return Void("the payer has cancelled the authorization")
        transaction = hash_text(event.transaction)
        receipt = json_object(await self._node.call("eth_getTransactionReceipt", transaction), "receipt of an event")
        made = transfers(parse_logs(receipt.get("logs")))
        if nonce_key(authorization) not in made:
            raise ChainError("the node has an event of a transaction whose receipt does not have it")
        if made[nonce_key(authorization)] != paid_by(authorization):
            return Void("the payer has spent the nonce on another transfer")
        return Used(transaction, used_in)

    async def _block_at(self, depth: int) -> tuple[int, int]:
        """Number and time (unix seconds) of the newest block that is so deep; the head is 1 deep."""
        number, time_ = await self._block("latest")
        return (number, time_) if depth == 1 else await self._block(hex(max(0, number - depth + 1)))

    async def _block(self, name: str) -> tuple[int, int]:
        block = json_object(await self._node.call("eth_getBlockByNumber", name, False), f"block {name}")
        return quantity(block.get("number")), quantity(block.get("timestamp"))

    async def _find_event(self, authorization: Authorization, head: int) -> Log | None:
        topics = [[AUTHORIZATION_USED, AUTHORIZATION_CANCELED], topic(authorization.payer), authorization.nonce]
        last = head
        while last >= 0 and head - last < MAX_LOG_BLOCKS:
            first = max(0, last - LOG_CHUNK_BLOCKS + 1)
            query = {"address": authorization.asset, "topics": topics, "fromBlock": hex(first), "toBlock": hex(last)}
            logs = parse_logs(await self._node.call("eth_getLogs", query))
            if logs:
                return logs[0]
            last = first - 1
        return None


def _read(contract: str, data: bytes, block: str = "latest") -> Call:
    return ("eth_call", [{"to": contract, "data": "0x" + data.hex()}, block])
