"""What every scenario has: a chain of its own, a model, a way to start services, buyers, and the count at the end."""

import asyncio
import contextlib
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.orders import FAR
from bench.process import Server
from bench.torture.buyers import Buyers, Purchase
from bench.torture.tally import Tally, charges, count
from bench.torture.world import Blockchain, ServiceProcess, Zygote, environment, fund
from service.localchain.deploy import LocalChain
from tests.postgres import Postgres, PostgresMissingError

PRICE: Final = 10_000
"""Atomic units of one call: one cent, the price that settings have by default."""

ACCOUNTING_SECONDS: Final = 200
"""How long the world may take to come to rest once it is calm: longer than the lease of a payment."""

SAMPLE_AGAIN: Final = 40
"""So many answered payments are presented once more at the end."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    kills: int
    seconds: float
    buyers: int
    replays: int
    rounds: int


SIZES: Final = {
    "ci": Size(kills=12, seconds=3.0, buyers=8, replays=500, rounds=2),
    "full": Size(kills=300, seconds=20.0, buyers=16, replays=20_000, rounds=12),
}


@dataclass(slots=True)
class Stage:
    """One scenario's world."""

    size: Size
    directory: Path
    blockchain: Blockchain
    chain: LocalChain
    model: Server
    zygote: Zygote
    closing: AsyncExitStack
    random: random.Random
    ledger_file: Path
    notes: dict[str, object] = field(default_factory=dict)
    services: list[ServiceProcess] = field(default_factory=list)
    crowd: Buyers | None = None
    skipped: str | None = None
    """Why this machine cannot stage it, when it cannot."""
    rest_seconds: float = 0.0
    """How long after calm somebody may still settle something."""

    def service(
        self, name: str = "main", *, ledger_url: str | None = None, clock: Path | None = None, **settings: str
    ) -> ServiceProcess:
        """A service on this chain, not started yet; its ledger is an SQLite file unless a URL is given."""
        ledger = ledger_url or f"sqlite:///{self.ledger_file}"
        given = environment(self.chain, model_url=self.model.url, ledger_url=ledger, **settings)
        made = ServiceProcess(self.zygote, self.directory, given, name=name, clock=clock)
        self.services.append(made)
        return made

    async def buyers(self, urls: Sequence[str], *, judge: bool = True, valid_before: int = FAR) -> Buyers:
        """The scenario's buyers, who know the terms by now."""
        self.crowd = Buyers(urls, key=self.chain.buyer_key, judge=judge)
        self.closing.push_async_callback(self.crowd.close)
        await self.crowd.begin(valid_before=valid_before)
        return self.crowd

    async def under_load(self, chaos: Callable[[], Awaitable[None]]) -> None:
        """Buyers buy for as long as the chaos lasts."""
        assert self.crowd is not None
        over = asyncio.Event()
        buying = asyncio.create_task(self.crowd.crowd(self.size.buyers, over))
        try:
            await chaos()
        finally:
            over.set()
            await buying

    def postgres(self) -> Postgres | None:
        """A running PostgreSQL of this scenario's own; where there is none, the scenario is skipped."""
        try:
            database = Postgres()
        except PostgresMissingError as error:
            self.skipped = str(error)
            return None
        self.closing.callback(database.close)
        database.start()
        return database

    def states(self) -> Counter[str]:
        """The states of all payments in the SQLite ledger, read past the product."""
        counted = "select state, count(*) from payments group by state"
        # Without its tables, it is being made just now.
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(self._ledger()) as file:
            return Counter(dict(file.execute(counted)))
        return Counter()

    def _ledger(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.ledger_file}?mode=ro", uri=True)


@asynccontextmanager
async def stage(size: Size, model: Server, zygote: Zygote, seed: int) -> AsyncIterator[Stage]:
    """A fresh chain with the contracts on it; everything has ended on leaving."""
    async with AsyncExitStack() as closing:
        directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="tollseal-torture-")))
        blockchain = Blockchain(directory)
        closing.push_async_callback(blockchain.close)
        await blockchain.start()
        chain = await asyncio.to_thread(fund, blockchain.rpc)
        made = Stage(
            size=size,
            directory=directory,
            blockchain=blockchain,
            chain=chain,
            model=model,
            zygote=zygote,
            closing=closing,
            random=random.Random(seed),  # noqa: S311 - not a secret
            ledger_file=directory / "ledger.db",
        )
        try:
            yield made
        finally:
            for service in made.services:
                service.kill()


async def account(on: Stage) -> Tally:
    """Let everything come to rest, give every buyer a last chance, and count."""
    buyers = on.crowd
    assert buyers is not None
    buyers.judge = True
    await on.blockchain.calm()
    blocks = asyncio.create_task(on.blockchain.mine_steadily())
    try:
        return await _account(on, buyers)
    finally:
        blocks.cancel()


async def _account(on: Stage, buyers: Buyers) -> Tally:
    for service in on.services:
        if not service.alive:
            await service.start()
    over = asyncio.Event()
    await asyncio.sleep(on.rest_seconds)
    charged = (await charges(on.blockchain, on.chain)).transactions
    for made in buyers.purchases:
        if made.payment.nonce in charged and not made.answers:
            made.refused = None  # whatever it was told before: it was charged, and is owed an answer
    unfinished = [made for made in buyers.purchases if not made.answers and made.refused is None]
    on.notes["finished at the end"] = len(unfinished)
    answered = [made for made in buyers.purchases if made.answers]
    again = on.random.sample(answered, min(SAMPLE_AGAIN, len(answered)))
    places = asyncio.Semaphore(on.size.buyers)

    async def buy(made: Purchase) -> None:
        async with places:
            await buyers.buy(made, over)

    async def present(made: Purchase) -> None:
        async with places:
            await buyers.present(made)

    patience = asyncio.create_task(_set_later(over, ACCOUNTING_SECONDS))
    async with asyncio.TaskGroup() as group:
        for made in unfinished:
            group.create_task(buy(made))
        for made in again:
            group.create_task(present(made))
    patience.cancel()
    tally = count(buyers.purchases, await charges(on.blockchain, on.chain), price=PRICE)
    if pending := await on.blockchain.pending():
        tally.wrong.append(f"{pending} transactions still wait for a block")
    tally.wrong += buyers.wrong
    return tally


async def _set_later(event: asyncio.Event, seconds: float) -> None:
    await asyncio.sleep(seconds)
    event.set()
