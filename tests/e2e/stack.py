"""Runs the product as its users run it: the installed command, in processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attestation.devstack import DevStack
from service.localchain.deploy import LocalChain
from tests.chain import CACHE_DIR

MODEL = "smollm2-135m"
PRICE = 10_000
"""Atomic units that one call costs with the default price rule: 0.01 USD."""

START_SECONDS = 120
STOP_SECONDS = 60
COMMAND_SECONDS = 120
LOOK_EVERY_SECONDS = 0.01

TOLLSEAL = str(Path(sys.executable).with_name("tollseal"))

DOCUMENT = """\
The harbour of Lindow froze in the winter of 1912, and for eleven weeks no ship could leave. The council bought coal
from the railway at twice the price, and fishermen cut channels by hand. When the ice broke in March, two piers had
gone, and the town decided to build the stone breakwater that stands there today.
"""

# A shell that puts a job in the background leaves SIGINT ignored, and children inherit that. A terminal does not.
_LIKE_A_TERMINAL = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of the product, and with these ones."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLSEAL_")}
    return {**clean, **settings}


def run(*arguments: str | Path, cwd: Path, given: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """`tollseal` with these arguments, to its end. `given` is what it reads, `settings` go into its environment."""
    command = [TOLLSEAL, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        # What a buyer has spent is on record where the test is, not in the home of whoever runs it.
        env=environment(**{"XDG_DATA_HOME": str(cwd / ".data"), **settings}),
        text=True,
        capture_output=True,
        timeout=COMMAND_SECONDS,
        check=False,
        input=given,
    )


class Program:
    """A `tollseal` that keeps running. Its output is read line by line, so nothing has to be waited for blindly."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, **settings: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LIKE_A_TERMINAL, TOLLSEAL, *arguments],
            cwd=cwd,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for(self, words: str) -> str:
        """The first line with these words. Fails when the program ends or stays silent for too long."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._line(words) is not None, START_SECONDS)
            line = self._line(words)
        assert line is not None, f"no {words!r} in:\n" + "\n".join(self.lines)
        return line

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C, or another signal."""
        self._process.send_signal(number)

    def end(self) -> int:
        """The exit code, once it has ended; negative for a signal."""
        code = self._process.wait(STOP_SECONDS)
        self._thread.join(STOP_SECONDS)
        return code

    def kill(self) -> None:
        """SIGKILL, and wait."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self.end()

    def _line(self, words: str) -> str | None:
        return next((line for line in self.lines if words in line), None)

    def _read(self) -> None:
        stream = self._process.stdout
        if stream is not None:
            with stream:
                for line in stream:
                    with self._changed:
                        self.lines.append(line.rstrip("\n"))
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextmanager
def running(arguments: Sequence[str], *, cwd: Path, ready: str, **settings: str) -> Iterator[Program]:
    """A program that has said it is ready; it is killed on leaving if it still runs."""
    program = Program(arguments, cwd=cwd, **settings)
    try:
        program.wait_for(ready)
        yield program
    finally:
        program.kill()


@dataclass(frozen=True)
class Stack:
    """A running `tollseal up`."""

    directory: Path
    """Where it was started: .tollseal/dev.json is in here."""
    dev: DevStack
    program: Program

    def buy(
        self, *arguments: str | Path, document: str = DOCUMENT, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """`tollseal summarize` of a document, by the stack's buyer, from the stack's directory."""
        file = self.directory / "document.txt"
        file.write_text(document, encoding="utf-8")
        settings.setdefault("TOLLSEAL_BUYER_KEY", self.dev.buyer_key)
        return run("summarize", file, "--url", self.dev.url, *arguments, cwd=self.directory, **settings)


def up_arguments() -> list[str]:
    """`up` with one compute thread: tests run beside each other, and engine threads that wait for a core crawl."""
    return ["up", "--model", MODEL, "--port", "0", "--threads", "1"]


def start_stack(directory: Path) -> Stack:
    program = Program(up_arguments(), cwd=directory)
    try:
        program.wait_for("ready")
        dev = DevStack.read(directory / ".tollseal" / "dev.json")
    except BaseException:
        program.kill()
        raise
    return Stack(directory, dev, program)


def serve_settings(chain: LocalChain, directory: Path, port: int, **more: str) -> dict[str, str]:
    """The environment of a `tollseal serve` on a local chain, with a ledger that outlives the process."""
    network = f"eip155:{chain.chain_id}"
    settings = {
        "backend": f"embedded:{MODEL}",
        "cache_dir": str(CACHE_DIR),
        "threads": "1",
        "port": str(port),
        "network": network,
        "asset": chain.token,
        "pay_to": chain.pay_to,
        "rpc_url": chain.rpc,
        "operator_key": chain.operator_key,
        "enclave": "simulated:",
        "registry_network": network,
        "identity_registry": chain.identity_registry,
        "agent_owner": chain.owner,
        "mint_agent": "true",
        "ledger_url": f"sqlite:///{directory / 'ledger.db'}",
        **more,
    }
    return {f"TOLLSEAL_{name.upper()}": value for name, value in settings.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Whether anybody accepts connections there."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5):
            return True
    except OSError:
        return False


def processes() -> Mapping[int, tuple[int, str]]:
    """Every process of this machine that is not a zombie: id -> (parent, when it was started)."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(stat.parent.name)] = (int(fields[1]), fields[19])
    return found


def family(pid: int) -> set[tuple[int, str]]:
    """A process and all it has started, as (id, when it was started)."""
    everyone = processes()
    members = {pid} & everyone.keys()
    while more := {child for child, (parent, _) in everyone.items() if parent in members} - members:
        members |= more
    return {(member, everyone[member][1]) for member in members}


def alive(members: set[tuple[int, str]]) -> set[int]:
    """Those of a family that still run; an id that was given to another process meanwhile does not count."""
    everyone = processes()
    return {pid for pid, started in members if pid in everyone and everyone[pid][1] == started}


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that no event announces: the state of a file, of a chain, or of processes of others."""
    deadline = time.monotonic() + STOP_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        threading.Event().wait(LOOK_EVERY_SECONDS)


def output_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a command printed with --json: one document and nothing else."""
    document: dict[str, Any] = json.loads(done.stdout)
    return document
