"""The ledger after SIGKILL: a real process is killed at every step and at random moments, and its file opened again."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.payment.authorization import authorization_from_json, authorization_to_json
from service.payment.ledger import Existing, Ledger, Reserved, Row, State
from tests.payments import authorize, offer

WORKER = """
import asyncio, json, os, sys
from service.payment.authorization import authorization_from_json
from service.payment.ledger import Ledger

def say(*words):
    os.write(1, json.dumps(words).encode() + b"\\n")

async def work(url, payments):
    ledger = await Ledger.open(url)
    for number, payment in enumerate(payments):
        row = (await ledger.reserve(authorization_from_json(payment), f"request-{number}", number)).row
        say(number, "RESERVED")
        if number % 4 == 3:
            say(number, (await ledger.release(row, reason="failed", now=number)).row.state)
            continue
        row = (await ledger.serve(row, result=b"answer-%d" % number, now=number)).row
        say(number, "SERVED")
        row = (await ledger.start_settlement(row, now=number)).row
        say(number, "SETTLING")
        if number % 4 == 0:
            row = (await ledger.settled(row, transaction="0xt", now=number)).row
        elif number % 4 == 1:
            row = (await ledger.rejected(row, reason="r", now=number)).row
        else:
            row = (await ledger.unknown(row, reason="u", now=number)).row
        say(number, row.state)
        await ledger.put_receipt(receipt_id=f"r{number}", chat_id=f"c{number}", receipt=f"receipt-{number}", now=number)
        say(number, "RECEIPT")

# Importing takes a second, so that happens once; each process to be killed is forked from here, before any thread.
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        say("pid", os.getpid())
        asyncio.run(work(*job))
        os._exit(0)
    os.waitpid(pid, 0)
    say("dead", pid)
"""

PATHS = [[State.RESERVED, State.RELEASED]] + [
    [State.RESERVED, State.SERVED, State.SETTLING, end] for end in (State.SETTLED, State.REJECTED, State.UNKNOWN)
]


@pytest.fixture(scope="module")
def workers() -> Iterator[subprocess.Popen[str]]:
    """A process that forks a worker for every job it is given."""
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


def run_and_kill(
    workers: subprocess.Popen[str], url: str, payments: list[str], *, after_steps: int, after_seconds: float
) -> list[tuple[int, str]]:
    """Start a worker, SIGKILL it after so many reported steps and then so much time; return what it had reported."""
    assert workers.stdin is not None
    assert workers.stdout is not None
    print(json.dumps([url, payments]), file=workers.stdin, flush=True)
    word, pid = json.loads(workers.stdout.readline())
    assert word == "pid"
    reported = [json.loads(workers.stdout.readline()) for _ in range(after_steps)]
    threading.Event().wait(after_seconds)
    os.kill(pid, signal.SIGKILL)
    while (line := json.loads(workers.stdout.readline())) != ["dead", pid]:
        reported.append(line)
    return [(number, state) for number, state in reported]


async def check_the_file_is_understood(url: str, payments: list[str], reported: list[tuple[int, str]]) -> None:
    ledger = await Ledger.open(url)
    unfinished = {row.id: row for row in await ledger.unfinished()}
    last: dict[int, str] = {number: state for number, state in reported if state != "RECEIPT"}
    for number, payment in enumerate(payments):
        authorization = authorization_from_json(payment)
        row = await ledger.find(authorization.key)
        if number in last:
            assert row is not None, f"payment {number} was reported {last[number]} and is gone"
            assert could_follow(last[number], row.state), f"{last[number]} was reported, {row.state} is stored"
        if row is not None:
            check_the_row_is_whole(row, number, authorization_to_json(authorization))
            finished = row.state in (State.SETTLED, State.REJECTED, State.RELEASED)
            assert (row.id in unfinished) is not finished
            again = await ledger.reserve(authorization, f"request-{number}", 10_000)
            assert isinstance(again, Reserved if row.state is State.RELEASED else Existing)
    for number, state in reported:
        if state == "RECEIPT":
            assert await ledger.receipt(f"r{number}") == f"receipt-{number}"
    await ledger.close()


def could_follow(reported: str, stored: State) -> bool:
    """What was reported is the state that is stored, or one that comes later."""
    return any(reported in path and stored in path[path.index(State(reported)) :] for path in PATHS)


def check_the_row_is_whole(row: Row, number: int, payment: str) -> None:
    assert row.request_digest == f"request-{number}"
    assert authorization_to_json(row.authorization) == payment
    has_answer = row.state in (State.SERVED, State.SETTLING, State.SETTLED, State.UNKNOWN)
    assert row.result == (b"answer-%d" % number if has_answer else None)


# Each payment reports up to five steps; 22 kills in a row pass every boundary of every path.
@pytest.mark.parametrize("after_steps", range(1, 23))
async def test_killed_right_after_any_step_the_file_holds_every_reported_step(
    workers: subprocess.Popen[str], tmp_path: Path, after_steps: int
) -> None:
    await kill_and_check(workers, tmp_path, after_steps, 0.0)


@pytest.mark.parametrize("seed", range(30))
async def test_killed_at_a_random_moment_the_file_holds_every_reported_step(
    workers: subprocess.Popen[str], tmp_path: Path, seed: int
) -> None:
    await kill_and_check(workers, tmp_path, 1, random.Random(seed).uniform(0.0, 0.1))  # noqa: S311 - not a secret


async def kill_and_check(
    workers: subprocess.Popen[str], tmp_path: Path, after_steps: int, after_seconds: float
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    requirements = offer()
    payments = [authorization_to_json(authorize(requirements)) for _ in range(40)]
    reported = run_and_kill(workers, url, payments, after_steps=after_steps, after_seconds=after_seconds)
    assert len(reported) < 4 * len(payments), "the worker must be killed while it works"
    await check_the_file_is_understood(url, payments, reported)
