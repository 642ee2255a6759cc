"""The ledger after SIGKILL: a process is killed at every step and at random moments, and its ledger opened again.

PostgreSQL is killed too. That may take back the last steps, but none up to the last one that had to be on disk.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.payment.authorization import authorization_from_json, authorization_to_json
from service.payment.ledger import Existing, Ledger, Reserved, Row, State
from tests.payments import authorize, offer
from tests.postgres import Postgres

WORKER = """
import asyncio, json, os, sys
from service.payment.authorization import authorization_from_json
from service.payment.ledger import Ledger, NewReceipt

def say(*words):
    os.write(1, json.dumps(words).encode() + b"\\n")

async def pay(ledger, number, payment):
    request, answer = f"request-{number}", b"answer-%d" % number
    reserved = await ledger.reserve(authorization_from_json(payment), request, number, lease_seconds=9)
    row = reserved.row
    say(number, "RESERVED")
    if number % 5 == 3:
        say(number, (await ledger.release(row, reason="failed", now=number)).row.state)
        return
    if number % 5 == 4:
        row = (await ledger.start_settlement(row, now=number, result=answer)).row
    else:
        row = (await ledger.serve(row, result=answer, now=number)).row
        say(number, "SERVED")
        row = (await ledger.start_settlement(row, now=number)).row
    say(number, "SETTLING")
    if number % 5 in (0, 4):
        receipt = NewReceipt(f"r{number}", f"c{number}", f"receipt-{number}")
        row = (await ledger.settled(row, transaction="0xt", now=number, receipt=receipt)).row
    elif number % 5 == 1:
        row = (await ledger.rejected(row, reason="r", now=number)).row
    else:
        row = (await ledger.unknown(row, reason="u", now=number)).row
    say(number, row.state)

async def work(url, payments, together):
    ledger = await Ledger.open(url, owner="worker")
    todo = enumerate(payments)
    async def some():
        for number, payment in todo:
            await pay(ledger, number, payment)
    await asyncio.gather(*(some() for _ in range(together)))

# Importing takes a second, so that happens once; each process to be killed is forked from here, before any thread.
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        say("pid", os.getpid())
        try:
            asyncio.run(work(*job))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    say("dead", pid)
"""

PATHS = [
    [State.RESERVED, State.RELEASED],
    *([State.RESERVED, State.SERVED, State.SETTLING, end] for end in (State.SETTLED, State.REJECTED, State.UNKNOWN)),
    [State.RESERVED, State.SETTLING, State.SETTLED],
]

DURABLE = (State.SETTLING, State.REJECTED)
"""States that are on disk when they are reported."""

ANSWERED = (State.SERVED, State.SETTLING, State.SETTLED, State.UNKNOWN)


@pytest.fixture(scope="module")
def workers() -> Iterator[subprocess.Popen[str]]:
    """A process that forks a worker for every job it is given."""
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


@pytest.fixture(scope="module")
def payments() -> list[str]:
    """More than any worker gets done before it is killed."""
    requirements = offer()
    return [authorization_to_json(authorize(requirements)) for _ in range(1_500)]


class Work:
    """A worker's life: what it reported before it was killed."""

    def __init__(self, workers: subprocess.Popen[str], url: str, payments: list[str], *, together: int) -> None:
        assert workers.stdin is not None
        assert workers.stdout is not None
        self.payments = payments
        self.reported: list[tuple[int, State]] = []
        self._lines = workers.stdout
        print(json.dumps([url, payments, together]), file=workers.stdin, flush=True)
        word, self._pid = json.loads(self._lines.readline())
        assert word == "pid"

    def wait(self, *, steps: int, seconds: float = 0.0) -> None:
        for _ in range(steps):
            self._add(json.loads(self._lines.readline()))
        threading.Event().wait(seconds)

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # without a server it ends by itself
            os.kill(self._pid, signal.SIGKILL)
        while (line := json.loads(self._lines.readline())) != ["dead", self._pid]:
            self._add(line)
        assert len(self.reported) < 2 * len(self.payments), "it must be killed while it works"

    def _add(self, line: tuple[int, str]) -> None:
        self.reported.append((line[0], State(line[1])))


async def check(url: str, work: Work, *, server_died: bool = False) -> None:
    """Every row is whole, and is in the state that was reported last or in one that comes later."""
    ledger = await Ledger.open(url, owner="worker")
    unfinished = {row.id for row in (await ledger.unfinished(owner="worker", now=0)).rows}
    promised = dict(each for each in work.reported if not server_died or each[1] in DURABLE)
    reached = max(dict(work.reported), default=0) + 40
    for number, payment in enumerate(work.payments[:reached]):
        authorization = authorization_from_json(payment)
        row = await ledger.find(authorization.key)
        if number in promised:
            assert row is not None, f"payment {number} was reported {promised[number]} and is gone"
            assert could_follow(promised[number], row.state), f"{promised[number]} was reported, {row.state} is stored"
        if row is not None:
            check_the_row_is_whole(row, number, authorization_to_json(authorization))
            assert (row.id in unfinished) is (row.state not in (State.SETTLED, State.REJECTED, State.RELEASED))
            kept_receipt = await ledger.receipt(f"r{number}")
            assert (kept_receipt is not None) is (row.state is State.SETTLED)
            again = await ledger.reserve(authorization, f"request-{number}", 10_000, lease_seconds=9)
            assert isinstance(again, Reserved if row.state is State.RELEASED else Existing)
    await ledger.close()


def could_follow(reported: State, stored: State) -> bool:
    return any(reported in path and stored in path[path.index(reported) :] for path in PATHS)


def check_the_row_is_whole(row: Row, number: int, payment: str) -> None:
    assert row.request_digest == f"request-{number}"
    assert authorization_to_json(row.authorization) == payment
    assert row.result == (b"answer-%d" % number if row.state in ANSWERED else None)


# Five payments report 17 steps; so many kills in a row pass every boundary of every path.
@pytest.mark.parametrize("after_steps", range(1, 20))
async def test_killed_right_after_any_step_the_file_holds_every_reported_step(
    workers: subprocess.Popen[str], payments: list[str], tmp_path: Path, after_steps: int
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    work = Work(workers, url, payments, together=1)
    work.wait(steps=after_steps)
    work.kill()
    await check(url, work)


@pytest.mark.parametrize("seed", range(20))
async def test_killed_at_a_random_moment_the_file_holds_every_reported_step(
    workers: subprocess.Popen[str], payments: list[str], tmp_path: Path, seed: int
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    chance = random.Random(seed)  # noqa: S311 - not a secret
    work = Work(workers, url, payments, together=chance.choice([1, 8, 32]))
    work.wait(steps=1, seconds=chance.uniform(0.0, 0.1))
    work.kill()
    await check(url, work)


@pytest.mark.parametrize("seed", range(8))
async def test_killed_at_a_random_moment_the_server_holds_every_reported_step(
    workers: subprocess.Popen[str], payments: list[str], postgres_url: str, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - not a secret
    work = Work(workers, postgres_url, payments, together=chance.choice([1, 8, 32]))
    work.wait(steps=1, seconds=chance.uniform(0.0, 0.1))
    work.kill()
    await check(postgres_url, work)


@pytest.mark.parametrize("seed", range(8))
async def test_a_killed_server_holds_every_step_that_had_to_be_on_disk(
    workers: subprocess.Popen[str], payments: list[str], postgres: Postgres, postgres_url: str, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - not a secret
    work = Work(workers, postgres_url, payments, together=chance.choice([1, 8, 32]))
    work.wait(steps=10, seconds=chance.uniform(0.0, 0.2))
    postgres.kill()
    work.kill()
    postgres.start()
    await check(postgres_url, work, server_died=True)
