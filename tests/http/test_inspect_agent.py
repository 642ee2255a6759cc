"""`tollseal inspect` and `tollseal verify` from an agent's id alone, against a running service."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from eth_account import Account
from eth_account.signers.local import LocalAccount

from attestation.cli import main
from attestation.client import PURCHASE, PayingTransport, Purchase
from attestation.policy import Policy
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.publication import clear_keys
from attestation.registry.writer import IdentityWriter
from service.localchain.anvil import Anvil
from tests.http.conftest import Stack, buyer_of, running
from tests.http.world import DOCUMENT, SUMMARIZE

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]


def agent_of(stack: Stack) -> str:
    return f"agent:{stack.chain.chain_id}:{stack.chain.identity_registry}:0"


async def tollseal(*words: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, main, list(words))


async def document(*words: str, exit_code: int) -> dict[str, Any]:
    result = await tollseal(*words, "--json")
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("command", ["inspect", "verify"])
async def test_an_agents_id_is_enough(stack: Stack, command: str) -> None:
    words = (command, agent_of(stack), "--rpc", stack.chain.rpc, "--allow-private", "--allow-simulated")
    found = await document(*words, exit_code=0)
    assert found["service"].rstrip("/") == stack.url
    assert found["owner"] == stack.chain.owner.lower()
    assert found["agent"] == agent_of(stack).lower().replace("agent:", "eip155:")
    passed = [check["id"] for check in found["checks"] if check["status"] == "pass"]
    for check in ("agent.exists", "agent.keys", "agent.registration", "agent.domain", "registry.key", "keyset.binding"):
        assert check in passed
    assert found["verdict"] == "SIMULATED"
    assert "SIMULATED" in (await tollseal(*words)).output


async def test_without_leave_a_private_service_is_not_asked(stack: Stack) -> None:
    found = await document("inspect", agent_of(stack), "--rpc", stack.chain.rpc, exit_code=1)
    assert found["verdict"] == "FAILED"
    assert "only https" in found["checks"][2]["detail"]


async def test_a_reference_that_is_none_is_a_usage_error(stack: Stack) -> None:
    for command in ("inspect", "verify"):
        for text in ("agent:0", "agent:1:2:3", "agent:"):
            result = await tollseal(command, text, "--rpc", stack.chain.rpc)
            assert result.exit_code == 2, result.output


async def test_after_a_sale_nothing_is_bought_and_old_purchases_still_verify(
    anvil: Anvil, tmp_path: Path, stranger: LocalAccount
) -> None:
    async with running(anvil, tmp_path, keys_on_stop="keep") as own:
        transport = PayingTransport(buyer_of(own, Policy(allow_simulated=True).requiring_chain()))
        async with httpx.AsyncClient(transport=transport, timeout=30) as http:
            response = await http.post(own.url + SUMMARIZE, json={"document": DOCUMENT})
        bought = response.extensions[PURCHASE]
        assert isinstance(bought, Purchase)
        bundle = tmp_path / "bundle.json"
        bundle.write_text(bought.bundle.dumps())
        chain = own.chain
        async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
            owner = IdentityWriter(reader, Account.from_key(chain.owner_key))
            await clear_keys(owner, 0, ["main"])
            await owner.transfer(0, stranger.address)

        words = (agent_of(own), "--rpc", chain.rpc, "--allow-private", "--allow-simulated")
        found = await document("inspect", *words, exit_code=1)
        assert "all were emptied" in next(check["detail"] for check in found["checks"] if check["id"] == "agent.keys")

        old = await document("verify", str(bundle), "--rpc", chain.rpc, "--allow-simulated", exit_code=0)
        key = next(check for check in old["checks"] if check["id"] == "registry.key")
        assert key["status"] == "pass"
        assert "emptied in block" in key["detail"]
