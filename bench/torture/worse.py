"""More of what is done to the world: clocks, disks, databases, replicas, reorganisations, replays."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from bench.load import replay
from bench.torture.stage import Stage

TMPFS_BYTES: Final = 32 << 20
HOUR: Final = 3600
VALID_SECONDS: Final = 1800
"""Payments that a clock which is an hour ahead takes for expired."""


async def jumping_clock(on: Stage) -> None:
    """A clock that jumps hours forth and back. The buyers' and the chain's go on as before."""
    file = on.directory / "clock"
    _set_clock(file, 0)
    service = on.service(clock=file)
    await service.start()
    await on.buyers([service.url], judge=False, valid_before=int(time.time()) + VALID_SECONDS)
    jumps = []

    async def chaos() -> None:
        for _ in range(on.size.rounds * 2):
            await asyncio.sleep(on.random.uniform(0.2, 0.8))
            offset = on.random.choice([-24 * HOUR, -HOUR, -90, 90, HOUR, 24 * HOUR])
            _set_clock(file, offset)
            jumps.append(offset)
        _set_clock(file, 0)

    await on.under_load(chaos)
    on.notes["jumps, s"] = jumps


def _set_clock(file: Path, offset: int) -> None:
    """In place: the service has the file mapped."""
    if not file.exists():
        file.write_bytes(bytes(8))
    with file.open("r+b") as opened:
        opened.write(offset.to_bytes(8, "big", signed=True))


async def full_disk(on: Stage) -> None:
    """The ledger's disk fills up while payments come in, and is given room again."""
    mounted = on.directory / "small"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(mounted)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    if done.returncode:
        on.skipped = f"no small disk can be mounted here: {done.stderr.strip()}"
        return
    on.closing.callback(subprocess.run, ["umount", "-l", str(mounted)], check=True)
    on.ledger_file = mounted / "ledger.db"
    service = on.service()
    await service.start()
    await on.buyers([service.url])
    filler, full = mounted / "filler", 0

    async def chaos() -> None:
        nonlocal full
        for _ in range(on.size.rounds):
            await asyncio.sleep(on.random.uniform(0.3, 1.0))
            _fill(filler)
            full += 1
            await asyncio.sleep(on.random.uniform(0.5, 1.5))
            if on.random.random() < 0.3:
                service.kill()
            filler.unlink()
            if not service.alive:
                await service.start()

    await on.under_load(chaos)
    on.notes["times without room"] = full


def _fill(file: Path) -> None:
    """Take all the room there is, and never more than the small disk has, wherever the file is."""
    left = TMPFS_BYTES
    with file.open("wb", buffering=0) as opened:
        for size in (65_536, 4_096, 512, 1):
            with suppress(OSError):
                while left > 0:
                    left -= opened.write(b"\0" * size)


async def killed_postgres(on: Stage) -> None:
    """kill -9 of PostgreSQL and everything it has started, with the ledger in it."""
    database = on.postgres()
    if database is None:
        return
    service = on.service(ledger_url=database.create_database())
    await service.start()
    await on.buyers([service.url])

    async def chaos() -> None:
        for _ in range(on.size.rounds):
            await asyncio.sleep(on.random.uniform(0.3, 1.2))
            await asyncio.to_thread(database.kill)
            await asyncio.sleep(on.random.uniform(0.0, 0.8))
            await asyncio.to_thread(database.start)

    await on.under_load(chaos)
    on.notes["kills of PostgreSQL"] = on.size.rounds


async def two_replicas(on: Stage) -> None:
    """Two services on one PostgreSQL: each payment is given to both at the same instant, and one of them is killed."""
    database = on.postgres()
    if database is None:
        return
    url = database.create_database()
    first, second = on.service("first", ledger_url=url), on.service("second", ledger_url=url)
    await first.start()
    await second.start()
    buyers = await on.buyers([first.url, second.url])

    async def both() -> None:
        made = buyers.order()
        await asyncio.gather(buyers.present(made, first.url), buyers.present(made, second.url))
        await buyers.buy(made, asyncio.Event())

    async def chaos() -> None:
        for index in range(on.size.rounds * 4):
            await asyncio.gather(*(both() for _ in range(on.size.buyers)))
            if index % 4 == 3:
                second.kill()
                await second.start()

    await on.under_load(chaos)
    on.notes["payments given to both"] = on.size.rounds * 4 * on.size.buyers


async def reorganised_chain(on: Stage) -> None:
    """The last block is replaced by one without its transactions, again and again; two blocks make a settlement."""
    service = on.service(settlement_depth="2")
    await service.start()
    await on.buyers([service.url])
    lost = 0

    async def chaos() -> None:
        nonlocal lost
        await on.blockchain.ask("evm_setAutomine", False)
        for _ in range(on.size.rounds * 16):
            await asyncio.sleep(on.random.uniform(0.05, 0.25))
            await on.blockchain.ask("evm_mine")
            last = await on.blockchain.ask("eth_getBlockByNumber", "latest", False)
            if last["transactions"] and on.random.random() < 0.5:
                lost += len(last["transactions"])
                await on.blockchain.ask("anvil_reorg", 1, [])

    await on.under_load(chaos)
    on.notes["transactions that left the chain"] = lost


async def replayed_payments(on: Stage) -> None:
    """Payments that were made long ago, presented again and again as fast as it goes; each gets its own answer."""
    service = on.service()
    await service.start()
    buyers = await on.buyers([service.url])
    bought = [buyers.order() for _ in range(20)]
    await asyncio.gather(*(buyers.buy(made, asyncio.Event()) for made in bought))
    expected = [made.answers[0].body for made in bought]
    requests = [
        (
            f"POST /v1/summarize HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nContent-Length: {len(made.body)}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
            + "\r\n"
        ).encode()
        + made.body
        for made in bought
    ]
    done = await replay(service.port, requests, expected, times=on.size.replays, connections=16)
    on.notes["replays"] = on.size.replays
    on.notes["replays per second"] = round(done.per_second)
    if done.failed:
        buyers.wrong.append(f"{done.failed} replays were not answered as before: {done.complaints}")


WORSE: Final[tuple[Callable[[Stage], Awaitable[None]], ...]] = (
    jumping_clock,
    full_disk,
    killed_postgres,
    two_replicas,
    reorganised_chain,
    replayed_payments,
)
