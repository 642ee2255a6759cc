"""`tollseal spend`, and what `tollseal summarize` never pays twice, on a way that loses much."""

import json
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from attestation.event_stream import parse_stream
from tests.e2e.chainside import Token
from tests.e2e.middleman import PAYMENT, Meddle, Passed, between
from tests.e2e.stack import DOCUMENT, PRICE, TOLLSEAL, Stack, environment, output_json, run

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]


@pytest.fixture
def received(stack: Stack, token: Token) -> Any:
    """Tells by how much the seller's balance has grown since the test began."""
    before = token.balance_of(stack.dev.pay_to)
    return lambda: token.balance_of(stack.dev.pay_to) - before


class Buyer:
    """Somebody with a home of his own, who buys through a middleman."""

    def __init__(self, home: Path, stack: Stack, url: str) -> None:
        self.home, self.stack, self.url = home, stack, url
        self.document = home / "document.txt"
        self.document.write_text(DOCUMENT, encoding="utf-8")
        self.ledger = home / ".data" / "tollseal" / "spend.db"

    @property
    def arguments(self) -> list[str]:
        chain = self.stack.dev
        asset = f"eip155:{chain.chain_id}:{chain.token}"
        words = [
            "summarize",
            self.document,
            "--url",
            self.url,
            "--rpc",
            chain.rpc,
            "--asset",
            asset,
            "--max-words",
            "5",
        ]
        return [*map(str, words), "--allow-simulated"]

    def buy(self, *more: str, **settings: str) -> subprocess.CompletedProcess[str]:
        settings.setdefault("TOLLSEAL_BUYER_KEY", self.stack.dev.buyer_key)
        return run(*self.arguments, *more, cwd=self.home, **settings)

    def start(self) -> subprocess.Popen[str]:
        """The same, without waiting for it."""
        settings = {"XDG_DATA_HOME": str(self.home / ".data"), "TOLLSEAL_BUYER_KEY": self.stack.dev.buyer_key}
        return subprocess.Popen(
            [TOLLSEAL, *self.arguments],
            cwd=self.home,
            env=environment(**settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def spend(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("spend", *arguments, cwd=self.home)

    def payments(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = output_json(self.spend(*arguments, "--json"))["payments"]
        return found


def test_what_was_paid_to_whom_is_on_record(stack: Stack, tmp_path: Path, received: Any) -> None:
    buyer = Buyer(tmp_path, stack, stack.dev.url)
    bundle = tmp_path / "bundle.json"
    assert buyer.buy("--save", str(bundle)).returncode == 0
    assert received() == PRICE
    output = output_json(buyer.spend("--json", "--max-per-day", "1", "--max-total", "2"))
    saved = json.loads(bundle.read_bytes())
    [payment] = output["payments"]
    settled = next(event for event in saved["receipt"]["event_log"] if event["type"] == "payment.settled")
    assert {name: payment[name] for name in ("network", "asset", "pay_to", "payer", "amount", "nonce")} == {
        name: settled[name] for name in ("network", "asset", "pay_to", "payer", "amount", "nonce")
    }
    assert (payment["state"], payment["verdict"]) == ("ANSWERED", "SIMULATED")
    assert (payment["transaction_hash"], payment["receipt_id"]) == (
        settled["transaction"],
        saved["receipt"]["receipt_id"],
    )
    assert (payment["service"], payment["bundle"]) == (stack.dev.url, str(bundle))
    assert payment["agent"].endswith(f":{stack.dev.identity_registry.lower()}:{stack.dev.agent_id}")
    assert output["left"] == {"per_day": "0.99", "total": "1.99"}
    [total] = output["totals"]
    assert (total["asset"], total["answered"], total["unanswered"]) == (stack.dev.token.lower(), "0.01", "0")

    text = buyer.spend().stdout
    for word in (stack.dev.url, payment["agent"], payment["pay_to"], payment["transaction_hash"], str(bundle)):
        assert word in text
    assert "left for 24 hours" in text
    assert buyer.payments("--service", stack.dev.url + "/v1/summarize") == [payment]
    assert buyer.payments("--service", "http://other.example") == []
    assert buyer.payments("--since", "2000-01-01") == [payment]
    assert buyer.payments("--since", "2999-01-01") == []
    assert json.loads(buyer.spend("show", "1", "--json").stdout) == payment
    assert payment["nonce"] in buyer.spend("show", "1").stdout


def test_the_record_is_private_and_holds_neither_document_nor_key(stack: Stack, tmp_path: Path) -> None:
    buyer = Buyer(tmp_path, stack, stack.dev.url)
    assert buyer.buy().returncode == 0
    content = buyer.ledger.read_bytes()
    assert b"Lindow" not in content
    assert stack.dev.buyer_key.removeprefix("0x").encode() not in content
    assert stat.S_IMODE(buyer.ledger.stat().st_mode) == 0o600


@pytest.mark.parametrize("arguments", [("show", "7"), ("close", "7")])
def test_a_payment_that_is_not_there_is_said_not_to_be(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run("spend", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no payment 7" in done.stderr


def test_a_limit_in_all_holds_over_calls_and_processes(stack: Stack, tmp_path: Path, received: Any) -> None:
    buyer = Buyer(tmp_path, stack, stack.dev.url)
    limits = {"TOLLSEAL_BUYER_MAX_TOTAL": "0.02"}
    both = [buyer.buy(**limits).returncode for _ in range(2)]
    third = buyer.buy(**limits)
    assert (both, third.returncode) == ([0, 0], 1)
    assert "limit of 0.02 USD in all" in third.stderr
    by_day = buyer.buy("--max-per-day", "0.025")
    assert (by_day.returncode, "in 24 hours" in by_day.stderr) == (1, True)
    assert received() == 2 * PRICE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"TOLLSEAL_BUYER_PAYEES": "0x" + "aa" * 20}, "not one of those you pay"),
        ({"TOLLSEAL_BUYER_NETWORKS": "eip155:8453"}, "is not one you know"),
    ],
)
def test_what_is_not_on_a_list_is_not_paid(
    stack: Stack, tmp_path: Path, received: Any, options: dict[str, str], words: str
) -> None:
    buyer = Buyer(tmp_path, stack, stack.dev.url)
    done = buyer.buy(**options)
    assert done.returncode == 1
    assert words in done.stderr
    assert (received(), buyer.payments()) == (0, [])


def bad_gateway(one: Passed) -> None:
    one.answer.status, one.answer.headers, one.answer.body = 502, {"content-type": "text/html"}, b"<html>Bad gateway"


def come_back(one: Passed) -> None:
    one.answer.status, one.answer.headers, one.answer.body = 503, {"retry-after": "1"}, b""


def dropped(one: Passed) -> None:
    one.answer.dropped = True


def after(*losses: Meddle) -> Meddle:
    """The first paid answers are lost, each in its way."""
    left = list(losses)

    def meddle(one: Passed) -> None:
        if PAYMENT in one.headers and left:
            left.pop(0)(one)

    return meddle


def test_a_way_that_loses_answers_again_and_again_costs_one_payment(
    stack: Stack, tmp_path: Path, received: Any
) -> None:
    with between(stack.dev.url, after(dropped, bad_gateway, come_back, dropped)) as middleman:
        buyer = Buyer(tmp_path, stack, middleman.url)
        done = buyer.buy()
    assert done.returncode == 0, done.stderr
    assert (len(middleman.payments), len(set(middleman.payments))) == (5, 1)
    assert received() == PRICE
    assert done.stderr.count("sending the same payment again") == 4


def test_a_buyer_who_is_killed_pays_no_second_time(stack: Stack, tmp_path: Path, received: Any) -> None:
    paid = threading.Event()

    def hold(one: Passed) -> None:
        if PAYMENT in one.headers and not paid.is_set():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            paid.set()
            one.answer.dropped = True

    with between(stack.dev.url, hold) as middleman:
        buyer = Buyer(tmp_path, stack, middleman.url)
        process = buyer.start()
        assert paid.wait(60)
        [payment] = buyer.payments()
        assert (payment["state"], payment["transaction_hash"]) == ("SIGNED", None)
        done = buyer.buy("--json")
    assert done.returncode == 0, done.stderr
    assert len(set(middleman.payments)) == 1
    assert received() == PRICE
    [payment] = buyer.payments()
    assert (payment["state"], payment["transaction_hash"]) == (
        "ANSWERED",
        output_json(done)["payment"]["transaction"],
    )


def test_two_commands_at_once_for_one_request_pay_once(stack: Stack, tmp_path: Path, received: Any) -> None:
    with between(stack.dev.url) as middleman:
        buyer = Buyer(tmp_path, stack, middleman.url)
        processes = [buyer.start() for _ in range(2)]
        assert [process.wait(120) for process in processes] == [0, 0]
    payments = buyer.payments()
    assert {payment["state"] for payment in payments} == {"ANSWERED"}
    assert received() == len(payments) * PRICE == len(set(middleman.payments)) * PRICE


def test_a_definite_refusal_is_told_and_the_payment_can_be_given_up(
    stack: Stack, tmp_path: Path, received: Any
) -> None:
    def refuse(one: Passed) -> None:
        if PAYMENT in one.headers:
            problem = {"type": "about:blank", "title": "Payment belongs to another request", "status": 409}
            one.answer.status, one.answer.headers = 409, {"content-type": "application/problem+json"}
            one.answer.body = json.dumps(problem).encode()

    with between(stack.dev.url, refuse) as middleman:
        buyer = Buyer(tmp_path, stack, middleman.url)
        done = buyer.buy()
    assert done.returncode == 1
    assert "belongs to another request" in done.stderr
    assert len(middleman.payments) == 1
    [payment] = buyer.payments()
    assert payment["state"] == "SIGNED"
    assert "another request" in payment["note"]
    assert buyer.spend("close", "1").returncode == 0
    again = buyer.spend("close", "1")
    assert (again.returncode, "not waiting" in again.stderr) == (1, True)
    assert buyer.payments()[0]["state"] == "GIVEN_UP"
    assert output_json(buyer.spend("--json"))["totals"][0]["unanswered"] == "0.01", "it counts all the same"


def test_stream_and_json_do_not_go_together(tmp_path: Path, stack: Stack) -> None:
    done = Buyer(tmp_path, stack, stack.dev.url).buy("--stream", "--json")
    assert done.returncode == 2
    assert "choose one" in done.stderr


# Streams


def test_a_stream_is_shown_verified_and_kept(stack: Stack, tmp_path: Path, received: Any) -> None:
    buyer = Buyer(tmp_path, stack, stack.dev.url)
    bundle = tmp_path / "stream.json"
    done = buyer.buy("--stream", "--save", str(bundle))
    assert done.returncode == 0, done.stderr
    assert "is not verified before its end" in done.stderr
    shown, _, rest = done.stdout.partition("The stream is complete, and was checked:")
    saved = json.loads(bundle.read_bytes())
    events = parse_stream(saved["answer"]["response"]["body"].encode())
    assert shown.strip() == "".join(event["delta"] for event in events).strip()
    assert saved["receipt_exchange"]["response"]["status"] == 200
    assert rest.strip().splitlines()[-1].startswith("SIMULATED")
    assert received() == PRICE
    assert [payment["state"] for payment in buyer.payments()] == ["ANSWERED"]
    verified = run("verify", bundle, "--allow-simulated", "--rpc", stack.dev.rpc, "--json", cwd=tmp_path)
    assert (verified.returncode, output_json(verified)["verdict"]) == (0, "SIMULATED")


def test_half_a_stream_that_looks_whole_is_not_taken_for_one(stack: Stack, tmp_path: Path, received: Any) -> None:
    def cut(one: Passed) -> None:
        one.answer.body = one.answer.body[: len(one.answer.body) // 2]

    with between(stack.dev.url, after(dropped, cut)) as middleman:
        done = Buyer(tmp_path, stack, middleman.url).buy("--stream")
    assert len(set(middleman.payments)) == 1
    assert received() == PRICE
    assert (done.returncode, len(middleman.payments)) == (1, 2)
    assert "do not rely on what was shown" in done.stderr


def test_a_changed_stream_is_told_to_be_changed(stack: Stack, tmp_path: Path, received: Any) -> None:
    def change(one: Passed) -> None:
        changed = one.answer.body.replace(b"summary.chunk", b"summary.chonk", 1)
        assert changed != one.answer.body
        one.answer.body = changed

    with between(stack.dev.url, after(change)) as middleman:
        buyer = Buyer(tmp_path, stack, middleman.url)
        done = buyer.buy("--stream")
        assert done.returncode == 1
        assert "FAIL" in done.stdout
        assert "do not rely on what was shown" in done.stderr
        again = buyer.buy("--stream")
    assert again.returncode == 0, again.stderr
    assert (len(set(middleman.payments)), received()) == (1, PRICE)
