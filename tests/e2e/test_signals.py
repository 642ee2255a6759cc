"""Stopping: one signal ends in order, a second one ends at once, and neither prints a traceback."""

import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.e2e]

PROGRAM = """
import asyncio, time
from service.cli import _stopped, run_to_exit

async def work():
    print("started", flush=True)
    try:
        {body}
    finally:
        print("closed", flush=True)

run_to_exit(work())
"""
WAITS = "await asyncio.sleep(60)"
BLOCKS = "time.sleep(60)"
SELLS = "await _stopped(); print('closing', flush=True); await asyncio.sleep(1)"


def start(body: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert line(process) == "started\n"
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what was printed until then."""
    with process:
        output, _ = process.communicate(timeout=20)
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_closes_what_was_opened(number: signal.Signals) -> None:
    process = start(WAITS)
    process.send_signal(number)
    assert end(process) == (128 + number, "closed\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_even_what_blocks(number: signal.Signals) -> None:
    process = start(BLOCKS)
    process.send_signal(number)
    time.sleep(0.2)  # two of a kind that arrive together are one
    process.send_signal(number)
    assert end(process) == (130, "closed\n")


def test_closing_a_service_that_sells_is_not_cut_short() -> None:
    process = start(SELLS)
    process.send_signal(signal.SIGTERM)
    assert line(process) == "closing\n"
    process.send_signal(signal.SIGTERM)
    assert end(process) == (0, "closed\n")
