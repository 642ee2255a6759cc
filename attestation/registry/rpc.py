"""One connection to one chain, checked before it is believed.

Every question has a timeout. Whatever goes wrong below comes out as one of the errors of `attestation.registry.errors`,
so a caller can tell "the chain says no" from "the chain could not be asked".
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientResponseError, ClientTimeout
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.contract import AsyncContract
from web3.exceptions import BadFunctionCallOutput, ContractLogicError, Web3Exception, Web3RPCError
from web3.providers.rpc.utils import REQUEST_RETRY_ALLOWLIST, ExceptionRetryConfiguration
from web3.types import LogReceipt

from attestation.closing import AsyncCloseable
from attestation.encoding import address as parse_address
from attestation.registry.abi import AbiName, load
from attestation.registry.errors import (
    NoContractError,
    RegistryError,
    RevertedError,
    RpcError,
    RpcRefusedError,
    WrongChainError,
)

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for one request to a node."""

MAX_LOG_REQUESTS: Final = 1_000
"""Requests one search through the logs may take. Nodes that serve few blocks at a time need a later first block."""

_SMALLEST_LOG_WINDOW: Final = 100
_RETRIES: Final = 3

Topic = bytes | None
"""One position of a log filter: 32 bytes that must match, or None for anything."""


class Chain(AsyncCloseable):
    """A connection to the node at `rpc_url`, which must serve `chain_id`. Close it, or use it with `async with`."""

    def __init__(self, rpc_url: str, chain_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._host = urlsplit(rpc_url).hostname or "?"  # the rest of the URL may hold an access key
        self.chain_id = chain_id
        self._provider = AsyncHTTPProvider(
            rpc_url,
            request_kwargs={"timeout": ClientTimeout(total=timeout)},
            exception_retry_configuration=ExceptionRetryConfiguration(
                errors=(ClientError, TimeoutError),
                retries=_RETRIES,
                # Sending twice would answer "already known" for a transaction that went through.
                method_allowlist=[name for name in REQUEST_RETRY_ALLOWLIST if name != "eth_sendRawTransaction"],
            ),
        )
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

    async def logs_newest_first(
        self, address: str, topics: Sequence[Topic], *, from_block: int = 0, to_block: int | None = None
    ) -> AsyncIterator[LogReceipt]:
        """The logs of one contract that match `topics`, the newest first, from `to_block` (or now) to `from_block`.

        Asks for the whole range first, and for smaller and smaller windows when the node refuses that many blocks.

        Raises:
            RpcError: the node could not be asked, or the range needs more than MAX_LOG_REQUESTS requests.
        """
        await self.check()
        with self.asking("the newest block"):
            newest = int(await self.w3.eth.block_number)
        high = newest if to_block is None else min(newest, to_block)
        window = high - from_block + 1
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
            except RpcRefusedError:
                if window <= _SMALLEST_LOG_WINDOW:
                    raise
                window = max(_SMALLEST_LOG_WINDOW, window // 8)
                continue
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
            raise RpcRefusedError(f"asking {self._host} for {what}: {_short(error.message)}") from error
        except ClientResponseError as error:
            raise RpcRefusedError(f"asking {self._host} for {what}: HTTP status {error.status}") from error
        except TimeoutError as error:
            raise RpcError(f"asking {self._host} for {what}: no answer in time") from error
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


def _revert_data(error: ContractLogicError) -> str | None:
    return error.data if isinstance(error.data, str) else None


def _short(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 200 else text[:200] + "…"
