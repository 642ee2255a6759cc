"""One running stack and one real purchase on it, shared by the tests of one worker; and the JavaScript of others."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attestation.onchain import AgentReference
from service.localchain.toolchain import ensure_node, ensure_packages
from tests.chain import CACHE_DIR
from tests.e2e.chainside import Token
from tests.e2e.stack import COMMAND_SECONDS, Stack, alive, answers, family, output_json, start_stack

JAVASCRIPT = Path(__file__).parent / "js"

RunScript = Callable[[str, Any], Any]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A `tollseal up` in a directory of its own. It ends by Ctrl-C, and then nothing of it may be left."""
    running = start_stack(tmp_path_factory.mktemp("stack"))
    try:
        yield running
        check_that_ctrl_c_leaves_nothing(running)
    finally:
        running.program.kill()


def check_that_ctrl_c_leaves_nothing(stack: Stack) -> None:
    """Stop a stack as a person does, and look for what it may have left behind."""
    members = family(stack.program.pid)
    assert len(members) >= 2, "the service and its chain are processes"
    stack.program.interrupt()
    assert stack.program.end() == 0
    assert not alive(members), "a process was left"
    assert not (stack.directory / ".tollseal" / "dev.json").exists(), "the stack is still described"
    assert not answers(stack.dev.rpc), "the chain is still there"
    assert not answers(stack.dev.url), "the service is still there"


@pytest.fixture(scope="session")
def token(stack: Stack) -> Token:
    """The stack's token, read by plain JSON-RPC calls."""
    return Token(stack.dev.rpc, stack.dev.token)


@dataclass(frozen=True)
class Bought:
    """One purchase that was made with the command line."""

    path: Path
    """The saved bundle."""
    output: dict[str, Any]
    """What --json printed."""
    agent: AgentReference
    received: int
    """By how many atomic units pay_to's balance grew."""

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @property
    def document(self) -> dict[str, Any]:
        bundle: dict[str, Any] = json.loads(self.data)
        return bundle


@pytest.fixture(scope="session")
def bought(stack: Stack, token: Token) -> Bought:
    """One real purchase: `tollseal summarize --save --json`."""
    path = stack.directory / "bundle.json"
    before = token.balance_of(stack.dev.pay_to)
    done = stack.buy("--save", path, "--max-words", "5", "--allow-simulated", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    subject = json.loads(json.loads(path.read_bytes())["attestation"]["response"]["body"])["attestation"][
        "workload_keyset"
    ]["subject"]
    received = token.balance_of(stack.dev.pay_to) - before
    return Bought(path, output_json(done), AgentReference.parse(subject), received)


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> RunScript:
    """Runs a script of tests/e2e/js beside its packages: JSON in, JSON out."""
    node = ensure_node(CACHE_DIR)
    home = tmp_path_factory.mktemp("js")
    for file in JAVASCRIPT.glob("*.mjs"):
        shutil.copy(file, home)
    (home / "node_modules").symlink_to(ensure_packages(JAVASCRIPT, CACHE_DIR))

    def run(script: str, given: Any) -> Any:
        done = subprocess.run(
            [str(node.node), str(home / script)],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
