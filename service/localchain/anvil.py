"""The local chain's process: a native anvil that lives exactly as long as its owner wants it to.

State is in memory. The port is chosen by the kernel unless one is given, so two chains never fight for one. On Linux
the kernel kills the process when its owner dies, however it dies.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

LOCAL_CHAIN_ID: Final = 84532
"""Base Sepolia's id: the network that x402 clients know, so local payments look exactly like testnet ones."""

_START_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 5.0
_LISTENING: Final = "Listening on "

_GUARD: Final = """
import ctypes, os, signal, sys
parent, program = int(sys.argv[1]), sys.argv[2:]
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == parent:  # else it went before the request was made
    os.execv(program[0], program)
"""
"""What the new process runs before it becomes anvil: it asks the kernel to be killed when its parent goes. Not a
`preexec_fn`: running Python between fork and exec can deadlock in a program with threads."""


_STATES_ON_DISK: Final = 64
"""anvil keeps the newest 500 states in memory and older ones on disk: all of them unless told otherwise, about a
megabyte each, and it leaves them there when it is killed."""


class AnvilError(RuntimeError):
    """anvil did not start or did not answer; the message holds its last lines of output."""


class Anvil:
    """One anvil process that mines each transaction at once.

    Start and stop it with `with`, `async with`, or `start()` and `stop()`.

    Args:
        binary: the native program (`toolchain.ensure_anvil`), not a wrapper script.
        chain_id: what eth_chainId answers.
        port: TCP port on 127.0.0.1; 0 lets the kernel choose a free one.
    """

    def __init__(self, binary: Path, *, chain_id: int = LOCAL_CHAIN_ID, port: int = 0) -> None:
        self._command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(chain_id)]
        # No prefunded, unlocked accounts: every key on this chain is made by whoever uses it.
        self._command += ["--accounts", "0", "--color", "never", "--max-persisted-states", str(_STATES_ON_DISK)]
        self._chain_id = chain_id
        self._process: subprocess.Popen[str] | None = None
        self._failure: OSError | None = None
        self._port: int | None = None
        self._settled = threading.Event()  # set once the port is known or never will be
        self._output: deque[str] = deque(maxlen=20)
        self._thread: threading.Thread | None = None

    @property
    def rpc(self) -> str:
        """The JSON-RPC URL.

        Raises:
            AnvilError: the process has not been started.
        """
        if self._port is None:
            raise AnvilError("anvil has not been started")
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs, else None."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def start(self) -> Self:
        """Starts the process and returns once it answers eth_chainId.

        Raises:
            AnvilError: it ended, did not listen in time, or serves another chain.
        """
        if self._thread is not None:
            raise AnvilError("anvil can be started once; make another instance")
        self._thread = threading.Thread(target=self._own, name="anvil", daemon=True)
        self._thread.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def mine_every(self, seconds: int) -> None:
        """From now on makes a block every so many seconds, as a public chain does; 0 mines each transaction at once.

        Raises:
            AnvilError: the process has not been started, or does not answer.
        """
        self._ask("evm_setAutomine", seconds == 0)
        if seconds:
            self._ask("evm_setIntervalMining", seconds)

    def stop(self) -> None:
        """Ends the process and waits for its end. Safe to call at any time, any number of times."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_STOP_TIMEOUT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _own(self) -> None:
        """Runs the process, and removes the states that it has written to disk when it has ended."""
        with tempfile.TemporaryDirectory(prefix="tollseal-chain-", ignore_cleanup_errors=True) as states:
            self._run(["--cache-path", states])

    def _run(self, more: list[str]) -> None:
        """Starts the process, then reads what it prints until it ends.

        The kernel's parent-death signal follows the thread that started a process, so the thread that starts it is the
        one that stays for as long as the process runs.
        """
        command = self._command + more
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command]
        try:
            if not os.access(self._command[0], os.X_OK):
                raise FileNotFoundError(f"{self._command[0]} is not a program")
            process = subprocess.Popen(  # noqa: S603 - the words are ours, no shell is involved
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # Its own session: Ctrl-C reaches the owner, who then stops the chain when nothing needs it any more.
                start_new_session=True,
            )
        except OSError as error:
            self._failure = error
            self._settled.set()
            return
        self._process = process
        stream = process.stdout
        if stream is not None:
            with stream:
                for line in stream:
                    self._output.append(line.rstrip())
                    if self._port is None and line.startswith(_LISTENING):
                        self._port = int(line.rsplit(":", 1)[1])
                        self._settled.set()
        process.wait()
        self._settled.set()

    def _wait_until_ready(self) -> None:
        settled = self._settled.wait(_START_TIMEOUT)
        if self._failure is not None:
            raise AnvilError(f"anvil could not be started: {self._failure}") from self._failure
        if not settled or self._port is None:
            what = "ended at once" if settled else f"did not listen within {_START_TIMEOUT:.0f} s"
            raise AnvilError(f"anvil {what}: " + " | ".join(line for line in self._output if line))
        answer = self._ask("eth_chainId")
        if answer.get("result") != hex(self._chain_id):
            raise AnvilError(f"the node at {self.rpc} serves chain {answer.get('result')}, not {hex(self._chain_id)}")
        # Several lines for every request from here on would only keep the reading thread busy.
        self._ask("anvil_setLoggingEnabled", False)

    def _ask(self, method: str, *params: object) -> dict[str, object]:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            with httpx.Client(
                transport=httpx.HTTPTransport(retries=3), timeout=_START_TIMEOUT, trust_env=False
            ) as client:
                answer = client.post(self.rpc, json=request).json()
        except (httpx.HTTPError, ValueError) as error:
            raise AnvilError(f"anvil listens at {self.rpc} but does not answer: {error}") from error
        if not isinstance(answer, dict):
            raise AnvilError(f"anvil at {self.rpc} answers {method} with something that is not JSON-RPC")
        return answer
