"""One real stack for all tests of the HTTP surface: a chain, the contracts, a model server, the service on a socket.

Only the model is not real: a server that speaks OpenAI's API and does as told, behind the service's own backend for
such servers. Everything runs in one event loop, that of the session.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from eth_account import Account

from attestation.client import Buyer
from attestation.policy import Policy
from attestation.registry import view
from attestation.spending import Asset, SpendingLimit
from service.app import Service
from service.boot import boot, unix_now
from service.localchain.anvil import Anvil
from service.localchain.deploy import LocalChain, deploy
from service.localchain.stack import local_settings
from service.payment.chain import ChainReader
from service.server import listening, serve
from tests.http.world import Caller, LedgerFile
from tests.models import FakeServer, fake_openai, served


@dataclass
class Stack:
    """The running stack."""

    chain: LocalChain
    service: Service
    url: str
    model: FakeServer
    ledger: LedgerFile
    caller: Caller
    reader: ChainReader

    async def earned(self) -> int:
        """Atomic units that the seller has received so far."""
        return await self.reader.token_balance(self.chain.token, self.chain.pay_to)


def buyer_of(stack: Stack, policy: Policy) -> Buyer:
    """Somebody with money on this stack's chain, who asks the chain too."""
    chain = stack.chain
    return Buyer(
        account=Account.from_key(chain.buyer_key),
        limit=SpendingLimit("0.05", (Asset(f"eip155:{chain.chain_id}", chain.token.lower()),)),
        policy=policy,
        chain=view.ChainReader(chain.rpc),
    )


@asynccontextmanager
async def running(
    anvil: Anvil, directory: Path, *, clock: Callable[[], int] = unix_now, **more: Any
) -> AsyncIterator[Stack]:
    """A stack of its own, on fresh contracts; `more` are settings."""
    chain = await asyncio.to_thread(deploy, anvil.rpc)
    model = FakeServer()
    ledger = directory / "ledger.db"
    with listening(0, exact=False) as listener:
        port = listener.getsockname()[1]
        async with served(fake_openai(model, "none")) as model_url:
            settings = local_settings(
                chain,
                model="unused",
                port=port,
                ledger=ledger,
                cache_dir=directory,
                threads=1,
                **{"backend": f"openai:{model_url}/v1#{model.model}", **more},
            )
            async with boot(settings, clock=clock) as service, serve(service, [listener]):
                reader = ChainReader(chain.rpc, f"eip155:{chain.chain_id}")
                async with httpx.AsyncClient(base_url=settings.origin, timeout=30) as http:
                    caller = Caller(http, service.identity.keyset, chain.buyer_key, clock)
                    yield Stack(chain, service, settings.origin, model, LedgerFile(ledger), caller, reader)
                await reader.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running_stack(anvil: Anvil, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running(anvil, tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture
def stack(running_stack: Stack) -> Iterator[Stack]:
    """The session's stack, with a model that behaves."""
    yield running_stack
    model = running_stack.model
    model.answer, model.hold, model.hold_after, model.break_after = None, None, None, None
    model.text = "one two three four five"
    model.started.clear()
    model.gone.clear()


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    """Where a service without a chain keeps its ledger."""
    return tmp_path / "ledger.db"


@pytest.fixture
def canary() -> str:
    """A word that occurs nowhere else."""
    return f"canary{secrets.token_hex(12)}"
