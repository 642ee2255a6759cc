"""Processes of a benchmark: which core they run on, how they are started and ended, and what CPU time they took."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS: Final = 60


def pin(core: int) -> None:
    """Keep this process, and the threads it will start, on one core; on a machine without such a core, anywhere."""
    if core in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {core})


def cores() -> int:
    """On how many cores this process may run."""
    return len(os.sched_getaffinity(0))


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has taken, its threads included; exact to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def serve_until_terminated() -> None:
    """Wait for SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()


class Server:
    """A server process of a benchmark; it prints ``listening PORT`` when it is ready."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the words are ours
            [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        word, _, port = self._process.stdout.readline().strip().partition(" ")
        if word != "listening":
            self.stop()
            raise RuntimeError(f"{module} {' '.join(arguments)} did not start")
        self.port = int(port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it in order, and wait."""
        self._process.terminate()
        self._process.wait(_STOP_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def server(module: str, *arguments: str) -> Iterator[Server]:
    """A running server; it has ended on leaving."""
    process = Server(module, *arguments)
    try:
        yield process
    finally:
        process.stop()
