"""The start: anything that is not as it must be ends it, before anything was sold and, where possible, sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from attestation.digest import digest
from attestation.errors import EnclaveError, ManifestError, TollsealError
from attestation.manifest import manifest_digest
from attestation.registry.canonical import MAINNET_CHAIN_IDS, MAINNET_REGISTRIES
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import AgentChoiceError, UnknownAgentError, WrongChainError
from attestation.registry.publication import Published, published
from service.app import Service
from service.boot import BootError, boot
from service.inference.backend import BackendError
from service.inference.backends import BackendURIError
from service.localchain.deploy import Deployer, LocalChain
from service.localchain.stack import local_settings
from service.payment.ledger import Ledger, LedgerError, Reserved, State
from service.settings import Settings
from tests.models import FakeServer, fake_openai, served
from tests.payments import authorize, offer

pytestmark = pytest.mark.xdist_group("http")

UNKNOWN_CHAIN = "eip155:987654321"
MAINNETS = [*(f"eip155:{chain_id}" for chain_id in sorted(MAINNET_CHAIN_IDS)), UNKNOWN_CHAIN]


@dataclass
class Site:
    """A local chain, a model server, and the settings of a service between them."""

    chain: LocalChain
    backend: str
    ledger: Path

    def settings(self, **more: Any) -> Settings:
        parts = {"model": "unused", "port": 8402, "ledger": self.ledger, "cache_dir": self.ledger.parent, "threads": 1}
        parts |= {"keys_on_stop": "keep"}  # so that records can be read after an orderly stop
        return local_settings(self.chain, **{**parts, "backend": self.backend, **more})

    def sent(self) -> int:
        """Transactions that the operator has sent."""
        operator = Deployer(self.chain.rpc, Account.from_key(self.chain.operator_key))
        return int(operator.w3.eth.get_transaction_count(operator.account.address))

    async def refuses(self, expected: type[Exception], says: str, **more: Any) -> Exception:
        """The service does not start with these settings, and has sent nothing."""
        before = await asyncio.to_thread(self.sent)
        with pytest.raises(expected, match=says) as caught:
            async with boot(self.settings(**more)):
                pytest.fail("it started")
        assert await asyncio.to_thread(self.sent) == before, "something was sent to the chain"
        return caught.value

    async def started(self, **more: Any) -> tuple[Service, int]:
        """The service after a start and an orderly stop, and how many transactions that took."""
        before = await asyncio.to_thread(self.sent)
        async with boot(self.settings(**more)) as service:
            return service, await asyncio.to_thread(self.sent) - before

    async def published(self, agent_id: int, replica: str = "main") -> Published:
        chain = self.chain
        async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
            return await published(reader, agent_id, replica)


@pytest.fixture
async def site(chain: LocalChain, tmp_path: Path) -> AsyncIterator[Site]:
    model = FakeServer()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(fake_openai(model, "none")))
        yield Site(chain, f"openai:{url}/v1#{model.model}", tmp_path / "ledger.db")


def nowhere(**more: Any) -> Settings:
    """Settings that reach nothing: what they are refused for must be found without asking anybody."""
    return Settings.model_validate(
        {
            "rpc_url": "http://127.0.0.1:9",
            "operator_key": "0x" + "77" * 32,
            "pay_to": "0x" + "22" * 20,
            "agent_owner": "0x" + "44" * 20,
            "backend": "openai:http://127.0.0.1:9/v1#none",
            "enclave": "simulated:",
            "ledger_url": "sqlite:////nonexistent/ledger.db",
            **more,
        }
    )


async def refused(settings: Settings, expected: type[Exception], says: str) -> Exception:
    with pytest.raises(expected, match=says) as caught:
        async with boot(settings):
            pytest.fail("it started")
    return caught.value


@pytest.mark.parametrize("network", MAINNETS)
async def test_a_simulated_enclave_takes_no_real_money(network: str) -> None:
    await refused(nowhere(network=network), EnclaveError, f"payment network {network}")


@pytest.mark.parametrize("network", MAINNETS)
async def test_a_simulated_enclave_enters_no_real_registry(network: str) -> None:
    settings = nowhere(registry_network=network, identity_registry=MAINNET_REGISTRIES.identity)
    await refused(settings, EnclaveError, f"registry {network}")


@pytest.mark.parametrize(
    "uri", ["", "simulated", "Simulated:", "simulated:anything", "simulated://", "tdx:", "none:", "nitro", ":simulated"]
)
async def test_an_unknown_enclave_is_no_enclave(uri: str) -> None:
    await refused(nowhere(enclave=uri), EnclaveError, "enclave")


def test_there_is_no_enclave_by_default() -> None:
    with pytest.raises(ValueError, match="enclave"):
        Settings.model_validate(
            {
                "rpc_url": "http://127.0.0.1:9",
                "operator_key": "0x" + "77" * 32,
                "pay_to": "0x" + "22" * 20,
                "agent_owner": "0x" + "44" * 20,
            }
        )


@pytest.mark.parametrize("key", ["", "0x", "secret-words", "0x" + "00" * 32, "0x" + "ff" * 32, "77" * 31])
async def test_a_key_that_is_none_is_not_quoted(key: str) -> None:
    error = await refused(nowhere(operator_key=key), BootError, "operator_key is not a private key")
    assert not key or len(key) < 10 or key not in str(error)


@pytest.mark.parametrize("backend", ["", "embedding:tiny", "ftp:x", "openai:http://127.0.0.1:9/v1", "openai:#model"])
async def test_an_unknown_backend_is_refused(backend: str) -> None:
    await refused(nowhere(backend=backend), BackendURIError, "backend")


async def test_a_model_server_that_is_away_is_a_failed_start() -> None:
    await refused(nowhere(), BackendError, "cannot be reached")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("price", "0"),
        ("price", "0.0000001"),
        ("price", "1e-2"),
        ("price", "-1"),
        ("pay_to", "0x" + "00" * 20),
        ("pay_to", "harbour.eth"),
        ("network", "base"),
        ("replica", "No 1"),
        ("replica", "web--2"),
        ("replica", "x" * 31),
        ("port", "0"),
        ("pinned_manifest", "5e" * 32),
        ("public_url", "summaries.example"),
        ("identity_registry", "0x12"),
    ],
)
def test_a_setting_out_of_its_range_is_named_and_no_secret_with_it(field: str, value: str) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        nowhere(**{field: value})
    assert field in str(caught.value)
    assert "77" * 32 not in str(caught.value)


async def test_a_registry_must_be_named_where_none_is_known() -> None:
    with pytest.raises(ValueError, match="identity_registry must be set"):
        nowhere(registry_network="eip155:31337")


async def test_another_build_than_the_pinned_one_is_refused(site: Site) -> None:
    pinned = digest(b"another build")
    await site.refuses(ManifestError, f"the pinned one is {pinned}", pinned_manifest=pinned)


async def test_the_pinned_build_starts(site: Site) -> None:
    first, _ = await site.started()
    pinned = first.identity.manifest_digest
    assert pinned == manifest_digest(first.manifest)
    again, _ = await site.started(pinned_manifest=pinned)
    assert again.identity.manifest_digest == pinned
    await site.refuses(ManifestError, "the build manifest is", pinned_manifest=pinned, price="0.02")


async def test_an_operator_without_gas_is_refused(site: Site) -> None:
    poor = Account.create()
    key = "0x" + bytes(poor.key).hex()
    error = await site.refuses(BootError, "payments could not be settled.* wei for gas", operator_key=key)
    assert poor.address in str(error), "whoever runs it must know which account to fill"
    assert key not in str(error)


async def test_a_token_that_is_none_is_refused(site: Site) -> None:
    await site.refuses(BootError, "no contract at this address", asset="0x" + "12" * 20)


async def test_a_token_with_another_domain_is_refused(site: Site) -> None:
    await site.refuses(BootError, "EIP-712 domain", asset_name="USD Coin")


async def test_a_node_of_another_chain_is_refused(site: Site) -> None:
    await site.refuses(BootError, "serves eip155:84532, not eip155:11155111", network="eip155:11155111")


async def test_a_registry_on_another_chain_is_refused(site: Site) -> None:
    await site.refuses(WrongChainError, "11155111", registry_network="eip155:11155111")


async def test_a_ledger_that_cannot_be_opened_is_refused(site: Site) -> None:
    """Before the chain is told of keys that will never serve anybody."""
    site.ledger.write_bytes(b"this is no database" * 100)
    await site.refuses(LedgerError, "ledger")


async def test_no_agent_is_minted_unasked(site: Site) -> None:
    await site.refuses(AgentChoiceError, "no agent", mint_agent=False)


async def test_an_agent_that_does_not_exist_is_refused(site: Site) -> None:
    await site.refuses(UnknownAgentError, "7", agent_id=7)


async def test_an_owner_who_has_not_agreed_is_refused(site: Site) -> None:
    await site.refuses(TollsealError, "operator", agent_owner="0x" + "44" * 20)


async def test_the_first_start_mints_agent_0_and_publishes_what_is_served(site: Site) -> None:
    service, _ = await site.started()
    assert service.identity.registered_agent.agent_id == 0
    record = await site.published(0)
    assert record.owner == site.chain.owner.lower()
    assert record.agent_uri == "http://127.0.0.1:8402/.well-known/agent-registration.json"
    assert record.manifest_digest == service.identity.manifest_digest
    assert record.key is not None
    assert record.key.keyset_digest == service.identity.keyset.digest
    assert record.key.payment_key == service.keyholder.current.keys.payment_address
    assert record.key.expires_at == service.identity.keyset.not_after
    assert service.identity.keyset.subject == str(service.identity.agent)


@pytest.mark.parametrize("named", [False, True], ids=["found", "named by its id, 0"])
async def test_a_restart_keeps_the_agent_and_sends_only_the_new_key(site: Site, named: bool) -> None:
    first, _ = await site.started()
    more: dict[str, Any] = {"agent_id": 0, "mint_agent": False} if named else {}
    second, transactions = await site.started(**more)
    assert second.identity.agent == first.identity.agent
    assert transactions == 1
    assert second.identity.keyset.digest != first.identity.keyset.digest, "keys are born at each start"
    record = await site.published(0)
    assert record.key is not None
    assert record.key.keyset_digest == second.identity.keyset.digest
    assert record.manifest_digest == first.identity.manifest_digest
    with pytest.raises(UnknownAgentError):
        await site.published(1)


async def test_a_restart_leaves_no_key_of_the_last_run_listed(site: Site) -> None:
    """They were rotated, so there are records in both slots of the replica; the newer one is in the second."""
    async with boot(site.settings()) as service:
        await service.rotation.rotate()
    second, transactions = await site.started()
    assert transactions == 2
    for slot in ("main", "main--2"):
        key = (await site.published(0, slot)).key
        assert key is not None
        assert key.keyset_digest == second.identity.keyset.digest


async def test_replicas_share_the_agent_and_have_a_record_each(site: Site, tmp_path: Path) -> None:
    one, _ = await site.started(replica="one")
    two, transactions = await site.started(replica="two", ledger=tmp_path / "two.db")
    assert (one.identity.agent, transactions) == (two.identity.agent, 1)
    for replica, service in (("one", one), ("two", two)):
        key = (await site.published(0, replica)).key
        assert key is not None
        assert key.keyset_digest == service.identity.keyset.digest


async def test_a_service_that_moved_keeps_its_agent(site: Site) -> None:
    await site.started()
    moved, transactions = await site.started(public_url="https://summaries.example")
    assert (moved.identity.registered_agent.agent_id, transactions) == (0, 2)
    uri = (await site.published(0)).agent_uri
    assert uri == "https://summaries.example/.well-known/agent-registration.json"


async def test_a_start_finishes_what_the_last_one_left(site: Site) -> None:
    """A payment whose inference was cut off was never charged, and is free again."""
    await site.started()
    authorization = authorize(offer())
    ledger = await Ledger.open(f"sqlite:///{site.ledger}", owner="main")
    assert isinstance(await ledger.reserve(authorization, digest(b"request"), 1, lease_seconds=60), Reserved)
    await ledger.close()
    async with boot(site.settings()) as service:
        row = await service.ledger.find(authorization.key)
        assert row is not None
        assert row.state is State.RELEASED


async def test_steps_are_told_in_order(site: Site) -> None:
    told: list[str] = []
    async with boot(site.settings(), report=told.append) as service:
        pass
    assert told == [
        "loading the model and hashing its weights",
        f"build {service.identity.manifest_digest}",
        "registering the agent",
        f"agent {service.identity.agent}",
    ]
