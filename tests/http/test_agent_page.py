"""``/agent`` of a running service: the chain's word beside its own, and none of the chain when it is away."""

import json
from pathlib import Path

import pytest
from eth_account import Account
from jsonschema import Draft202012Validator

from attestation.fetch import data_uri
from attestation.publishing import content_hash
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.reputation import ReputationReader, ReputationWriter
from attestation.registry.sender import Sender
from attestation.registry.validation import ValidationReader, ValidationWriter
from attestation.registry.writer import IdentityWriter
from service.explorer import KEEP_SECONDS, Explorer, OnChain
from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer
from tests.chain import agent_of
from tests.http.bench import bench
from tests.http.conftest import Stack, running
from tests.http.fakes import Clock

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

SCHEMA = Path(__file__).parents[1] / "vectors" / "erc8004" / "registration-v1.schema.json"
HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_what_is_served_and_what_the_chain_says_agree(stack: Stack) -> None:
    document = (await stack.caller.get("/agent.json")).json()
    assert document["agent"] == str(stack.service.identity.agent)
    assert document["agrees"] == {"manifest": True, "key": True}
    chain = document["chain"]
    assert chain["owner"] == stack.chain.owner.lower()
    assert chain["manifest"]["digest"] == stack.service.identity.manifest_digest
    assert [one["slot"] for one in chain["keys"]] == ["tee.key.main"]
    assert chain["keys"][0]["keyset_digest"] == stack.service.identity.keyset.digest
    assert document["serves"]["hardware"] is False


async def test_people_get_a_page_and_programs_json(stack: Stack) -> None:
    page = await stack.caller.get("/agent", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "accept" in page.headers["vary"]
    assert "the build it serves is the one on the chain" in page.text
    assert stack.chain.owner.lower() in page.text
    document = await stack.caller.get("/agent", headers={"accept": "application/json"})
    assert document.json()["agrees"] == {"manifest": True, "key": True}


async def test_every_link_of_the_page_leads_somewhere(stack: Stack) -> None:
    links = (await stack.caller.get("/agent.json")).json()["serves"]["links"]
    for path in links.values():
        assert (await stack.caller.get(path)).status_code == 200


async def test_the_registration_file_is_valid_and_lists_what_is_served_and_nothing_else(stack: Stack) -> None:
    registration = (await stack.caller.get("/.well-known/agent-registration.json")).json()
    Draft202012Validator(json.loads(SCHEMA.read_text("utf-8"))).validate(registration)
    assert registration["supportedTrust"] == ["reputation"]
    listed = {(one["name"], one["endpoint"]) for one in registration["services"]}
    assert ("web", f"{stack.url}/agent") in listed
    assert ("x402", f"{stack.url}/v1/summarize") in listed
    for name, endpoint in listed:
        path = endpoint.removeprefix(stack.url)
        answer = await (stack.caller.get(path) if name == "web" else stack.caller.send("POST", path))
        assert answer.status_code not in (404, 405), endpoint
    for name, path in (("A2A", "/.well-known/agent-card.json"), ("MCP", "/mcp")):
        served = (await stack.caller.get(path)).status_code != 404
        assert served == (name in {one["name"] for one in registration["services"]})
    icon = await stack.caller.get(registration["image"].removeprefix(stack.url))
    assert icon.headers["content-type"] == "image/svg+xml"


async def test_ratings_and_validations_are_shown_and_hostile_ones_stay_text(anvil: Anvil, tmp_path: Path) -> None:
    client = Account.create()
    validator = "0x" + "d1" * 20
    async with running(anvil, tmp_path) as stack:
        chain = stack.chain
        Deployer(chain.rpc, client).fund(client.address)
        async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as identity:
            reputation = ReputationReader(identity, chain.reputation_registry)
            script = "<script>alert(1)</script>"
            for uri in ("https://169.254.169.254/", data_uri(b"{}")):
                await ReputationWriter(reputation, Sender(identity.chain, client)).give(
                    0, 100, 0, tags=(script, "\x1b[31m"), endpoint="x", uri=uri, content_hash=content_hash(b"{}")
                )
            owner = Sender(identity.chain, Account.from_key(chain.owner_key))
            asking = ValidationWriter(ValidationReader(identity, chain.validation_registry), owner)
            await asking.request(validator, 0, "javascript:alert(1)", "0x" + "0a" * 32)
        page = await stack.caller.get("/agent", headers=HTML)
        document = (await stack.caller.get("/agent.json")).json()
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    assert "\x1b" not in page.text
    ratings = document["chain"]["ratings"]
    assert (ratings["all"]["count"], ratings["all"]["mean"], ratings["paid"]["count"]) == (2, "100", 0)
    reasons = [one["reason"] for one in ratings["list"]]
    assert "it is kept elsewhere, and is not fetched for this page" in reasons[1]
    (validation,) = document["chain"]["validations"]["list"]
    assert (validation["validator"], validation["response"], validation["trusted"]) == (validator, None, False)


async def test_a_sold_agents_records_are_not_believed(anvil: Anvil, tmp_path: Path) -> None:
    async with running(anvil, tmp_path) as stack:
        chain = stack.chain
        async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as identity:
            await IdentityWriter(identity, Account.from_key(chain.owner_key)).transfer(0, chain.buyer)
        document = (await stack.caller.get("/agent.json")).json()
    assert document["chain"]["owner"] == chain.buyer.lower()
    assert document["agrees"] == {"manifest": False, "key": False}


async def test_a_chain_out_of_reach_is_said_without_naming_the_node(ledger_path: Path) -> None:
    async with bench(ledger_path) as without:
        page = await without.caller.get("/agent", headers=HTML)
        document = (await without.caller.get("/agent.json")).json()
    assert page.status_code == 200
    assert document["chain"] == {"reachable": False, "reason": "the chain could not be asked"}
    assert document["agrees"] is None
    assert "127.0.0.1" not in json.dumps(document["chain"])
    assert "not compared: the chain could not be asked" in page.text


async def test_one_reading_serves_everybody_for_some_seconds(stack: Stack) -> None:
    clock = Clock()
    explorer = Explorer(stack.service.settings, clock=clock)
    first = await explorer.read(agent_of(stack.chain))
    Deployer(stack.chain.rpc, Account.from_key(stack.chain.owner_key)).anvil("anvil_mine", "0x1")
    assert await explorer.read(agent_of(stack.chain)) is first
    clock.now += KEEP_SECONDS
    later = await explorer.read(agent_of(stack.chain))
    assert isinstance(first, OnChain)
    assert isinstance(later, OnChain)
    assert later.profile.block > first.profile.block
