"""Starts `tollseal serve` hundreds of times: a process that has imported everything, and forks.

A service that is killed must be back in a fraction of a second, or hundreds of kills would take an hour, most of it
spent importing. What a child runs is the command itself, with an environment of its own; nothing of it has run before
the fork. Reads one JSON object per line from stdin, {"environment", "log", "clock"?, "directory"}, and answers with the
child's process id. Children end with this process, however it ends.
"""

import asyncio
import ctypes
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from service import cli
from service.boot import boot
from service.server import listening, serve
from service.settings import Settings

_PR_SET_PDEATHSIG: Final = 1


def jumping(file: Path) -> Callable[[], int]:
    """A clock that is ahead of the machine's by as many seconds as the file says, at every moment."""
    with file.open("rb") as opened:
        offset = mmap.mmap(opened.fileno(), 8, prot=mmap.PROT_READ)
    return lambda: int(time.time()) + int.from_bytes(offset[:8], "big", signed=True)


async def _serve_by(clock: Callable[[], int], settings: Settings) -> None:
    """What `tollseal serve` does, by another clock."""
    with listening(settings.port, settings.host) as listener:
        async with boot(settings, clock=clock) as service, serve(service, [listener]):
            print(f"ready at {settings.origin}", flush=True)
            await asyncio.Event().wait()


def _become(order: dict[str, Any], parent: int) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.chdir(order["directory"])
    os.environ.update(order["environment"])
    if order.get("clock"):
        asyncio.run(_serve_by(jumping(Path(order["clock"])), Settings.model_validate({})))
    else:
        cli.serve.main(args=[], prog_name="tollseal serve")
    sys.exit(0)


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    own = os.getpid()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order, own)
        print(child, flush=True)


if __name__ == "__main__":
    main()
