"""Transactions of one account: nonces without gaps, several in flight, each watched until it is deep enough.

What can go wrong with a transaction after it was signed, and what happens then:

- the node's answer is lost: it counts as sent, and is sent again until it is in a block
- the node drops it: it is sent again
- its fee is too low: another one with the same nonce and a higher fee takes its place, up to a limit
- its block is replaced: it counts as not mined, and is sent again
- somebody else who has the key uses its nonce: it is lost, and its owner is told to make another
- a nonce before it is missing, because a chain went back: the gap is filled with a transfer of nothing

Whoever sends payments through this may have to send one twice; that is safe, for a token executes a nonce once.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from service.payment.evm_rpc import Call, ChainError, Node, NodeRefusedError, quantity
from service.payment.fees import (
    Fees,
    FeeTooHighError,
    Market,
    block_gas_limit,
    first_fees,
    includable,
    raised_fees,
    read_market,
)
from service.payment.transaction import Mined, Receipt, Sent, Snapshot, is_known, nonce_is_taken

PLAIN_GAS: Final = 21_000
"""What a transaction uses that does nothing."""

MAX_GAP: Final = 16
"""Missing nonces that are filled; more than that is somebody else's account, or another chain."""

_FIRST_PAUSE: Final = 0.004
_SEND_ATTEMPTS: Final = 5

_log: Final = logging.getLogger(__name__)


class NotSentError(Exception):
    """The node does not take the transaction: nothing was sent."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things are done, in seconds.

    Attributes:
        poll: between two looks at the chain, once a transaction has waited for a while.
        resend: until a transaction that is in no block is given to the node again.
        replace: until it is replaced by one with a higher fee.
        patience: how long a nonce may look used up by somebody else, or missing, before that is believed. Nodes behind
            one address are not always at the same block.
    """

    poll: float = 0.25
    resend: float = 2.0
    replace: float = 12.0
    patience: float = 3.0


class Sender:
    """Sends from one account on one chain.

    Args:
        depth: blocks that a transaction must be in, its own included.
        max_fee: wei per unit of gas.
    """

    def __init__(
        self, node: Node, account: LocalAccount, chain_id: int, *, depth: int, max_fee: int, pace: Pace
    ) -> None:
        self._node = node
        self._account = account
        self._chain_id = chain_id
        self._depth = depth
        self._max_fee = max_fee
        self._pace = pace
        self._sending = asyncio.Lock()
        self._flying: list[Sent] = []
        self._next = 0
        self._sent = 0
        self._gap_since: float | None = None
        self._woken = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def reserved(self) -> int:
        """Wei that the transactions in flight may still cost."""
        return sum(one.gas * one.fees.max_fee for one in self._flying)

    def price(self, snapshot: Snapshot) -> int:
        """Wei per unit of gas that a new transaction has to have at hand.

        Raises:
            NotSentError: gas is too dear.
        """
        return self._fees(snapshot.market).max_fee

    def questions(self) -> list[Call]:
        """What has to be asked for a snapshot, so that it can share a request."""
        address = self._account.address
        return [
            ("eth_getBlockByNumber", ["latest", False]),
            ("eth_gasPrice", []),
            ("eth_maxPriorityFeePerGas", []),
            ("eth_getTransactionCount", [address, "pending"]),
            ("eth_getBalance", [address, "latest"]),
        ]

    def marks(self) -> tuple[int, bool]:
        """What a snapshot has to know about the moment at which its questions are asked."""
        return self._sent, not self._flying

    def read(self, marks: tuple[int, bool], answers: Sequence[Any]) -> Snapshot:
        """The snapshot in the answers to `questions`.

        Raises:
            ChainError: an answer makes no sense.
        """
        block, gas_price, tip, pending, balance = answers
        return Snapshot(
            market=read_market(block, gas_price, tip),
            pending=quantity(pending),
            balance=quantity(balance),
            gas_limit=block_gas_limit(block),
            sent=marks[0],
            idle=marks[1],
        )

    async def send(self, snapshot: Snapshot, to: str, data: bytes, gas: int, checks: Sequence[Call] = ()) -> Sent:
        """Sign and send; waits while somebody else holds the account.

        Args:
            checks: asked when the transaction is in its block; their answers come with it.

        Raises:
            NotSentError: the node refuses it, or gas is too dear.
            ChainError: the node does not say which nonce is next.
        """
        async with self._sending:
            for _ in range(_SEND_ATTEMPTS):
                sent = self._make(self._nonce(snapshot), to, data, gas, checks, self._fees(snapshot.market))
                try:
                    await self._give(sent)
                except NodeRefusedError as error:
                    if not nonce_is_taken(error):
                        raise NotSentError(f"the node refuses the transaction: {error.refusal}") from error
                    _log.warning("nonce %d of %s is taken by somebody else", sent.nonce, self._account.address)
                    self._next = sent.nonce + 1
                    snapshot = await self._snapshot()
                    continue
                except ChainError as error:
                    # The node may have it all the same. It is watched, and sent again.
                    _log.warning("it is not known whether the node has transaction %s: %s", sent.transaction, error)
                self._fly(sent)
                return sent
        raise NotSentError(f"somebody else sends from {self._account.address} and takes every nonce")

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """While open, nothing is sent from the account, so that somebody else can."""
        async with self._sending:
            try:
                yield
            finally:
                self._sent += 1  # snapshots from before are of no use any more
                with contextlib.suppress(ChainError):
                    self._next = max(self._next, await self._pending())

    async def close(self) -> None:
        """Stop watching. What is in flight stays so, and whoever waits for it is told that it is lost."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        for sent in self._flying:
            sent.mined.cancel()

    async def _snapshot(self) -> Snapshot:
        marks = self.marks()
        return self.read(marks, await self._node.batch(self.questions()))

    async def _pending(self) -> int:
        return quantity(await self._node.call("eth_getTransactionCount", self._account.address, "pending"))

    def _nonce(self, snapshot: Snapshot) -> int:
        """The node's word when nothing was on its way, for a chain may have gone back; else nothing twice."""
        undisturbed = snapshot.idle and not self._flying and snapshot.sent == self._sent
        return snapshot.pending if undisturbed else max(snapshot.pending, self._next)

    def _fees(self, market: Market) -> Fees:
        try:
            return first_fees(market, self._max_fee)
        except FeeTooHighError as error:
            raise NotSentError(str(error)) from error

    def _make(self, nonce: int, to: str, data: bytes, gas: int, checks: Sequence[Call], fees: Fees) -> Sent:
        future: asyncio.Future[Mined | None] = asyncio.get_running_loop().create_future()
        sent = Sent(nonce, to, data, gas, checks, fees, future)
        self._sign(sent, fees)
        return sent

    def _sign(self, sent: Sent, fees: Fees) -> None:
        transaction: dict[str, Any] = {
            "chainId": self._chain_id,
            "nonce": sent.nonce,
            "to": to_checksum_address(sent.to),
            "value": 0,
            "data": sent.data,
            "gas": sent.gas,
            **fees.fields(),
        }
        signed = self._account.sign_transaction(transaction)
        sent.fees = fees
        sent.attempts.append(("0x" + bytes(signed.hash).hex(), "0x" + bytes(signed.raw_transaction).hex()))
        sent.priced_at = time.monotonic()

    async def _give(self, sent: Sent) -> None:
        sent.given_at = time.monotonic()
        try:
            await self._node.call("eth_sendRawTransaction", sent.attempts[-1][1])
        except NodeRefusedError as error:
            if not is_known(error):
                raise

    def _fly(self, sent: Sent) -> None:
        self._flying.append(sent)
        self._next = sent.nonce + 1
        self._sent += 1
        self._woken.set()
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Look after what is in flight, often at first: some chains make a block at once."""
        pause = _FIRST_PAUSE
        while self._flying:
            if self._woken.is_set():
                self._woken.clear()
                pause = _FIRST_PAUSE
            try:
                await self._look()
            except ChainError as error:
                _log.warning("the transactions in flight cannot be looked after: %s", error)
                pause = self._pace.poll
            except Exception:
                # A mistake of ours must not leave transactions alone that others wait for.
                _log.exception("looking after the transactions in flight failed")
                pause = self._pace.poll
            if not self._flying:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            pause = min(2 * pause, self._pace.poll)

    async def _look(self) -> None:
        flying = sorted(self._flying, key=lambda one: one.nonce)
        hashes = [(one, hash_) for one in flying for hash_, _ in one.attempts]
        address = self._account.address
        calls: list[Call] = [
            ("eth_getBlockByNumber", ["latest", False]),
            ("eth_gasPrice", []),
            ("eth_maxPriorityFeePerGas", []),
            ("eth_getTransactionCount", [address, "latest"]),
            ("eth_getTransactionCount", [address, "pending"]),
            *(("eth_getTransactionReceipt", [hash_]) for _, hash_ in hashes),
        ]
        block, gas_price, tip, used, pending, *receipts = await self._node.batch(calls)
        market = read_market(block, gas_price, tip)
        head = quantity(block.get("number"))
        mined: dict[int, tuple[Sent, Receipt]] = {}
        unclear = set()
        for (one, hash_), receipt in zip(hashes, receipts, strict=True):
            try:
                if receipt is not None:
                    mined[one.nonce] = (one, Receipt.read(receipt, hash_))
            except ChainError as error:
                _log.warning("the receipt of transaction %s cannot be used: %s", hash_, error)
                unclear.add(one.nonce)
        deep = [pair for pair in mined.values() if head - pair[1].block + 1 >= self._depth]
        if deep:
            await self._land(deep)
        waiting = [one for one in flying if one.nonce not in mined and one.nonce not in unclear]
        await self._mend(waiting, market, quantity(used), quantity(pending))

    async def _land(self, deep: "Sequence[tuple[Sent, Receipt]]") -> None:
        """Finish what is in a block that the node still has."""
        calls: list[Call] = []
        for sent, receipt in deep:
            calls += [("eth_getBlockByNumber", [hex(receipt.block), False]), *sent.checks]
        answers = iter(await self._node.batch(calls))
        for sent, receipt in deep:
            block = next(answers)
            checks = [next(answers) for _ in sent.checks]
            if not isinstance(block, dict) or block.get("hash") != receipt.block_hash:
                _log.warning("the block of transaction %s is gone", receipt.transaction)
                continue
            self._flying.remove(sent)
            if not sent.mined.done():
                sent.mined.set_result(receipt.mined(checks))

    async def _mend(self, waiting: Sequence[Sent], market: Market, used: int, pending: int) -> None:
        now = time.monotonic()
        for sent in waiting:
            if used <= sent.nonce:
                sent.overtaken_at = None
            elif sent.overtaken_at is None:
                sent.overtaken_at = now
            elif now - sent.overtaken_at >= self._pace.patience:
                _log.warning("somebody else has used nonce %d of %s", sent.nonce, self._account.address)
                self._flying.remove(sent)
                if not sent.mined.done():
                    sent.mined.set_result(None)
        due = [one for one in waiting if one in self._flying and one.overtaken_at is None]
        gap = bool(due) and pending < due[0].nonce
        self._gap_since = (self._gap_since or now) if gap else None
        if self._sending.locked():
            return  # somebody sends; what is to be mended can wait, what is mined cannot
        async with self._sending:
            if self._gap_since is not None and now - self._gap_since >= self._pace.patience:
                await self._fill(pending, due[0].nonce, market)
            for sent in due:
                stuck = now - sent.priced_at >= self._pace.replace or not includable(sent.fees, market)
                raised = raised_fees(sent.fees, market, self._max_fee) if stuck else None
                if raised is not None:
                    await self._replace(sent, raised)
                elif now - sent.given_at >= self._pace.resend:
                    await self._again(sent)

    async def _replace(self, sent: Sent, fees: Fees) -> None:
        before = (sent.fees, list(sent.attempts))
        self._sign(sent, fees)
        try:
            await self._give(sent)
        except NodeRefusedError as error:
            # The earlier version is still good.
            _log.warning("transaction %s cannot be replaced: %s", before[1][-1][0], error.refusal)
            sent.fees, sent.attempts = before

    async def _again(self, sent: Sent) -> None:
        with contextlib.suppress(NodeRefusedError):
            await self._give(sent)

    async def _fill(self, first: int, until: int, market: Market) -> None:
        if until - first > MAX_GAP:
            raise ChainError(f"the node misses the nonces {first} to {until - 1} of {self._account.address}")
        _log.warning("the chain went back: the nonces %d to %d are filled", first, until - 1)
        for nonce in range(first, until):
            with contextlib.suppress(NotSentError, NodeRefusedError):
                sent = self._make(nonce, self._account.address, b"", PLAIN_GAS, (), self._fees(market))
                await self._give(sent)
                self._flying.append(sent)
        self._gap_since = None
