"""A service that is killed while it is being paid: the buyer gets an answer for the same payment, and pays once."""

import base64
import json
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from x402.schemas import PaymentRequirements

from service.localchain.anvil import Anvil
from service.localchain.deploy import LocalChain, deploy
from service.localchain.toolchain import ensure_anvil
from tests.chain import CACHE_DIR
from tests.e2e.chainside import Node, Registry, Token
from tests.e2e.conftest import RunScript
from tests.e2e.stack import DOCUMENT, PRICE, Program, free_port, run, serve_settings, until
from tests.payments import as_document, as_header, pay

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("killed")]

PATIENCE_SECONDS = 60

Response = httpx.Response


@dataclass
class Shop:
    """A `tollseal serve` that can be killed and started again, on a chain and a ledger that stay."""

    chain: LocalChain
    directory: Path
    port: int = field(default_factory=free_port)
    program: Program | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def node(self) -> Node:
        return Node(self.chain.rpc)

    @property
    def token(self) -> Token:
        return Token(self.chain.rpc, self.chain.token)

    @property
    def registry(self) -> Registry:
        return Registry(self.chain.rpc, self.chain.identity_registry)

    def launch(self) -> Program:
        self.program = Program(["serve"], cwd=self.directory, **serve_settings(self.chain, self.directory, self.port))
        return self.program

    def open(self) -> None:
        self.launch().wait_for("ready at")

    def kill(self) -> None:
        if self.program is not None:
            self.program.kill()
            self.program = None

    def states(self) -> list[str]:
        """The state of every payment in the ledger's file, oldest first."""
        with closing(sqlite3.connect(f"file:{self.directory / 'ledger.db'}?mode=ro", uri=True)) as file:
            try:
                return [state for (state,) in file.execute("select state from payments order by id")]
            except sqlite3.OperationalError:
                return []  # it is being opened

    def received(self) -> int:
        return self.token.balance_of(self.chain.pay_to)

    def payment(self, body: bytes) -> str:
        """A PAYMENT-SIGNATURE header for this request, from the terms it is answered with."""
        terms = self.send(body).json()
        accepted = PaymentRequirements.model_validate(terms["accepts"][0])
        return as_header(as_document(pay(accepted, key=self.chain.buyer_key)))

    def send(self, body: bytes, payment: str | None = None) -> Response:
        headers = {"content-type": "application/json", **({} if payment is None else {"payment-signature": payment})}
        return httpx.post(f"{self.url}/v1/summarize", content=body, headers=headers, timeout=PATIENCE_SECONDS)

    def pending(self) -> int:
        """How many transactions wait for a block."""
        return int(self.node.ask("txpool_status")["pending"], 16)

    def mine_at_once(self, yes: bool) -> None:
        self.node.ask("evm_setAutomine", yes)

    def mine(self) -> None:
        self.node.ask("evm_mine")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One shop for all kills of this module: its ledger grows, its agent stays."""
    with Anvil(ensure_anvil(CACHE_DIR)) as anvil:
        shop = Shop(deploy(anvil.rpc), tmp_path_factory.mktemp("shop"))
        try:
            shop.open()
            yield shop
        finally:
            shop.kill()


@pytest.fixture
def buyer() -> Iterator[ThreadPoolExecutor]:
    """Sends requests whose answer may never come."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def request(words: str) -> bytes:
    return json.dumps({"document": f"{DOCUMENT}\n{words}", "max_words": 5}).encode()


def state_is(shop: Shop, count: int, state: str) -> Callable[[], bool]:
    return lambda: len(shop.states()) > count and shop.states()[-1] == state


def while_the_model_works(shop: Shop, count: int) -> None:
    until(state_is(shop, count, "RESERVED"), "a reservation")
    shop.kill()
    assert shop.states()[-1] == "RESERVED"


def while_the_transfer_waits_for_a_block(shop: Shop, count: int) -> None:
    shop.mine_at_once(False)
    until(lambda: shop.pending() == 1, "the transfer")
    shop.kill()
    assert shop.states()[-1] == "SETTLING"
    shop.mine_at_once(True)
    shop.mine()


def before_a_transfer_that_the_chain_forgets(shop: Shop, count: int) -> None:
    shop.mine_at_once(False)
    until(lambda: shop.pending() == 1, "the transfer")
    shop.kill()
    assert shop.states()[-1] == "SETTLING"
    shop.node.ask("anvil_dropAllTransactions")
    shop.mine_at_once(True)


def between_the_transfer_and_its_record(shop: Shop, count: int) -> None:
    shop.mine_at_once(False)
    until(lambda: shop.pending() == 1, "the transfer")
    assert shop.program is not None
    shop.program.interrupt(signal.SIGSTOP)
    before = shop.received()
    shop.mine()
    assert shop.received() == before + PRICE
    shop.kill()
    assert shop.states()[-1] == "SETTLING"
    shop.mine_at_once(True)


def at_some_moment(shop: Shop, count: int) -> None:
    until(state_is(shop, count, "RESERVED"), "a reservation")
    threading.Event().wait(random.uniform(0.0, 2.5))  # noqa: S311 - not a secret
    shop.kill()


MOMENTS = [
    while_the_model_works,
    while_the_transfer_waits_for_a_block,
    before_a_transfer_that_the_chain_forgets,
    between_the_transfer_and_its_record,
    at_some_moment,
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_same_payment_gets_an_answer_and_is_charged_once(
    shop: Shop, buyer: ThreadPoolExecutor, javascript: RunScript, moment: Callable[[Shop, int], None]
) -> None:
    body = request(moment.__name__)
    payment = shop.payment(body)
    count, before = len(shop.states()), shop.received()
    lost: Future[Response] = buyer.submit(shop.send, body, payment)
    moment(shop, count)
    lost.exception()  # whatever the buyer saw of it
    shop.open()

    again = shop.send(body, payment)
    assert again.status_code == 200, again.text
    assert shop.received() == before + PRICE
    assert accepted_by_others(shop, javascript, body, again)

    third = shop.send(body, payment)
    assert third.content == again.content, "the same payment always gets the same answer"
    assert shop.received() == before + PRICE
    other = shop.send(request("something else"), payment)
    assert other.status_code == 409
    assert shop.registry.agents() == 1
    assert len(shop.states()) == count + 1
    assert shop.states()[-1] == "SETTLED"


def accepted_by_others(shop: Shop, javascript: RunScript, body: bytes, answer: Response) -> bool:
    """Whether the independent verifier of aci/1 accepts an answer under the keyset of the service that gave it."""
    nonce = "5a" * 32
    case = {
        "report": httpx.get(f"{shop.url}/v1/aci/attestation", params={"nonce": nonce}).json(),
        "nonce": nonce,
        "now": int(time.time()),
        "receipt": httpx.get(f"{shop.url}/v1/aci/receipts/{answer.headers['x-receipt-id']}").json(),
        "request": base64.b64encode(body).decode(),
        "response": base64.b64encode(answer.content).decode(),
    }
    verdicts: Any = javascript("aci.mjs", [case])
    assert verdicts == [{"accepted": True}]
    return True


def test_a_restart_finds_its_agent_and_gives_it_the_new_key(shop: Shop) -> None:
    old = shop.registry.metadata(0, "tee.key.main")
    uri = shop.registry.token_uri(0)
    shop.kill()
    shop.open()
    assert shop.registry.agents() == 1
    assert shop.registry.token_uri(0) == uri
    assert shop.registry.owner_of(0) == shop.chain.owner.lower()
    new = shop.registry.metadata(0, "tee.key.main")
    report = httpx.get(f"{shop.url}/v1/aci/attestation").json()
    assert new != old
    assert new[21:53].hex() == report["workload_keyset_digest"].removeprefix("sha256:")


def buy(shop: Shop, bundle: Path) -> subprocess.CompletedProcess[str]:
    """`tollseal summarize` from this shop."""
    file = bundle.with_name("document.txt")
    file.write_text(DOCUMENT, encoding="utf-8")
    return run(
        "summarize",
        file,
        *("--url", shop.url, "--rpc", shop.chain.rpc, "--asset", f"eip155:{shop.chain.chain_id}:{shop.chain.token}"),
        *("--allow-simulated", "--max-words", "5", "--save", bundle),
        cwd=shop.directory,
        TOLLSEAL_BUYER_KEY=shop.chain.buyer_key,
    )


def test_a_bundle_stays_good_after_its_service_has_been_restarted(shop: Shop, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    assert buy(shop, bundle).returncode == 0
    shop.kill()
    shop.open()
    assert run("verify", bundle, "--allow-simulated", cwd=tmp_path).returncode == 0
    done = run("verify", bundle, "--allow-simulated", "--rpc", shop.chain.rpc, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_buyer_whose_service_restarts_gets_an_answer_with_a_proof(
    shop: Shop, buyer: ThreadPoolExecutor, tmp_path: Path
) -> None:
    count = len(shop.states())
    bought: Future[subprocess.CompletedProcess[str]] = buyer.submit(buy, shop, tmp_path / "bundle.json")
    while_the_model_works(shop, count)
    shop.open()
    assert bought.result().returncode == 0, bought.result().stdout


def test_keys_and_answers_are_not_on_the_disk(shop: Shop) -> None:
    body = request("What is on the disk")
    answer = shop.send(body, shop.payment(body))
    assert answer.status_code == 200
    summary = answer.json()["summary"].encode()
    for file in shop.directory.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert summary[:40] not in content, f"{file.name} holds an answer"
            assert b"Lindow" not in content, f"{file.name} holds a document"
            assert bytes.fromhex(shop.chain.operator_key[2:]) not in content
            assert shop.chain.operator_key[2:].encode() not in content


def test_a_kill_while_the_agent_is_being_minted_does_not_mint_a_second_one(tmp_path: Path) -> None:
    with Anvil(ensure_anvil(CACHE_DIR)) as anvil:
        shop = Shop(deploy(anvil.rpc), tmp_path)
        try:
            shop.mine_at_once(False)
            shop.launch()
            until(lambda: shop.pending() == 1, "the registration")
            shop.kill()
            shop.launch().wait_for("registering the agent")
            anvil.mine_every(1)
            assert shop.program is not None
            shop.program.wait_for("ready at")
            assert shop.registry.agents() == 1
        finally:
            shop.kill()
