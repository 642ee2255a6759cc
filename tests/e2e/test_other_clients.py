"""Buyers that others wrote, in three languages: axios and httpx with the x402 SDKs, and Go with nothing but the
specifications."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from x402.client import x402Client
from x402.http.clients.httpx import x402AsyncTransport
from x402.mechanisms.evm.exact import ExactEvmClientScheme
from x402.mechanisms.evm.signers import EthAccountSigner

from tests.e2e.chainside import Token
from tests.e2e.conftest import RunScript
from tests.e2e.stack import COMMAND_SECONDS, DOCUMENT, PRICE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]

BUYER = Path(__file__).parent / "go"
BUILD_SECONDS = 300


def endpoint(stack: Stack) -> str:
    return f"{stack.dev.url}/v1/summarize"


def request(word: str) -> dict[str, Any]:
    return {"document": f"{DOCUMENT}\n{word}", "max_words": 5}


def check_transfer(token: Token, transaction: str) -> None:
    """The transaction that a client was told of is on the chain, and succeeded."""
    assert token.ask("eth_getTransactionReceipt", transaction)["status"] == "0x1"


def test_axios_buys_a_summary_for_one_payment(stack: Stack, token: Token, javascript: RunScript) -> None:
    before = token.balance_of(stack.dev.pay_to)
    got = javascript("axios.mjs", {"url": endpoint(stack), "body": request("axios"), "key": stack.dev.buyer_key})
    assert got["status"] == 200
    assert got["body"]["summary"].strip()
    assert got["requests"] == [False, True]
    assert token.balance_of(stack.dev.pay_to) == before + PRICE
    check_transfer(token, got["settlement"]["transaction"])


async def test_httpx_with_the_sdk_s_transport_buys_a_summary_for_one_payment(stack: Stack, token: Token) -> None:
    client = x402Client()
    account = Account.from_key(stack.dev.buyer_key)
    client.register("eip155:*", ExactEvmClientScheme(EthAccountSigner(account)))
    network = f"eip155:{stack.dev.chain_id}"
    client.set_spend_controls(
        {"allowed_assets": [{"network": network, "asset": stack.dev.token, "max_amount_per_payment": str(PRICE)}]}
    )
    before = token.balance_of(stack.dev.pay_to)
    async with httpx.AsyncClient(transport=x402AsyncTransport(client), timeout=COMMAND_SECONDS) as http:
        got = await http.post(endpoint(stack), json=request("httpx"))
    assert got.status_code == 200, got.text
    assert got.json()["summary"].strip()
    assert token.balance_of(stack.dev.pay_to) == before + PRICE


@pytest.fixture(scope="module")
def go_buyer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go buyer, built."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no Go here to build the buyer with")
    program = tmp_path_factory.mktemp("go") / "buyer"
    built = subprocess.run(
        [go, "build", "-o", program, "."],
        cwd=BUYER,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return program


def test_go_buys_a_summary_and_finds_its_signature_good(stack: Stack, token: Token, go_buyer: Path) -> None:
    order = {"url": endpoint(stack), "body": json.dumps(request("go")), "key": stack.dev.buyer_key}
    before = token.balance_of(stack.dev.pay_to)
    done = subprocess.run(
        [go_buyer], input=json.dumps(order), capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["status"] == 200, got
    assert got["signed"] is True
    assert json.loads(got["answer"])["summary"].strip()
    assert token.balance_of(stack.dev.pay_to) == before + PRICE
    check_transfer(token, got["settlement"]["transaction"])
