"""The facilitator in our own process: it verifies, and our operator account pays the gas of settling.

Signatures of keys are checked here, everything else by simulating the transfer on a node. Settlements go through a
queue that puts many into one transaction. What another process does with the operator's key is found out and repaired,
but costs time: give every process its own key.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from eth_account import Account
from eth_account.signers.local import LocalAccount

from service.payment.authorization import Authorization
from service.payment.chain import ChainReader
from service.payment.checks import KEY_GAS, Finding, Prepared, Simulator, prepare, window_problem
from service.payment.coalesce import Coalescer
from service.payment.evm_rpc import MAX_BATCH_ITEMS, ChainError, Node, hex_data
from service.payment.facilitator import (
    FacilitatorUnavailableError,
    Invalid,
    Outcome,
    Rejected,
    SettleResult,
    Unknown,
    Verified,
    VerifyResult,
)
from service.payment.fees import DEFAULT_MAX_FEE
from service.payment.multicall import MULTICALL3
from service.payment.sender import NotSentError, Pace, Sender
from service.payment.settler import Pipeline, Settler
from service.pricing import Asset

MIN_OPERATOR_WEI: Final = 10**14
"""Balance below which the operator is not ready, however cheap gas is: a few settlements at 1 gwei."""


class LocalFacilitator:
    """Verifies and settles on one EVM network through one node.

    Args:
        rpc_url: HTTP endpoint of the node.
        operator_key: private key (hex) of the account that pays for gas; kept in memory only, never logged.
        assets: the tokens on offer; all on the same network.
        confirmation_timeout_seconds: how long a settlement waits for its block before it is `Unknown`.
        rpc_timeout_seconds: for one request to the node.
        depth: blocks that a transfer must be in, its own included, before it is `Settled`.
        max_fee_wei: for one unit of gas; nothing is sent while gas costs more.
        max_head_age_seconds: how old the node's latest block may be; None where blocks are made on demand only.
        factories: contracts that may deploy a payer's wallet before its transfer (ERC-6492); nobody else's are called.
        clock: unix seconds.

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
        depth: int = 1,
        max_fee_wei: int = DEFAULT_MAX_FEE,
        max_head_age_seconds: int | None = None,
        min_operator_wei: int = MIN_OPERATOR_WEI,
        factories: Sequence[str] = (),
        pipeline: Pipeline | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        networks = {asset.network for asset in assets}
        if len(networks) != 1:
            raise ValueError(f"a local facilitator serves the assets of exactly one network, not of {len(networks)}")
        self.network = networks.pop()
        self.assets = tuple(assets)
        self._account = _account(operator_key)
        self._timeout = confirmation_timeout_seconds
        self._min_operator_wei = min_operator_wei
        self._factories = frozenset(factory.lower() for factory in factories)
        self._clock = clock
        self._node = Node(rpc_url, timeout_seconds=rpc_timeout_seconds)
        self._chain = ChainReader(
            rpc_url,
            self.network,
            depth=depth,
            max_head_age_seconds=max_head_age_seconds,
            clock=clock,
            node=self._node,
        )
        self._simulator = Simulator(self._node, self.operator, clock)
        self._checks: Coalescer[Prepared, Finding] = Coalescer(self._simulator.check, limit=MAX_BATCH_ITEMS)
        self._sender = Sender(
            self._node, self._account, assets[0].chain_id, depth=depth, max_fee=max_fee_wei, pace=pace or Pace()
        )
        self._settler = Settler(self._node, self._sender, self._simulator, self._chain, pipeline=pipeline or Pipeline())
        self._chain_good = False

    @property
    def operator(self) -> str:
        """The operator's address, checksummed."""
        return str(self._account.address)

    @property
    def busy(self) -> bool:
        """Whether so many settlements are waiting that no further one is taken."""
        return self._settler.full

    async def batches(self) -> bool:
        """Whether many payments share a transaction; false on a chain without Multicall3.

        Raises:
            FacilitatorUnavailableError: the chain could not be asked.
        """
        try:
            await self._check_chain()
        except ChainError as error:
            raise _unavailable(error) from error
        return self._settler.batches

    async def verify(self, authorization: Authorization) -> VerifyResult:
        """See `Facilitator.verify`."""
        payment = prepare(authorization, self.assets, self._factories)
        if isinstance(payment, Invalid):
            return payment
        outside = window_problem(authorization, self._clock())
        if outside is not None:
            return outside
        try:
            await self._check_chain()
            finding = await self._checks.ask(payment)
        except ChainError as error:
            raise _unavailable(error) from error
        if finding is None:
            return Verified(authorization.payer)
        if isinstance(finding, ChainError):
            raise _unavailable(finding)
        return Invalid(finding.reason, finding.message)

    async def settle(self, authorization: Authorization) -> SettleResult:
        """See `Facilitator.settle`."""
        payment = prepare(authorization, self.assets, self._factories)
        if isinstance(payment, Invalid):
            return Rejected(payment.reason, payment.message)
        try:
            await self._check_chain()
        except ChainError as error:
            return Unknown(f"the chain could not be asked: {error}")
        return await self._settler.settle(payment, self._timeout)

    async def outcome(self, authorization: Authorization) -> Outcome:
        """See `Facilitator.outcome`."""
        return await self._chain.outcome(authorization)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """While open, nothing is sent from the operator's account, so that somebody else can; settlements wait."""
        async with self._sender.exclusive():
            yield

    async def ready(self) -> list[str]:
        """See `Facilitator.ready`. Two requests to the node."""
        found, poor = await asyncio.gather(self._chain.problems(self.assets), self._operator_problems())
        # When the chain is out of reach, that is said already.
        return found or poor

    async def close(self) -> None:
        """Wait for settlements that somebody waits for, then stop everything and release connections."""
        await self._settler.close()
        await self._sender.close()
        await self._checks.close()
        await self._node.close()

    async def _operator_problems(self) -> list[str]:
        marks = self._sender.marks()
        try:
            snapshot = self._sender.read(marks, await self._node.batch(self._sender.questions()))
            price = self._sender.price(snapshot)
        except (ChainError, NotSentError) as error:
            return [f"the operator's gas money cannot be judged: {error}"]
        needed = max(self._min_operator_wei, KEY_GAS * price)
        if snapshot.balance >= needed:
            return []
        return [f"the operator {self.operator} has {snapshot.balance} wei for gas; it needs at least {needed}"]

    async def _check_chain(self) -> None:
        """Once: the tokens are what the terms say, the node is on the right chain, and has Multicall3 or not.

        Raises:
            ChainError: they are not, or it is not, or it cannot be known.
        """
        if self._chain_good:
            return
        found = await self._chain.problems(self.assets)
        if found:
            raise ChainError("; ".join(found))
        code = hex_data(await self._node.call("eth_getCode", MULTICALL3, "latest"))
        self._settler.batches = code != b""
        self._chain_good = True


def _account(key: str) -> LocalAccount:
    try:
        account: LocalAccount = Account.from_key(key)
    except Exception:
        # The library's message may quote the key.
        raise ValueError("the operator key is not a private key (0x and 64 hex digits)") from None
    return account


def _unavailable(error: ChainError) -> FacilitatorUnavailableError:
    return FacilitatorUnavailableError(f"the payment could not be checked on the chain: {error}")
