"""Settling many authorisations in few transactions.

    queue -> simulated together -> those that would fail are told why -> one transaction -> events say who has paid

Nothing in flight: what waits is sent at once, which is fastest where blocks are instant. Otherwise payments are
collected for a moment, or until a transaction lands or a batch is full: slow blocks get few and full ones.

A payment whose signature is checked by foreign code (a contract wallet) never shares a transaction: the code could use
up the gas of everybody behind it. Whoever fails although the simulation was good is tried again, in the end alone.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from x402.mechanisms.evm.constants import (
    ERR_NONCE_ALREADY_USED,
    ERR_TRANSACTION_FAILED,
    ERR_VALID_AFTER_FUTURE,
    ERR_VALID_BEFORE_EXPIRED,
)

from service.payment.authorization import Authorization, PaymentKey
from service.payment.batch import MAX_TRANSACTION_GAS, gas_for, spent_in, states_of, transaction_of
from service.payment.chain import ChainReader
from service.payment.checks import Prepared, Refused, Simulator
from service.payment.erc3009 import nonce_key, paid_by, transfers
from service.payment.evm_rpc import Call, ChainError, Node, NodeRefusedError, hex_data
from service.payment.facilitator import Rejected, Settled, SettleResult, Unavailable, Unknown, Unused, Used, Void
from service.payment.multicall import results
from service.payment.reasons import message_for
from service.payment.sender import NotSentError, Sender
from service.payment.transaction import Mined, Sent, Snapshot

_KNOWN_PAYERS: Final = 10_000
_TRIES: Final = 3

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How much is done at once.

    Attributes:
        transactions: in flight at the same time.
        payments: in one transaction at most.
        waiting: payments that may wait for a transaction; more are sent away.
        collect_seconds: how long payments are collected while a transaction is in flight.
    """

    transactions: int = 8
    payments: int = 100
    waiting: int = 4_000
    collect_seconds: float = 0.2


@dataclass(slots=True, eq=False)
class _Entry:
    payment: Prepared
    since: float
    result: asyncio.Future[SettleResult]
    alone: bool
    tries: int = 0
    sent: Sent | None = None
    watchers: int = 0
    batch: "list[_Entry] | None" = None
    """What it is being settled with; None while it waits."""

    @property
    def authorization(self) -> Authorization:
        return self.payment.authorization


class Settler:
    """The queue of one operator account on one chain.

    Args:
        batches: whether the chain has Multicall3; without it every payment gets a transaction of its own.
    """

    def __init__(
        self,
        node: Node,
        sender: Sender,
        simulator: Simulator,
        chain: ChainReader,
        *,
        pipeline: Pipeline,
    ) -> None:
        self.batches = True
        self._node = node
        self._sender = sender
        self._simulator = simulator
        self._chain = chain
        self._pipeline = pipeline
        self._entries: dict[tuple[PaymentKey, str], _Entry] = {}
        self._together: deque[_Entry] = deque()
        self._alone: deque[_Entry] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._without_code: OrderedDict[str, None] = OrderedDict()

    @property
    def full(self) -> bool:
        """Whether no further payment may wait."""
        return len(self._entries) >= self._pipeline.waiting

    async def settle(self, payment: Prepared, timeout_seconds: float) -> SettleResult:
        """Execute one transfer; of a payment that is on its way already, wait for the same.

        After `timeout_seconds` the answer is `Unknown`, and the transfer goes on without anybody waiting.
        """
        key = (payment.authorization.key, payment.authorization.signature)
        entry = self._entries.get(key)
        if entry is None:
            if self.full:
                return Unknown(f"{self._pipeline.waiting} settlements are waiting; nothing was sent")
            loop = asyncio.get_running_loop()
            entry = _Entry(payment, loop.time(), loop.create_future(), alone=not payment.by_key)
            self._entries[key] = entry
            entry.result.add_done_callback(lambda _: self._entries.pop(key, None))
            self._enqueue([entry])
        entry.watchers += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(entry.result)
        except TimeoutError:
            if entry.sent is None:
                return Unknown("the transfer waits to be sent to the chain")
            return Unknown(
                "the transaction was handed to the chain, but is not seen in a block yet", entry.sent.transaction
            )
        finally:
            entry.watchers -= 1

    async def close(self) -> None:
        """Wait for the payments that somebody waits for, which ends in time, then stop."""
        while any(entry.watchers for entry in self._entries.values()):
            await asyncio.wait([entry.result for entry in self._entries.values()], timeout=0.05)
        tasks = [*self._running, *([self._dispatcher] if self._dispatcher is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for entry in list(self._entries.values()):
            entry.result.cancel()

    def _enqueue(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            entry.batch = None
            (self._alone if entry.alone or not self.batches else self._together).append(entry)
        self._changed.set()
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch())

    async def _dispatch(self) -> None:
        while self._together or self._alone or self._running:
            self._changed.clear()
            pause = self._start()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def _start(self) -> float | None:
        """Start what may be started. Returns after how many seconds to look again; None when only a change matters."""
        # Payments that need a transaction each must not keep the others waiting for blocks.
        share = max(1, self._pipeline.transactions // 2) if self.batches else self._pipeline.transactions
        alone = sum(task.get_name() == "alone" for task in self._running)
        while self._alone and self._free() and alone < share:
            alone += self._launch([self._alone.popleft()], "alone")
        while self._together and self._free():
            waited = asyncio.get_running_loop().time() - self._together[0].since
            left = self._pipeline.collect_seconds - waited
            if self._running and len(self._together) < self._pipeline.payments and left > 0:
                return left
            self._launch(self._next_batch(), "batch")
        return None

    def _next_batch(self) -> list[_Entry]:
        """The oldest payments; when not all fit, with what else their payers have waiting.

        A payer's balance is written to the chain's state once in a transaction, so a payer's further payments are
        cheaper there than in another one. The oldest payment is always among them, so nobody waits for ever.
        """
        most = self._pipeline.payments
        waiting = list(self._together)
        if len(waiting) > most:
            by_payer: dict[str, list[_Entry]] = {}
            for entry in waiting:
                by_payer.setdefault(entry.authorization.payer, []).append(entry)
            waiting = [entry for entries in by_payer.values() for entry in entries]
        chosen = {id(entry) for entry in waiting[:most]}
        self._together = deque(entry for entry in self._together if id(entry) not in chosen)
        return waiting[:most]

    def _free(self) -> bool:
        return len(self._running) < self._pipeline.transactions

    def _launch(self, batch: list[_Entry], name: str) -> int:
        """Settle these together; returns how many tasks were started."""
        batch = [entry for entry in batch if not entry.result.done()]  # given up by the batch it was in before
        if not batch:
            return 0
        for entry in batch:
            entry.batch = batch
        task = asyncio.create_task(self._settle(batch), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: self._changed.set())
        return 1

    async def _settle(self, batch: list[_Entry]) -> None:
        try:
            await self._settle_batch(batch)
        except ChainError as error:
            self._give_up(_still_in(batch), f"the chain could not be asked: {error}")
        except NotSentError as error:
            self._give_up(_still_in(batch), f"the operator cannot send the transfer: {error}")
        except Exception as error:
            # Whatever it was, nobody may wait for it forever, and nothing definite can be said.
            _log.exception("a batch of settlements failed unexpectedly")
            self._give_up(_still_in(batch), f"settlement failed unexpectedly ({type(error).__name__})")

    def _give_up(self, batch: Sequence[_Entry], reason: str) -> None:
        for entry in batch:
            if not entry.result.done():
                entry.result.set_result(Unknown(reason, entry.sent.transaction if entry.sent else None))

    async def _settle_batch(self, batch: list[_Entry]) -> None:
        batch = await self._without_foreign_code(batch)
        if not batch:
            return
        marks = self._sender.marks()
        simulation = self._simulation([entry.payment for entry in batch])
        simulated, *answers = await self._node.batch([simulation, *self._sender.questions()])
        snapshot = self._sender.read(marks, answers)
        passing = await self._weed_out(batch, simulated)
        batch = self._affordable(passing, snapshot)
        if not batch:
            if passing:  # others have the operator's gas for now: asking again at once would only keep the node busy
                await asyncio.sleep(self._pipeline.collect_seconds)
                self._enqueue(passing)
            return
        payments = [entry.payment for entry in batch]
        target, data, gas = transaction_of(payments)
        sent = await self._sender.send(snapshot, target, data, gas, [states_of(payments)])
        for entry in batch:
            entry.sent = sent
            entry.tries += 1
        mined = await sent.mined
        await self._conclude(batch, mined)

    async def _without_foreign_code(self, batch: list[_Entry]) -> list[_Entry]:
        """The batch without payers that have code (EIP-7702), who are queued again to go alone."""
        if len(batch) == 1:
            return batch
        unknown = list({entry.authorization.payer for entry in batch} - self._without_code.keys())
        codes = await self._node.batch([("eth_getCode", [payer, "latest"]) for payer in unknown]) if unknown else []
        for payer, code in zip(unknown, codes, strict=True):
            if hex_data(code) == b"":
                self._without_code[payer] = None
        for entry in batch:
            entry.alone = entry.authorization.payer not in self._without_code
        while len(self._without_code) > _KNOWN_PAYERS:
            self._without_code.popitem(last=False)
        self._enqueue([entry for entry in batch if entry.alone])
        return [entry for entry in batch if not entry.alone]

    def _simulation(self, payments: Sequence[Prepared]) -> Call:
        if len(payments) == 1:
            return self._simulator.call(payments[0])
        target, data, gas = transaction_of(payments)
        return ("eth_call", [self._simulator.transaction(target, data, gas), "latest"])

    async def _weed_out(self, batch: list[_Entry], simulated: Any) -> list[_Entry]:
        """Those that would be executed. The others are told why not, or go alone."""
        if len(batch) == 1:
            good = [not isinstance(simulated, NodeRefusedError) and len(batch[0].payment.calls) == 1]
        elif isinstance(simulated, NodeRefusedError):
            good = [False] * len(batch)
        else:
            good = [success for success, _ in results(hex_data(simulated), len(batch))]
        bad = [entry for entry, passes in zip(batch, good, strict=True) if not passes]
        findings = await self._simulator.check([entry.payment for entry in bad]) if bad else []
        passing = [entry for entry, passes in zip(batch, good, strict=True) if passes]
        for entry, finding in zip(bad, findings, strict=True):
            if finding is None and len(batch) == 1:
                passing.append(entry)
            elif finding is None:
                entry.alone = True
                self._enqueue([entry])
            elif isinstance(finding, ChainError):
                self._give_up([entry], f"the chain could not be asked: {finding}")
            else:
                entry.result.set_result(await self._refused(entry, finding))
        return passing

    def _affordable(self, batch: list[_Entry], snapshot: Snapshot) -> list[_Entry]:
        """As many as the operator's balance and a block have room for; the others wait for the next transaction.

        When there is room for none, none is queued again.
        """
        available = max(0, snapshot.balance - self._sender.reserved)
        price = self._sender.price(snapshot)
        gas = min(available // max(price, 1), snapshot.gas_limit // 2, MAX_TRANSACTION_GAS)
        count = len(batch)
        while count and gas_for([entry.payment for entry in batch[:count]]) > gas:
            count -= 1
        if count == 0 and batch and not self._sender.reserved:
            needed = gas_for([batch[0].payment]) * price
            raise NotSentError(f"the operator has {snapshot.balance} wei for gas, and one transfer may need {needed}")
        for entry in batch[count:]:
            entry.since = asyncio.get_running_loop().time()
        if count:
            self._enqueue(batch[count:])
        return batch[:count]

    async def _conclude(self, batch: Sequence[_Entry], mined: Mined | None) -> None:
        """Tell everybody in a transaction that was mined, or lost, what became of it."""
        done = {} if mined is None else transfers(mined.logs)
        spent = [] if mined is None else spent_in(mined.checks[0], len(batch))
        for index, entry in enumerate(batch):
            authorization = entry.authorization
            if mined is not None and done.get(nonce_key(authorization)) == paid_by(authorization):
                if spent[index]:
                    result: SettleResult = Settled(mined.transaction, authorization.payer, mined.block)
                else:
                    result = Unknown(
                        "the node's receipt and the token's state contradict each other", mined.transaction
                    )
                entry.result.set_result(result)
            elif len(batch) == 1 and mined is not None and not entry.payment.by_key and not spent[index]:
                # A wallet that accepts in simulations and refuses in blocks would make us pay for gas for ever.
                entry.result.set_result(Rejected(ERR_TRANSACTION_FAILED, message_for(ERR_TRANSACTION_FAILED)))
            elif entry.tries < _TRIES:
                # Lost, out of gas, or not possible any more: the next simulation says which. Somebody's code may have
                # used up everybody's gas, so it is looked for again.
                self._without_code.pop(authorization.payer, None)
                entry.alone = entry.alone or entry.tries > 1
                self._enqueue([entry])
            else:
                self._give_up([entry], f"the transfer failed {_TRIES} times although its simulations were good")

    async def _refused(self, entry: _Entry, refused: Refused) -> SettleResult:
        """What a failed simulation means: a no, unless the nonce tells another story."""
        authorization = entry.authorization
        transaction = entry.sent.transaction if entry.sent else None
        if refused.reason == ERR_NONCE_ALREADY_USED:
            match await self._chain.outcome(authorization):
                case Used(used_in, block):
                    # Anybody may execute an authorization. Whoever did, it paid us, and it was for this answer.
                    return Settled(used_in, authorization.payer, block)
                case Void(why):
                    return Rejected(ERR_NONCE_ALREADY_USED, why)
                case Unavailable(why):
                    return Unknown(why, transaction)
                case Unused():
                    return Unknown("the nonce was spent a moment ago, and is not any more", transaction)
        if refused.reason == ERR_VALID_AFTER_FUTURE and self._simulator.now() > authorization.valid_after:
            return Unknown("the chain's clock is behind: the authorization is not valid there yet", transaction)
        if refused.reason == ERR_VALID_BEFORE_EXPIRED and refused.chain_time < authorization.valid_before:
            return Unknown("the authorization is about to expire", transaction)
        return Rejected(refused.reason, refused.message or message_for(refused.reason))


def _still_in(batch: "list[_Entry]") -> list[_Entry]:
    """Those of a batch that have not been queued again meanwhile: another one answers for these."""
    return [entry for entry in batch if entry.batch is batch]
