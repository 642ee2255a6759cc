"""The whole local stack: a chain with the contracts on it, and a service that sells on that chain."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from attestation.devstack import FILE, DevStack
from service.app import Service
from service.boot import boot
from service.inference.weights import Progress
from service.localchain.anvil import Anvil
from service.localchain.deploy import LocalChain, deploy
from service.localchain.toolchain import ensure_anvil
from service.server import listening, serve
from service.settings import Settings

DEFAULT_PORT: Final = 8402


@asynccontextmanager
async def local_stack(
    *,
    model: str,
    state_dir: Path,
    cache_dir: Path,
    threads: int,
    report: Callable[[str], None],
    progress: Progress,
    port: int = DEFAULT_PORT,
    service_settings: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[DevStack, LocalChain, Service]]:
    """A running stack; on leaving, service and chain have ended.

    Args:
        model: a name of the model catalogue.
        state_dir: holds the ledger while the stack runs.
        cache_dir: what is fetched once is kept here.
        threads: compute threads of the model.
        report: is told each step in a few words.
        progress: is told how far a download is.
        port: where the service listens; another free one is taken when it is in use.
        service_settings: further settings of the service.

    Raises:
        ToolchainError, AnvilError, DeployError: the chain could not be started.
        Exception: what `service.boot.boot` raises.
    """
    with Anvil(ensure_anvil(cache_dir, report)) as anvil, listening(port, exact=False) as listener:
        chain = deploy(anvil.rpc)
        report(f"chain {chain.chain_id} at {chain.rpc}")
        settings = local_settings(
            chain,
            model=model,
            port=listener.getsockname()[1],
            ledger=fresh_ledger(state_dir),
            cache_dir=cache_dir,
            threads=threads,
            **(service_settings or {}),
        )
        async with boot(settings, report=report, progress=progress) as service, serve(service, [listener]):
            yield describe(chain, service), chain, service


def local_settings(
    chain: LocalChain, *, model: str, port: int, ledger: Path, cache_dir: Path, threads: int, **more: str
) -> Settings:
    """The settings of a service on a local chain. The registry and the money are real, the enclave is simulated."""
    network = f"eip155:{chain.chain_id}"
    return Settings.model_validate(
        {
            "port": port,
            "backend": f"embedded:{model}",
            "cache_dir": cache_dir,
            "threads": threads,
            "network": network,
            "asset": chain.token,
            "pay_to": chain.pay_to,
            "rpc_url": chain.rpc,
            "operator_key": SecretStr(chain.operator_key),
            "enclave": "simulated:",
            "registry_network": network,
            "identity_registry": chain.identity_registry,
            "reputation_registry": chain.reputation_registry,
            "validation_registry": chain.validation_registry,
            "agent_owner": chain.owner,
            "mint_agent": True,
            "ledger_url": f"sqlite:///{ledger}",
            **more,
        }
    )


def describe(chain: LocalChain, service: Service) -> DevStack:
    """What ``.tollseal/dev.json`` says."""
    return DevStack(
        url=service.settings.origin,
        rpc=chain.rpc,
        chain_id=chain.chain_id,
        token=chain.token,
        identity_registry=chain.identity_registry,
        reputation_registry=chain.reputation_registry,
        validation_registry=chain.validation_registry,
        agent_id=service.identity.registered_agent.agent_id,
        pay_to=chain.pay_to,
        buyer_key=chain.buyer_key,
        operator_key=chain.operator_key,
    )


def fresh_ledger(state_dir: Path) -> Path:
    """A path for a new ledger: payments of an earlier chain mean nothing on this one, although it has the same id."""
    path = state_dir.resolve() / "ledger.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return path


@contextmanager
def described(stack: DevStack, directory: Path) -> Iterator[Path]:
    """``.tollseal/dev.json`` for as long as the stack runs; only its owner can read it."""
    path = directory / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(stack.to_json(), indent=2) + "\n", encoding="utf-8")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
