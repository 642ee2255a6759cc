"""A service serves before the chain knows it, sells only after, and leaves no key of its own behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account

from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import UnknownAgentError
from attestation.registry.publication import clear_keys, publish_key
from attestation.registry.records import KeyRecord
from attestation.registry.writer import IdentityWriter
from service import publication
from service.app import Service, create_app
from service.boot import boot
from service.localchain.deploy import LocalChain
from tests.http.world import request_body
from tests.rpcproxy import node_between
from tests.unit.test_boot import Site, site

__all__ = ["site"]

pytestmark = pytest.mark.xdist_group("http")

JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(publication, "LONGEST_PAUSE", 0.2)


@dataclass
class Seen:
    """What the service says of itself over HTTP."""

    http: httpx.AsyncClient

    async def ready(self) -> dict[str, Any]:
        body: dict[str, Any] = (await self.http.get("/readyz")).json()
        return body

    async def registration(self) -> dict[str, Any]:
        report = (await self.http.get("/v1/aci/attestation")).json()
        found: dict[str, Any] = report["service_capabilities"]["agent_registration"]
        return found

    async def ask(self) -> httpx.Response:
        return await self.http.post("/v1/summarize", content=request_body(), headers=JSON)

    async def until_registered(self) -> None:
        async with asyncio.timeout(20):
            while not (await self.ready())["registered"]:  # noqa: ASYNC110 - the product is asked as others ask it
                await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(site: Site, **more: Any) -> AsyncIterator[tuple[Service, Seen]]:
    """A service that did not wait for the chain."""
    async with boot(site.settings(**more), wait_for_agent=False) as service:
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8402") as http:
            yield service, Seen(http)


@asynccontextmanager
async def operator_of(chain: LocalChain) -> AsyncIterator[IdentityWriter]:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        yield IdentityWriter(reader, Account.from_key(chain.operator_key))


async def test_it_serves_without_the_chain_and_sells_when_the_chain_is_back(site: Site) -> None:
    async with node_between(site.chain.rpc) as node:
        node.down = True
        async with serving(site, registry_rpc_url=node.url) as (_, seen):
            ready = await seen.ready()
            assert (ready["ready"], ready["registered"], ready["agent"]) == (False, False, None)
            assert "not registered yet" in ready["problems"][0]
            assert (await seen.registration())["registered"] is False
            refused = await seen.ask()
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:tollseal:problem:not-ready")
            assert "not registered yet" in refused.json()["detail"]
            for path in ("/healthz", "/.well-known/tee-manifest.json", "/.well-known/agent-registration.json"):
                assert (await seen.http.get(path)).status_code == 200, path

            node.down = False
            await seen.until_registered()
            assert (await seen.registration())["registered"] is True
            assert (await seen.ready())["agent"].endswith(":0")
            assert (await seen.ask()).status_code == 402


async def test_the_reason_is_told_and_an_owner_who_agrees_later_is_enough(site: Site) -> None:
    chain = site.chain
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        owner = IdentityWriter(reader, Account.from_key(chain.owner_key))
        await owner.set_operator(chain.operator, approved=False)
        async with serving(site) as (_, seen):
            async with asyncio.timeout(20):
                while "has not made" not in str((await seen.ready())["problems"]):  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0.05)
            assert "has not made" in (await seen.registration())["problem"]
            with pytest.raises(UnknownAgentError):
                await reader.owner_of(0)
            await owner.set_operator(chain.operator, approved=True)
            await seen.until_registered()


async def test_a_report_from_before_names_no_agent_and_its_keyset_is_another(site: Site) -> None:
    async with node_between(site.chain.rpc) as node:
        node.down = True
        async with serving(site, registry_rpc_url=node.url) as (service, seen):
            before = service.identity
            assert (before.agent, before.keyset.subject) == (None, None)
            assert before.keyset.digest == (await seen.http.get("/healthz")).headers["x-aci-keyset-digest"]
            node.down = False
            await seen.until_registered()
            assert service.identity.keyset.subject == str(service.identity.agent)
            assert service.identity.keyset.digest != before.keyset.digest


async def test_two_that_start_at_the_same_moment_make_one_agent(site: Site, tmp_path: Path) -> None:
    async with (
        serving(site, replica="one") as (one, seen_one),
        serving(site, replica="two", ledger=tmp_path / "two.db") as (two, seen_two),
    ):
        await asyncio.gather(seen_one.until_registered(), seen_two.until_registered())
        assert one.identity.registered_agent == two.identity.registered_agent
        assert one.identity.registered_agent.agent_id == 0
        with pytest.raises(UnknownAgentError):
            await site.published(1)
        for replica, service in (("one", one), ("two", two)):
            key = (await site.published(0, replica)).key
            assert key is not None
            assert key.keyset_digest == service.identity.keyset.digest


async def test_an_orderly_stop_empties_both_slots(site: Site) -> None:
    async with boot(site.settings(keys_on_stop="clear")) as service:
        await service.rotation.rotate()
        assert (await site.published(0, "main--2")).key is not None
    for slot in ("main", "main--2"):
        assert (await site.published(0, slot)).key is None


async def test_an_orderly_stop_can_let_the_key_end_now(site: Site) -> None:
    async with boot(site.settings(keys_on_stop="expire")) as service:
        digest = service.identity.keyset.digest
        end = service.clock()
    key = (await site.published(0)).key
    assert key is not None
    assert key.keyset_digest == digest
    assert 0 <= key.expires_at - end < 60


async def test_the_key_of_a_process_that_came_after_is_left_alone(site: Site) -> None:
    theirs = KeyRecord("0x" + "ab" * 20, "sha256:" + "cd" * 32, 1 << 40)
    async with boot(site.settings(keys_on_stop="clear")), operator_of(site.chain) as writer:
        await publish_key(writer, 0, "main", theirs)
    assert (await site.published(0)).key == theirs


async def test_a_stop_does_not_wait_for_a_chain_that_is_away(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with node_between(site.chain.rpc) as node:
        async with boot(site.settings(keys_on_stop="clear", registry_rpc_url=node.url)):
            node.down = True
        assert "still listed" in caplog.text
    assert (await site.published(0)).key is not None


async def test_a_revoked_key_sells_nothing(site: Site) -> None:
    async with serving(site) as (service, seen), operator_of(site.chain) as writer:
        await seen.until_registered()
        await watched(service)
        assert (await seen.ready())["registered"] is True
        await clear_keys(writer, 0, ["main"])
        await watched(service)
        ready = await seen.ready()
        assert (ready["ready"], ready["registered"]) == (False, False)
        assert "revoked" in ready["problems"][0]
        assert (await seen.ask()).status_code == 503


async def test_a_sold_agent_sells_nothing(site: Site, stranger: Any) -> None:
    chain = site.chain
    async with serving(site) as (service, seen):
        await seen.until_registered()
        async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
            await IdentityWriter(reader, Account.from_key(chain.owner_key)).transfer(0, stranger.address)
        await watched(service)
        assert f"has passed to {stranger.address.lower()}" in (await seen.ready())["problems"][0]


async def test_an_agent_that_the_chain_knows_no_more_sells_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a reorganisation that took its registration with it."""

    async def nobody(_: IdentityReader, agent_id: int) -> str:
        raise UnknownAgentError(agent_id)

    async with serving(site) as (service, seen):
        await seen.until_registered()
        monkeypatch.setattr(IdentityReader, "owner_of", nobody)
        await watched(service)
        assert "knows no agent 0 any more" in (await seen.ready())["problems"][0]
        monkeypatch.undo()
        await watched(service)
        assert (await seen.ready())["registered"] is True


async def test_a_node_that_cannot_be_asked_changes_nothing(site: Site) -> None:
    async with node_between(site.chain.rpc) as node, serving(site, registry_rpc_url=node.url) as (service, seen):
        await seen.until_registered()
        node.down = True
        await watched(service)
        assert (await seen.ready())["registered"] is True
        node.down = False


async def watched(service: Service) -> None:
    assert service.publication is not None
    await service.publication.watch()


async def test_a_lost_answer_does_not_mint_twice(site: Site) -> None:
    """The node takes the registration and breaks off: the next try finds it."""
    async with node_between(site.chain.rpc) as node:
        lost: list[str] = []

        def lose(asked: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
            if asked["method"] == "eth_sendRawTransaction" and not lost:
                lost.append(asked["method"])
                return {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32000, "message": "upstream broke off"}}
            return answer

        node.rewrite = lose
        async with serving(site, registry_rpc_url=node.url) as (service, seen):
            await seen.until_registered()
            assert lost
            assert service.identity.registered_agent.agent_id == 0
    with pytest.raises(UnknownAgentError):
        await site.published(1)
