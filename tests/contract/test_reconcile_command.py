"""`tollseal reconcile`, run by an operator while the service is stopped."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.localchain.deploy import LocalChain
from service.payment.ledger import Ledger, State
from service.pricing import Asset
from service.reconcile_cli import reconcile_command
from tests.e2e.stack import serve_settings
from tests.ledgers import in_state
from tests.payments import authorize, offer

pytestmark = pytest.mark.xdist_group("http")


class Shop:
    """A stopped service: its settings, and what it left in its ledger."""

    def __init__(self, chain: LocalChain, directory: Path) -> None:
        self.chain = chain
        self.environment = serve_settings(chain, directory, 8402)

    def left(self, *states: State) -> None:
        """Payments in these states, for the replica `main`, whose leases ended long ago."""

        async def leave() -> None:
            asset = Asset(f"eip155:{self.chain.chain_id}", self.chain.token, 6, "USDC", "2", "USDC")
            ledger = await Ledger.open(self.environment["TOLLSEAL_LEDGER_URL"], owner="main")
            for state in states:
                payment = authorize(offer(asset, pay_to=self.chain.pay_to), key=self.chain.buyer_key)
                await in_state(ledger, state, payment)
            await ledger.close()

        asyncio.run(leave())

    def run(self, *arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(reconcile_command, arguments, env={**self.environment, **environment})


@pytest.fixture
def shop(chain: LocalChain, tmp_path: Path) -> Shop:
    return Shop(chain, tmp_path)


def test_it_finishes_what_can_be_finished_and_says_so(shop: Shop) -> None:
    shop.left(State.RESERVED, State.SERVED, State.SETTLING, State.UNKNOWN, State.SETTLED)
    done = shop.run("--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["released"], report["settled"], report["rejected"], report["waiting"]) == (1, 3, 0, [])
    assert {state: number for state, number in report["payments"].items() if number} == {"SETTLED": 4, "RELEASED": 1}
    again = shop.run()
    assert again.exit_code == 0
    assert "4 SETTLED, 1 RELEASED" in again.stdout


def test_what_has_to_wait_is_told_and_seen_in_the_exit_code(shop: Shop) -> None:
    shop.left(State.SETTLING)
    done = shop.run(TOLLSEAL_RPC_URL="http://127.0.0.1:1")
    assert done.exit_code == 4
    assert "is UNKNOWN" in " ".join(done.stdout.split())


def test_without_settings_every_missing_one_is_named(shop: Shop) -> None:
    done = shop.run(TOLLSEAL_RPC_URL="", TOLLSEAL_PAY_TO="nobody")
    assert done.exit_code == 2
    assert "TOLLSEAL_RPC_URL" in done.output
    assert "TOLLSEAL_PAY_TO" in done.output


def test_a_ledger_that_cannot_be_opened_is_a_sentence_without_its_password(shop: Shop, tmp_path: Path) -> None:
    url = f"postgresql+psycopg://tollseal:hunter2@/ledger?host={tmp_path}"
    done = shop.run(TOLLSEAL_LEDGER_URL=url)
    assert done.exit_code == 1
    assert "the ledger cannot be opened" in done.output
    assert "hunter2" not in done.output
    assert "Traceback" not in done.output
