"""What the ledger costs: payments per second and CPU per payment, on SQLite and on PostgreSQL.

A payment is what a paid call does: find, reserve, start settlement with the answer, settled with the receipt; 3 kB of
answer and 2.5 kB of receipt. Rounds of all cases alternate, so that whatever else the machine does hits all; the median
counts. CPU is this process's, the threads of the ledger included, the PostgreSQL server not. The disk is the machine's:
`fsync_us` is what waiting for it cost in the same run.

Writes bench/out/ledger.json: {"payments_per_round", "rounds", "fsync_us",
"ledger": {"sqlite" | "postgresql": {"1" | "16" | "64": {"payments_per_s", "cpu_us", "p50_ms", "p99_ms"}}}}.
`python -m bench.ledger [ROUNDS]`; without a PostgreSQL to start, SQLite alone.
"""

import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from service.payment.authorization import Authorization
from service.payment.ledger import Ledger, Moved, NewReceipt, Reserved
from tests.payments import authorize
from tests.postgres import Postgres, PostgresMissingError

CONCURRENCIES: Final = (1, 16, 64)
PAYMENTS: Final = 1_000
ROUNDS: Final = 3
ANSWER: Final = secrets.token_bytes(3_000)
RECEIPT: Final = json.dumps({"receipt": "r" * 2_480})
OUT: Final = Path(__file__).parent / "out" / "ledger.json"

Measured = dict[str, float]


async def pay(ledger: Ledger, authorization: Authorization) -> None:
    """The ledger's part of one paid call."""
    nonce = authorization.nonce
    assert await ledger.find(authorization.key) is None
    reserved = await ledger.reserve(authorization, "sha256:" + "0" * 64, 100, lease_seconds=600)
    assert isinstance(reserved, Reserved)
    started = await ledger.start_settlement(reserved.row, now=101, result=ANSWER, receipt_id=nonce)
    assert isinstance(started, Moved)
    receipt = NewReceipt(nonce, f"sum-{nonce}", RECEIPT)
    done = await ledger.settled(started.row, transaction="0x" + "ab" * 32, now=102, receipt=receipt)
    assert isinstance(done, Moved)


async def measure(url: str, payments: list[Authorization], concurrency: int) -> Measured:
    """One round: `concurrency` buyers pay all payments between them."""
    ledger = await Ledger.open(url, owner="bench")
    todo, times = iter(payments), []

    async def buy() -> None:
        for authorization in todo:
            began = time.perf_counter()
            await pay(ledger, authorization)
            times.append(time.perf_counter() - began)

    await pay(ledger, authorize())  # connections and statements are made
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(buy() for _ in range(concurrency)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    await ledger.close()
    quantiles = statistics.quantiles(times, n=100)
    return {
        "payments_per_s": len(payments) / seconds,
        "cpu_us": cpu / len(payments) * 1e6,
        "p50_ms": quantiles[49] * 1e3,
        "p99_ms": quantiles[98] * 1e3,
    }


def fsync_us() -> float:
    """What it costs to have 4 kB on disk; the median."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            file.write(bytes(4_096))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


@contextmanager
def databases() -> Iterator[dict[str, Postgres | None]]:
    with ExitStack() as stack:
        found: dict[str, Postgres | None] = {"sqlite": None}
        try:
            server = Postgres()
        except PostgresMissingError as error:
            print(f"SQLite alone: {error}")
        else:
            stack.callback(server.close)
            server.start()
            found["postgresql"] = server
        yield found


def main(rounds: int) -> None:
    payments = [authorize() for _ in range(PAYMENTS)]
    results: dict[str, dict[int, list[Measured]]] = {}
    disk = []
    with databases() as found:
        for _ in range(rounds):
            disk.append(fsync_us())
            for name, server in found.items():
                for concurrency in CONCURRENCIES:
                    with tempfile.TemporaryDirectory() as directory:
                        url = server.create_database() if server else f"sqlite:///{directory}/ledger.db"
                        measured = asyncio.run(measure(url, payments, concurrency))
                        if server:
                            server.drop_database(url)
                    results.setdefault(name, {}).setdefault(concurrency, []).append(measured)
    table = {
        name: {str(concurrency): middle(of) for concurrency, of in by_concurrency.items()}
        for name, by_concurrency in results.items()
    }
    disk_us = round(statistics.median(disk))
    report = {"payments_per_round": PAYMENTS, "rounds": rounds, "fsync_us": disk_us, "ledger": table}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{'':12}{'at once':>8}{'payments/s':>12}{'CPU us':>9}{'p50 ms':>9}{'p99 ms':>9}")
    for name, by_at_once in table.items():
        for at_once, of in by_at_once.items():
            rate, cpu = of["payments_per_s"], of["cpu_us"]
            print(f"{name:12}{at_once:>8}{rate:>12.0f}{cpu:>9.0f}{of['p50_ms']:>9.1f}{of['p99_ms']:>9.1f}")
    print(f"waiting for the disk once: {disk_us} us; median of {rounds} rounds; {OUT.relative_to(Path.cwd())}")


def middle(rounds: list[Measured]) -> Measured:
    """The median of each figure."""
    return {field: round(statistics.median(each[field] for each in rounds), 2) for field in rounds[0]}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
