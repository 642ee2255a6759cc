"""The world of a torture: a chain, a model, and services, all of them processes that can be killed and come back."""

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
from eth_account import Account

from service.localchain.deploy import Deployer, LocalChain, deploy
from service.localchain.toolchain import ensure_anvil

CACHE_DIR: Final = Path.home() / ".cache" / "tollseal"
CHAIN_ID: Final = 84532
START_SECONDS: Final = 60
LOOK_EVERY_SECONDS: Final = 0.01
BLOCK_SECONDS: Final = 0.2
RICH: Final = 10**15
"""Atomic units: what the buyer of a torture owns."""


class WorldError(RuntimeError):
    """Something that had to be there did not come."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Blockchain:
    """An anvil that can be killed, and comes back at the same address with the blocks it had.

    What it has not mined is lost with it, as in any node that dies. Its blocks are not: a public chain does not lose
    those when one node goes.
    """

    def __init__(self, directory: Path) -> None:
        self._binary = ensure_anvil(CACHE_DIR)
        self._state = directory / "chain.json"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.rpc = f"http://127.0.0.1:{self._port}"
        self._http: aiohttp.ClientSession | None = None

    async def start(self, *more: str) -> None:
        """Start it and wait until it answers."""
        command = [str(self._binary), "--host", "127.0.0.1", "--port", str(self._port), "--chain-id", str(CHAIN_ID)]
        command += ["--accounts", "0", "--silent", *more]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603, ASYNC220
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                await self.ask("eth_chainId")
                return
            if time.monotonic() > deadline:
                raise WorldError("the chain did not start")
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def ask(self, method: str, *params: object) -> Any:
        """One JSON-RPC call."""
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60))
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with self._http.post(self.rpc, json=request) as response:
            answer = await response.json()
        if "error" in answer:
            raise WorldError(f"{method}: {answer['error']}")
        return answer["result"]

    async def kill_and_restart(self, *, away_seconds: float) -> None:
        """SIGKILL; it comes back with its blocks and without what waited for one."""
        await self.ask("evm_setAutomine", False)
        state = await self.ask("anvil_dumpState")
        self._state.write_bytes(gzip.decompress(bytes.fromhex(state[2:])))
        self._end()
        await asyncio.sleep(away_seconds)
        await self.start("--load-state", str(self._state))

    def stall(self) -> None:
        """Connections are taken, and nothing is answered, until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def calm(self) -> None:
        """Mine at once, and whatever waits."""
        self.resume()
        await self.ask("evm_setAutomine", True)
        await self.ask("evm_mine")

    async def mine_steadily(self) -> None:
        """Further blocks, until cancelled: whoever waits for several of them waits in vain on a chain that is calm."""
        while True:
            await asyncio.sleep(BLOCK_SECONDS)
            await self.ask("evm_mine")

    async def pending(self) -> int:
        """How many transactions wait for a block."""
        return int((await self.ask("txpool_status"))["pending"], 16)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Zygote:
    """Starts services quickly; see `bench.torture.zygote`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.torture.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._line() != "ready":
            raise WorldError("the process that starts services did not start")

    def spawn(self, environment: Mapping[str, str], directory: Path, log: Path, clock: Path | None) -> int:
        """The process id of a new service."""
        order = {"environment": dict(environment), "directory": str(directory), "log": str(log)}
        if clock is not None:
            order["clock"] = str(clock)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class ServiceProcess:
    """A `tollseal serve` that can be killed and started again at the same address."""

    def __init__(
        self, zygote: Zygote, directory: Path, environment: Mapping[str, str], *, name: str, clock: Path | None = None
    ) -> None:
        self._zygote = zygote
        self._directory = directory
        self._port = free_port()
        self._environment = {**environment, "TOLLSEAL_PORT": str(self._port), "TOLLSEAL_REPLICA": name}
        self._clock = clock
        self._pid: int | None = None
        self.log = directory / f"{name}.log"
        self.url = f"http://127.0.0.1:{self._port}"
        self.starts: list[float] = []
        """How long each start took, in seconds."""

    @property
    def port(self) -> int:
        return self._port

    def launch(self) -> None:
        """Start it, and do not wait."""
        self._pid = self._zygote.spawn(self._environment, self._directory, self.log, self._clock)

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            WorldError: it ended, or does not answer in time.
        """
        began = time.monotonic()
        self.launch()
        await self.answers()
        self.starts.append(time.monotonic() - began)

    async def answers(self) -> None:
        """Wait until it takes connections."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.alive:
                raise WorldError(f"the service ended: {self.last_words()}")
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(LOOK_EVERY_SECONDS)
                continue
            # The listener is there from the first step on; who serves it answers.
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: torture\r\nConnection: close\r\n\r\n")
            answered = False
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(max(0.1, deadline - time.monotonic())):
                    answered = (await reader.read(12)).startswith(b"HTTP/1.1")
            writer.close()
            if answered:
                return
        raise WorldError(f"the service does not answer: {self.last_words()}")

    @property
    def alive(self) -> bool:
        if self._pid is None:
            return False
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        while self.alive:
            time.sleep(0.001)
        self._pid = None

    def last_words(self) -> str:
        return self.log.read_text("utf-8", errors="replace")[-800:] if self.log.exists() else "(it said nothing)"


def fund(chain_rpc: str) -> LocalChain:
    """The contracts on a fresh chain, and a buyer whose money lasts."""
    return deploy(chain_rpc, buyer_balance=RICH)


def new_operator(chain_rpc: str, address: str) -> None:
    """Gives an account gas money."""
    Deployer(chain_rpc, Account.create()).fund(address)


def environment(chain: LocalChain, *, model_url: str, ledger_url: str, **more: str) -> dict[str, str]:
    """The settings of a `tollseal serve` on this chain; the process itself adds port and replica."""
    network = f"eip155:{chain.chain_id}"
    settings = {
        "backend": f"openai:{model_url}/v1#torture-1",
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
        "slots": "64",
        "queue": "256",
        "ledger_url": ledger_url,
        **more,
    }
    return {f"TOLLSEAL_{name.upper()}": value for name, value in settings.items()}
