"""One connection to one chain, checked before it is believed.

Every question has a timeout. Whatever goes wrong below comes out as one of the errors of `attestation.registry.errors`,
so a caller can tell "the chain says no" from "the chain could not be asked".
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientResponseError, ClientTimeout
from eth_typing import URI, ChecksumAddress
from eth_utils.address import to_checksum_address
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.contract import AsyncContract
from web3.exceptions import BadFunctionCallOutput, ContractLogicError, Web3Exception, Web3RPCError
from web3.types import LogReceipt, RPCEndpoint

from attestation.closing import AsyncCloseable
from attestation.encoding import address as parse_address
from attestation.registry.abi import AbiName, load
from attestation.registry.errors import (
    NoContractError,
    RateLimitedError,
    RegistryError,
    RevertedError,
    RpcError,
    RpcRefusedError,
    RpcTimeoutError,
    WrongChainError,
)

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for one request to a node."""

MAX_LOG_REQUESTS: Final = 1_000
"""Requests one search through the logs may take. Nodes that serve few blocks at a time need a later first block."""

_SMALLEST_LOG_WINDOW: Final = 10
"""Blocks; the least that known public nodes serve in one request for logs."""

TRIES: Final = 4
"""How often one question is put to a node that cannot be reached or wants to be asked later."""
_FIRST_PAUSE: Final = 0.25
MAX_RETRY_AFTER: Final = 15
"""Seconds a node may ask us to wait before a question; one that asks for more is not waited for."""
_HICCUPS: Final = frozenset({502, 503, 504})
_SEND: Final = "eth_sendRawTransaction"
_RATE_LIMIT_CODES: Final = frozenset({429, -32097})
_RATE_LIMIT_WORDS: Final = ("rate limit", "too many requests", "request limit")

Topic = bytes | None
"""One position of a log filter: 32 bytes that must match, or None for anything."""


class _Provider(AsyncHTTPProvider):
    """Asks again where that can help: no connection, no answer in time, or a node that says when (RFC 9110, 429)."""

    def __init__(self, rpc_url: str, timeout: float) -> None:
        super().__init__(rpc_url, request_kwargs={"timeout": ClientTimeout(total=timeout)})
        self._url = URI(rpc_url)

    async def _make_request(self, method: RPCEndpoint, request_data: bytes) -> bytes:
        pause = _FIRST_PAUSE
        for left in reversed(range(TRIES)):
            try:
                return await self._once(request_data)
            except ClientResponseError as error:
                asked = retry_after(error)
                again = error.status == 429 or (error.status in _HICCUPS and method != _SEND)
                if not again or not left or (asked or 0) > MAX_RETRY_AFTER:
                    raise
                pause = max(pause, asked or 0)
            except (ClientError, TimeoutError):
                # A transaction whose fate is unknown is not sent twice: that would answer "already known".
                if method == _SEND or not left:
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the last try returns or raises")

    async def _once(self, request_data: bytes) -> bytes:
        return await self._request_session_manager.async_make_post_request(
            self._url, request_data, **self.get_request_kwargs()
        )


class Chain(AsyncCloseable):
    """A connection to the node at `rpc_url`, which must serve `chain_id`. Close it, or use it with `async with`."""

    def __init__(self, rpc_url: str, chain_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._host = urlsplit(rpc_url).hostname or "?"  # the rest of the URL may hold an access key
        self.chain_id = chain_id
        self._provider = _Provider(rpc_url, timeout)
        self.w3: AsyncWeb3[AsyncHTTPProvider] = AsyncWeb3(self._provider)
        self._checked: set[str] = set()
        self._chain_checked = False

    async def aclose(self) -> None:
        """Closes the connection's sockets."""
        await self._provider.disconnect()

    async def check(self) -> None:
        """Asks the node which chain it serves, once.

        Raises:
            WrongChainError: another one.
            RpcError: the node could not be asked.
        """
        if self._chain_checked:
            return
        with self.asking("the chain id"):
            actual = int(await self.w3.eth.chain_id)
        if actual != self.chain_id:
            raise WrongChainError(self.chain_id, actual)
        self._chain_checked = True

    async def contract(self, name: AbiName, address: str) -> AsyncContract:
        """The contract at `address` with the ABI `name`, after checking once that there is code.

        Raises:
            NoContractError: there is none.
            WrongChainError, RpcError: see `check`.
        """
        target = checksum(address)
        if target not in self._checked:
            await self.check()
            with self.asking(f"the code at {target}"):
                code = await self.w3.eth.get_code(target)
            if not code:
                raise NoContractError(target.lower(), self.chain_id)
            self._checked.add(target)
        return self.w3.eth.contract(address=target, abi=load(name))

    async def call(self, function: Any, what: str) -> Any:
        """The answer of a contract's view function.

        Raises:
            RevertedError: the contract refused.
            RpcError: the node could not be asked.
        """
        with self.asking(what):
            return await function.call()

    async def block_number(self) -> int:
        """The newest block's number.

        Raises:
            RpcError: the node could not be asked.
        """
        with self.asking("the newest block"):
            return int(await self.w3.eth.block_number)

    async def logs_newest_first(
        self, address: str, topics: Sequence[Topic], *, from_block: int = 0, to_block: int | None = None
    ) -> AsyncIterator[LogReceipt]:
        """The logs of one contract that match `topics`, the newest first, from `to_block` (or now) to `from_block`.

        Asks for the whole range first, for smaller windows when the node refuses that many blocks or is too slow for
        them, and for larger ones again where there was little to find.

        Raises:
            RpcError: the node could not be asked, or the range needs more than MAX_LOG_REQUESTS requests.
        """
        await self.check()
        newest = await self.block_number()
        high = newest if to_block is None else min(newest, to_block)
        window = high - from_block + 1
        refused = window + 1  # the smallest window that was too large
        requests = 0
        while high >= from_block:
            low = max(from_block, high - window + 1)
            requests += 1
            if requests > MAX_LOG_REQUESTS:
                raise RpcError(
                    f"{self._host} serves so few blocks of logs at a time that {MAX_LOG_REQUESTS} requests did not do",
                    hint="Name a later first block (the one the registry or the agent was made in), or another node.",
                )
            try:
                found = await self._logs(address, topics, low, high)
            except (RpcRefusedError, RpcTimeoutError):
                if window <= _SMALLEST_LOG_WINDOW:
                    raise
                refused = min(refused, window)
                window = max(_SMALLEST_LOG_WINDOW, window // 4)
                continue
            if 2 * window < refused:
                window *= 2
            for log in sorted(found, key=lambda log: (log["blockNumber"], log["logIndex"]), reverse=True):
                yield log
            high = low - 1

    async def _logs(self, address: str, topics: Sequence[Topic], low: int, high: int) -> list[LogReceipt]:
        # Built by hand: a topic of an indexed string is a hash, and agent 0 is 32 zero bytes, not "no filter".
        words: list[Any] = [None if topic is None else "0x" + topic.hex() for topic in topics]
        with self.asking(f"the logs of blocks {low} to {high}"):
            return list(
                await self.w3.eth.get_logs(
                    {"address": checksum(address), "topics": words, "fromBlock": low, "toBlock": high}
                )
            )

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Turns whatever a web3 call raises into an error of this package; `what` names the question."""
        try:
            yield
        except RegistryError:
            raise
        except ContractLogicError as error:
            message = (error.message or "").removeprefix("execution reverted").removeprefix(": ")
            raise RevertedError(what, message or "no reason given", _revert_data(error)) from error
        except BadFunctionCallOutput as error:
            raise RpcError(f"asking {self._host} for {what}: the contract there does not have this function") from error
        except Web3RPCError as error:
            if _is_rate_limit(error):
                raise RateLimitedError(self._host, what, None) from error
            raise RpcRefusedError(f"asking {self._host} for {what}: {_short(error.message)}") from error
        except ClientResponseError as error:
            if error.status == 429:
                raise RateLimitedError(self._host, what, retry_after(error)) from error
            raise RpcRefusedError(f"asking {self._host} for {what}: HTTP status {error.status}") from error
        except TimeoutError as error:
            raise RpcTimeoutError(f"asking {self._host} for {what}: no answer in time") from error
        except (ClientError, OSError) as error:
            raise RpcError(f"asking {self._host} for {what}: no connection ({type(error).__name__})") from error
        except (Web3Exception, ValueError, TypeError, KeyError) as error:
            raise RpcError(f"asking {self._host} for {what}: unusable answer ({type(error).__name__})") from error


def checksum(value: str) -> ChecksumAddress:
    """The checksummed form of an address, which web3 insists on.

    Raises:
        MalformedError: not an address.
    """
    return to_checksum_address(parse_address(value, "address"))


def word(value: int | str) -> bytes:
    """A non-negative integer or an address as the 32 bytes of a log topic."""
    number = int(value, 16) if isinstance(value, str) else value
    return number.to_bytes(32, "big")


def retry_after(error: ClientResponseError) -> int | None:
    """Seconds from an answer's Retry-After; None without one, or where it is a date."""
    value = "" if error.headers is None else error.headers.get("retry-after", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 6 else None


def _is_rate_limit(error: Web3RPCError) -> bool:
    response = error.rpc_response or {}
    details = response.get("error")
    code = details.get("code") if isinstance(details, dict) else None
    return code in _RATE_LIMIT_CODES or any(word in str(error.message).lower() for word in _RATE_LIMIT_WORDS)


def _revert_data(error: ContractLogicError) -> str | None:
    return error.data if isinstance(error.data, str) else None


def _short(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 200 else text[:200] + "…"
