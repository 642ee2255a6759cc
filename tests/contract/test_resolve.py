"""From an agent's id to its service: nothing is believed, nothing is followed into a private network."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from eth_account import Account
from eth_account.signers.local import LocalAccount

from attestation.fetch import data_uri
from attestation.onchain import AgentReference
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.publication import clear_keys, publish_key
from attestation.registry.records import KeyRecord
from attestation.registry.registration import WELL_KNOWN_PATH
from attestation.registry.writer import IdentityWriter
from attestation.resolve import Resolved, joined, registration_limits, resolve
from attestation.verdict import Result, Status
from service.localchain.deploy import LocalChain

NOW = 1_790_000_000
KEY = KeyRecord("0x" + "aa" * 20, "sha256:" + "22" * 32, NOW + 1_000)

Answer = Callable[[web.Request], web.Response]


class Host:
    """A web host on this machine that answers as told."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: Answer = lambda _: web.Response(status=404)
        self.asked: list[str] = []


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()

    async def handle(request: web.Request) -> web.Response:
        host.asked.append(request.path)
        return host.answer(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield host
    await runner.cleanup()


@pytest_asyncio.fixture
async def reader(chain: LocalChain) -> AsyncIterator[IdentityReader]:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        yield reader


@pytest.fixture
def owner(chain: LocalChain, reader: IdentityReader) -> IdentityWriter:
    return IdentityWriter(reader, Account.from_key(chain.owner_key))


def file_of(reader: IdentityReader, endpoint: str, *, agent_id: int = 0, **more: object) -> bytes:
    document = {
        "type": "https://eips.ethereum.org/EIPS/eip-8004#registration-v1",
        "name": "Summaries",
        "services": [{"name": "web", "endpoint": f"{endpoint}/v1/summarize"}],
        "registrations": [{"agentId": agent_id, "agentRegistry": reader.registry_id}],
        **more,
    }
    return json.dumps(document).encode()


def serves(content: bytes) -> Answer:
    return lambda _: web.Response(body=content)


async def found(reader: IdentityReader, *, private: bool = True, now: int = NOW) -> Resolved:
    agent = AgentReference(reader.chain.chain_id, reader.address, 0)
    return await resolve(reader, agent, registration_limits(allow_private=private), now=now)


def outcome(resolved: Resolved, check_id: str) -> tuple[Status, str]:
    check = next(check for check in resolved.checks if check.id == check_id)
    return check.status, check.detail


async def honest(owner: IdentityWriter, host: Host, **more: Any) -> None:
    file = file_of(owner.reader, host.url, **more)
    host.answer = serves(file)
    await owner.register(data_uri(file))
    await publish_key(owner, 0, "main", KEY)


async def test_an_honest_agent_resolves(reader: IdentityReader, owner: IdentityWriter, host: Host) -> None:
    await honest(owner, host)
    resolved = await found(reader)
    assert [check.status for check in resolved.checks] == [Status.PASS] * 4, resolved.checks
    assert str(resolved.endpoint).rstrip("/") == host.url
    assert resolved.owner == owner.address
    assert [entry.record for entry in resolved.keys] == [KEY]
    assert host.asked == [WELL_KNOWN_PATH]
    assert joined(resolved, None).result is Result.INCOMPLETE, "the service itself has not been asked"


async def test_nothing_private_is_asked_unless_allowed(
    reader: IdentityReader, owner: IdentityWriter, host: Host
) -> None:
    await honest(owner, host)
    status, detail = outcome(await found(reader, private=False), "agent.domain")
    assert status is Status.FAIL
    assert "only https and data" in detail
    assert host.asked == []


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("https://127.0.0.1/x", "not on the public internet"),
        ("https://[::1]/x", "not on the public internet"),
        ("https://169.254.169.254/latest/meta-data", "not on the public internet"),
        ("https://10.0.0.1/x", "not on the public internet"),
        ("http://example.org/x", "only https"),
        ("file:///etc/passwd", "only https"),
        ("ipfs://bafy", "only https"),
        ("https://user:secret@example.org/", "user name"),
        ("data:application/json;base64,!!", "not base64"),
        ("data:application/json;base64," + "A" * 200_000, "more than"),
        ("data:application/json," + "[" * 250, ""),
        ("not a uri \x1b[2J", "no URI has"),
        ("", "has no URI"),
    ],
    ids=lambda value: value[:40],
)
async def test_a_uri_that_must_not_be_followed_is_a_sentence(
    reader: IdentityReader, owner: IdentityWriter, uri: str, says: str
) -> None:
    await owner.register("ipfs://x")
    if len(uri) > 100_000:  # more than a transaction of these tests may hold
        reader.token_uri = lambda _: _later(uri)  # type: ignore[method-assign, assignment]
    else:
        await owner.set_agent_uri(0, uri)
    resolved = await found(reader, private=False)
    status, detail = outcome(resolved, "agent.registration")
    assert status is Status.FAIL
    assert says in detail
    assert "secret" not in detail
    assert resolved.endpoint is None
    assert joined(resolved, None).result is Result.FAILED


async def _later(value: str) -> str:
    return value


async def test_a_redirect_into_a_private_network_is_judged_too(
    reader: IdentityReader, owner: IdentityWriter, host: Host
) -> None:
    await owner.register(f"{host.url}/file")
    host.answer = lambda _: web.Response(status=302, headers={"location": "http://169.254.169.254/"})
    assert "not on the public internet" in outcome(await found(reader), "agent.registration")[1]
    host.answer = lambda request: web.Response(status=302, headers={"location": str(request.url)})
    assert "redirects more than" in outcome(await found(reader), "agent.registration")[1]


async def test_the_file_and_the_domain_must_name_the_agent(
    reader: IdentityReader, owner: IdentityWriter, host: Host
) -> None:
    await owner.register(data_uri(file_of(reader, host.url, agent_id=7)))
    assert "does not name this agent" in outcome(await found(reader), "agent.registration")[1]
    await owner.set_agent_uri(0, data_uri(file_of(reader, host.url)))
    host.answer = serves(file_of(reader, host.url, agent_id=7))
    status, detail = outcome(await found(reader), "agent.domain")
    assert (status, "serves the file of another agent" in detail) == (Status.FAIL, True)
    host.answer = lambda _: web.Response(status=404)
    assert "status 404" in outcome(await found(reader), "agent.domain")[1]


async def test_an_inactive_agent_and_one_without_a_service_are_not_followed(
    reader: IdentityReader, owner: IdentityWriter, host: Host
) -> None:
    await owner.register(data_uri(file_of(reader, host.url, active=False)))
    assert "not active" in outcome(await found(reader), "agent.registration")[1]
    services = [{"name": "email", "endpoint": "mailto:x@example.org"}, {"name": "web", "endpoint": "ws://x.example"}]
    await owner.set_agent_uri(0, data_uri(file_of(reader, host.url, services=services)))
    assert "no service on the web" in outcome(await found(reader), "agent.domain")[1]


async def test_a_sold_agents_keys_are_refused_until_the_new_owner_confirms(
    reader: IdentityReader, owner: IdentityWriter, host: Host, stranger: LocalAccount
) -> None:
    await honest(owner, host)
    await owner.transfer(0, stranger.address)
    status, detail = outcome(await found(reader), "agent.keys")
    assert status is Status.FAIL
    assert "changed hands" in detail
    await publish_key(IdentityWriter(reader, stranger), 0, "main", KEY)
    assert outcome(await found(reader), "agent.keys")[0] is Status.PASS


async def test_expired_and_emptied_keys_are_none(reader: IdentityReader, owner: IdentityWriter, host: Host) -> None:
    await honest(owner, host)
    assert "has expired" in outcome(await found(reader, now=NOW + 1_000), "agent.keys")[1]
    await clear_keys(owner, 0, ["main"])
    assert "all were emptied" in outcome(await found(reader), "agent.keys")[1]


async def test_an_agent_that_does_not_exist_fails_and_a_dead_node_leaves_it_open(chain: LocalChain) -> None:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        resolved = await found(reader)
        assert joined(resolved, None).result is Result.FAILED
        assert outcome(resolved, "agent.exists") == (Status.FAIL, "the registry has no agent 0")
    async with IdentityReader("http://127.0.0.1:9", chain.chain_id, chain.identity_registry, timeout=1) as reader:
        assert joined(await found(reader), None).result is Result.INCOMPLETE
