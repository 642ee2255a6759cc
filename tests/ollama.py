"""A real Ollama for tests, where one has been built (scripts/ollama.py), on a port of its own with the small model."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.inference.weights import VerifiedWeights
from tests.e2e.stack import free_port

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "ollama.py"
MODEL = "small:latest"
START_SECONDS = 60

# One thread, because tests run beside each other: threads that wait for a busy core make everything crawl.
_MODELFILE = "FROM {weights}\nPARAMETER num_thread 1\n"


def find_program() -> Path | None:
    """The Ollama that was built on this machine, or None."""
    found = subprocess.run([sys.executable, SCRIPT, "--find"], capture_output=True, text=True, check=False)
    return Path(found.stdout.strip()) if found.returncode == 0 else None


@dataclass
class RealOllama:
    """A running server. It can be killed, as a fault."""

    url: str
    models_dir: Path
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it at once, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running_ollama(program: Path, home: Path, weights: Path) -> Iterator[RealOllama]:
    """A server with the small model made from `weights`, and nothing else; `home` holds all it writes."""
    port = free_port()
    models = home / "models"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")},
        "HOME": str(home),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(models),
        "OLLAMA_NUM_PARALLEL": "1",
    }
    modelfile = home / "Modelfile"
    modelfile.write_text(_MODELFILE.format(weights=weights))
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([str(program), "serve"], env=environment, stdout=log, stderr=log)
    server = RealOllama(f"http://127.0.0.1:{port}", models, process)
    try:
        _wait(server)
        create = [str(program), "create", MODEL, "-f", str(modelfile)]
        subprocess.run(create, env=environment, check=True, capture_output=True, timeout=START_SECONDS)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait(server: RealOllama) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.process.poll() is None, "Ollama ended at its start"
        try:
            httpx.get(f"{server.url}/api/version", trust_env=False).raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "Ollama did not start"
            time.sleep(0.02)
        else:
            return


@pytest.fixture(scope="session")
def ollama_program() -> Path:
    """A real Ollama. Where none was built, what is known of it is held by the fakes."""
    program = find_program()
    if program is None:
        pytest.skip("no Ollama was built on this machine: scripts/ollama.py does it")
    return program


@pytest.fixture(scope="session")
def real_ollama(
    ollama_program: Path, smollm2_weights: VerifiedWeights, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealOllama]:
    """One server for the tests that leave it as it is."""
    with running_ollama(ollama_program, tmp_path_factory.mktemp("ollama"), smollm2_weights.file.path) as server:
        yield server
