"""The facilitator in our own process: the official SDK's `exact` scheme, with our operator key paying the gas.

The SDK's code blocks, so it runs in threads. Its answers are not precise enough to act on: a node that times out after
it was given a transaction, a node that cannot be reached and a transfer that reverts can all come out as
`transaction_failed`, and an unreachable node as an invalid signature. `_Signer` therefore notes what really happened
on the way (`_Trace`), and whenever that leaves a doubt the chain is asked what became of the nonce.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import requests
from requests.adapters import HTTPAdapter
from web3 import HTTPProvider
from web3.exceptions import BadFunctionCallOutput, ContractLogicError
from x402 import x402FacilitatorSync
from x402.mechanisms.evm.constants import ERR_INSUFFICIENT_BALANCE, ERR_NONCE_ALREADY_USED, ERR_VALID_BEFORE_EXPIRED
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme, ExactEvmSchemeConfig
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.mechanisms.evm.types import TransactionReceipt

from service.payment.authorization import Authorization
from service.payment.chain import ChainError, ChainReader
from service.payment.facilitator import (
    FacilitatorUnavailableError,
    Invalid,
    Outcome,
    Rejected,
    Settled,
    SettleResult,
    Unavailable,
    Unknown,
    Unused,
    Used,
    Verified,
    VerifyResult,
    Void,
)
from service.payment.reasons import DEFINITE, message_for
from service.pricing import Asset

T = TypeVar("T")

SETTLE_THREADS: Final = 16
"""Settlements that may wait for their block at the same time; each holds a thread."""

VERIFY_THREADS: Final = 4
"""Verifications at the same time; apart from the settlements, which would keep them waiting for blocks."""

MIN_OPERATOR_WEI: Final = 10**14
"""Balance below which the operator is not ready: a few settlements at 1 gwei."""


@dataclass(slots=True)
class _Trace:
    """What one call of the SDK did on the chain."""

    failure: Exception | None = None
    """A question that the node did not answer."""
    sent: bool = False
    """A transaction may have been given to the node."""
    receipt: TransactionReceipt | None = None
    """The transaction is in a block."""


class _Signer(FacilitatorWeb3Signer):
    """The SDK's signer, with requests that end in time, one nonce per transaction, and a trace per thread."""

    def __init__(self, key: str, rpc_url: str, session: requests.Session, *, confirm: float, timeout: float) -> None:
        super().__init__(key, rpc_url, confirmation_timeout_seconds=confirm)
        # No retries: the SDK's default would repeat every failed request five times, waiting in between.
        self._w3.provider = HTTPProvider(
            rpc_url, request_kwargs={"timeout": timeout}, session=session, exception_retry_configuration=None
        )
        self._traces = threading.local()
        self.sending = threading.Lock()
        """Held by whoever sends from this account."""

    def ask_nonce_anew(self) -> None:
        """Have the node say which nonce is next. Only for whoever holds `sending`."""
        self._next_nonce = None

    def start_trace(self) -> _Trace:
        """Begin a new trace for the calling thread."""
        self._traces.current = _Trace()
        return self._trace

    @property
    def _trace(self) -> _Trace:
        trace: _Trace = self._traces.current
        return trace

    def read_contract(self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any) -> Any:
        try:
            return super().read_contract(address, abi, function_name, *args)
        except (ContractLogicError, BadFunctionCallOutput):
            raise  # the chain's own answer
        except Exception as error:
            self._trace.failure = error
            raise

    def get_code(self, address: str) -> bytes:
        try:
            return super().get_code(address)
        except Exception as error:
            self._trace.failure = error
            raise

    def write_contract(
        self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any, data_suffix: str | None = None
    ) -> str:
        # The SDK takes a nonce before it asks for the gas price and sends; a failure in between would leave a gap that
        # holds up every later transaction. So: one at a time, and after a failure the node is asked anew.
        with self.sending:
            self._trace.sent = True
            try:
                return super().write_contract(address, abi, function_name, *args, data_suffix=data_suffix)
            except Exception:
                self.ask_nonce_anew()
                raise

    def wait_for_transaction_receipt(self, tx_hash: str) -> TransactionReceipt:
        self._trace.sent = True  # also when the SDK only waits for what an earlier call has sent
        try:
            self._trace.receipt = super().wait_for_transaction_receipt(tx_hash)
        except Exception:
            with self.sending:
                self.ask_nonce_anew()  # the node may have dropped it
            raise
        return self._trace.receipt


class LocalFacilitator:
    """Verifies and settles on one EVM network through one node.

    Args:
        rpc_url: HTTP endpoint of the node.
        operator_key: private key (hex) of the account that pays for gas; kept in memory only, never logged.
        assets: the tokens on offer; all on the same network.
        confirmation_timeout_seconds: how long a settlement waits for its block before it is `Unknown`.
        rpc_timeout_seconds: for one request to the node.

    Raises:
        ValueError: no assets, assets on different networks, or a key that is none.
    """

    def __init__(
        self,
        *,
        rpc_url: str,
        operator_key: str,
        assets: Sequence[Asset],
        confirmation_timeout_seconds: float = 60.0,
        rpc_timeout_seconds: float = 10.0,
        settle_threads: int = SETTLE_THREADS,
        min_operator_wei: int = MIN_OPERATOR_WEI,
    ) -> None:
        networks = {asset.network for asset in assets}
        if len(networks) != 1:
            raise ValueError(f"a local facilitator serves the assets of exactly one network, not of {len(networks)}")
        self._assets = tuple(assets)
        self._min_operator_wei = min_operator_wei
        self._session = _session(settle_threads + VERIFY_THREADS)
        try:
            self._signer = _Signer(
                operator_key,
                rpc_url,
                self._session,
                confirm=confirmation_timeout_seconds,
                timeout=rpc_timeout_seconds,
            )
        except Exception:
            # The library's message may quote the key.
            raise ValueError("the operator key is not a private key (0x and 64 hex digits)") from None
        network = networks.pop()
        # Simulating again before sending costs one call and saves the gas of transfers that stopped being possible
        # while the answer was made. No factory is listed, so undeployed (ERC-6492) wallets are refused.
        scheme = ExactEvmScheme(self._signer, ExactEvmSchemeConfig(simulate_in_settle=True))
        self._sdk = x402FacilitatorSync()
        self._sdk.register([network], scheme)
        self._chain = ChainReader(rpc_url, network, timeout_seconds=rpc_timeout_seconds)
        self._settling = ThreadPoolExecutor(settle_threads, thread_name_prefix="settle")
        self._verifying = ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="verify")

    @property
    def operator(self) -> str:
        """The operator's address, checksummed."""
        return self._signer.address

    async def verify(self, authorization: Authorization) -> VerifyResult:
        """See `Facilitator.verify`."""

        def call() -> tuple[Any, _Trace]:
            trace = self._signer.start_trace()
            return self._sdk.verify(authorization.payload, authorization.requirements), trace

        try:
            response, trace = await self._in(self._verifying, call)
        except Exception as error:
            raise FacilitatorUnavailableError(
                f"the payment could not be checked on the chain ({type(error).__name__})"
            ) from error
        if response.is_valid:
            return Verified(authorization.payer)
        if trace.failure is not None:
            kind = type(trace.failure).__name__
            raise FacilitatorUnavailableError(f"the payment could not be checked on the chain ({kind})")
        reason = str(response.invalid_reason)
        if reason not in DEFINITE:
            reason = await self._diagnose(authorization, reason)
        return Invalid(reason, message_for(reason))

    async def settle(self, authorization: Authorization) -> SettleResult:
        """See `Facilitator.settle`."""
        trace = _Trace()

        def call() -> Any:
            nonlocal trace
            trace = self._signer.start_trace()
            return self._sdk.settle(authorization.payload, authorization.requirements)

        try:
            response = await self._in(self._settling, call)
        except Exception as error:
            return Unknown(f"settlement failed unexpectedly ({type(error).__name__})")
        transaction = response.transaction or None
        if response.success and trace.receipt is not None:
            return Settled(response.transaction, authorization.payer, trace.receipt.block_number)
        if trace.sent and trace.receipt is None:
            return Unknown("the transaction was handed to the chain, but is not seen in a block yet", transaction)
        if trace.failure is not None:
            return Unknown(f"the chain could not be asked ({type(trace.failure).__name__})", transaction)
        # Refused before sending, or mined and reverted: a no, unless the nonce tells another story.
        return await self._refused(authorization, str(response.error_reason), transaction)

    async def outcome(self, authorization: Authorization) -> Outcome:
        """See `Facilitator.outcome`."""
        return await self._chain.outcome(authorization)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """While open, nothing is sent from the operator's account, so that somebody else can; settlements wait."""
        sending = self._signer.sending
        acquired = asyncio.get_running_loop().run_in_executor(None, sending.acquire)
        try:
            await asyncio.shield(acquired)
        except asyncio.CancelledError:
            acquired.add_done_callback(lambda _: sending.release())  # the thread gets it all the same
            raise
        try:
            yield
        finally:
            self._signer.ask_nonce_anew()
            sending.release()

    async def ready(self) -> list[str]:
        """See `Facilitator.ready`."""
        found = await self._chain.problems(self._assets)
        try:
            balance = await self._chain.native_balance(self.operator)
        except ChainError as error:
            # When the chain is out of reach, that is said already.
            return found or [f"the operator's gas balance cannot be read: {error}"]
        if balance < self._min_operator_wei:
            found.append(
                f"the operator {self.operator} has {balance} wei for gas; it needs at least {self._min_operator_wei}"
            )
        return found

    async def close(self) -> None:
        """Wait for settlements that are running, then release threads and connections."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._settling.shutdown)
        await loop.run_in_executor(None, self._verifying.shutdown)
        self._session.close()
        await self._chain.close()

    async def _refused(self, authorization: Authorization, reason: str, transaction: str | None) -> SettleResult:
        match await self._chain.outcome(authorization):
            case Used(used_in, block):
                # Anybody may execute an authorization. Whoever did, it paid us, and it was for this answer.
                return Settled(used_in, authorization.payer, block)
            case Void(why):
                return Rejected(ERR_NONCE_ALREADY_USED, why)
            case Unavailable(why):
                return Unknown(why, transaction)
            case Unused(chain_time):
                if reason == ERR_VALID_BEFORE_EXPIRED and chain_time < authorization.valid_before:
                    # The SDK stops some seconds early; an attempt made before could still go through.
                    return Unknown("the authorization is about to expire", transaction)
        reason = await self._diagnose(authorization, reason) if reason not in DEFINITE else reason
        return Rejected(reason, message_for(reason))

    async def _diagnose(self, authorization: Authorization, reason: str) -> str:
        """A better word than "the transfer failed", if the chain has one."""
        if isinstance(await self._chain.outcome(authorization), Used | Void):
            return ERR_NONCE_ALREADY_USED
        try:
            balance = await self._chain.token_balance(authorization.asset, authorization.payer)
        except ChainError:
            return reason
        return ERR_INSUFFICIENT_BALANCE if balance < authorization.amount else reason

    async def _in(self, executor: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, call)


def _session(connections: int) -> requests.Session:
    """One pool of connections for all threads; web3's default keeps a session per thread and cannot be closed."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=connections))
    return session
