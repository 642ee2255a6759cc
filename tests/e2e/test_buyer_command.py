"""`tollseal summarize` and `tollseal inspect`: what they print, what they pay, and what they refuse."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from x402.schemas import PaymentRequirements

from attestation.policy import Policy
from attestation.verdict import Result
from attestation.verifier import Verifier
from tests.e2e.chainside import Token
from tests.e2e.conftest import Bought
from tests.e2e.middleman import PAYMENT, Middleman, Passed, between, change_terms
from tests.e2e.stack import DOCUMENT, PRICE, Stack, free_port, output_json, run
from tests.payments import as_document, as_header, pay

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]


@pytest.fixture
def received(stack: Stack, token: Token) -> Any:
    """Tells by how much the seller's balance has grown since the test began."""
    before = token.balance_of(stack.dev.pay_to)
    return lambda: token.balance_of(stack.dev.pay_to) - before


# What a purchase looks like


def test_a_purchase_prints_the_answer_the_payment_and_the_verdict(bought: Bought, stack: Stack) -> None:
    output = bought.output
    assert set(output) == {"answer", "payment", "bundle", "verdict", "exit_code", "checks"}
    assert output["answer"]["object"] == "summary"
    assert output["payment"] == {
        "network": f"eip155:{stack.dev.chain_id}",
        "asset": stack.dev.token.lower(),
        "pay_to": stack.dev.pay_to.lower(),
        "payer": Account.from_key(stack.dev.buyer_key).address.lower(),
        "amount": str(PRICE),
        "transaction": output["payment"]["transaction"],
    }
    assert output["bundle"] == str(bought.path)
    assert (output["verdict"], output["exit_code"]) == ("SIMULATED", 0)
    status = {check["id"]: check["status"] for check in output["checks"]}
    assert status["registry.key"] == status["registry.manifest"] == status["payment.onchain"] == "pass"
    assert bought.received == PRICE


def test_the_saved_answer_is_the_printed_one(bought: Bought) -> None:
    assert json.loads(bought.document["answer"]["response"]["body"]) == bought.output["answer"]
    assert json.loads(bought.document["answer"]["request"]["body"])["document"] == DOCUMENT


def test_inspect_shows_who_answers_and_buys_nothing(stack: Stack, bought: Bought, received: Any) -> None:
    done = run("inspect", stack.dev.url, "--json", cwd=stack.directory)
    assert done.returncode == 3
    output = output_json(done)
    assert output["agent"] == str(bought.agent)
    assert output["tee"] == "simulated"
    assert output["keyset"] == bought.document["receipt"]["workload_keyset_digest"]
    assert output["price"] == "0.01 USD per call"
    assert run("inspect", stack.dev.url, "--allow-simulated", cwd=stack.directory).returncode == 0
    assert received() == 0


def test_one_payment_sent_many_times_at_once_buys_one_answer(stack: Stack, received: Any) -> None:
    body = json.dumps({"document": DOCUMENT, "max_words": 5}).encode()
    url, json_type = f"{stack.dev.url}/v1/summarize", {"content-type": "application/json"}
    terms = PaymentRequirements.model_validate(httpx.post(url, content=body, headers=json_type).json()["accepts"][0])
    payment = as_header(as_document(pay(terms, key=stack.dev.buyer_key)))

    def send(_: int) -> httpx.Response:
        return httpx.post(url, content=body, headers={**json_type, PAYMENT: payment}, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(send, range(8)))
    assert {answer.status_code for answer in got} == {200}
    assert len({answer.content for answer in got}) == 1
    assert len({answer.headers["x-receipt"] for answer in got}) == 1
    assert received() == PRICE


# What is refused before anything is paid


def test_a_price_above_the_limit_is_not_paid(stack: Stack, received: Any) -> None:
    done = stack.buy("--allow-simulated", "--max-price", "0.009999")
    assert done.returncode == 1
    assert "nothing was paid" in done.stderr
    assert "0.01 USD" in done.stderr
    assert "--max-price" in done.stderr
    assert received() == 0


@pytest.mark.parametrize("limit", ["1e-2", "0.0100001"])
def test_a_limit_that_is_no_amount_is_a_usage_error(stack: Stack, limit: str, received: Any) -> None:
    done = stack.buy("--allow-simulated", "--max-price", limit)
    assert done.returncode == 2
    assert received() == 0


def test_without_a_key_it_is_a_usage_error(stack: Stack) -> None:
    done = stack.buy("--allow-simulated", TOLLSEAL_BUYER_KEY="")
    assert done.returncode == 2
    assert "TOLLSEAL_BUYER_KEY" in done.stderr


def test_a_key_that_is_none_is_not_repeated_on_the_terminal(stack: Stack) -> None:
    done = stack.buy("--allow-simulated", TOLLSEAL_BUYER_KEY="0x" + "5e" * 31)
    assert done.returncode == 2
    assert "5e5e" not in done.stdout + done.stderr


def test_a_key_without_money_pays_nothing_and_says_why(stack: Stack, received: Any) -> None:
    done = stack.buy("--allow-simulated", TOLLSEAL_BUYER_KEY="0x" + "5e" * 32)
    assert done.returncode == 1
    assert "balance" in done.stderr
    assert not done.stdout
    assert received() == 0


def test_an_empty_document_costs_nothing(stack: Stack, received: Any) -> None:
    done = stack.buy("--allow-simulated", "--json", document=" \n")
    assert done.returncode == 1
    assert output_json(done)["status"] == 422
    assert received() == 0


def test_a_document_that_is_not_utf8_is_not_sent(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("Zürich ".encode("latin-1") * 30)
    done = run("summarize", file, "--url", stack.dev.url, cwd=tmp_path, TOLLSEAL_BUYER_KEY=stack.dev.buyer_key)
    assert done.returncode == 2
    assert "UTF-8" in done.stderr


def test_a_service_that_is_down_is_said_to_be_down(stack: Stack, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    file = tmp_path / "document.txt"
    file.write_text(DOCUMENT, encoding="utf-8")
    done = run("summarize", file, "--url", url, cwd=tmp_path, TOLLSEAL_BUYER_KEY=stack.dev.buyer_key)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["nonsense", "http://[", "http://127.0.0.1:99999"])
def test_a_url_that_is_none_is_said_so_without_a_traceback(tmp_path: Path, url: str) -> None:
    done = run("inspect", url, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_bundle_that_cannot_be_saved_does_not_cost_the_answer(stack: Stack, received: Any, tmp_path: Path) -> None:
    done = stack.buy("--allow-simulated", "--max-words", "5", "--save", tmp_path / "missing" / "bundle.json")
    assert done.returncode != 0
    assert received() == 0 or "paid" in done.stdout, "who paid must see the answer"


# With somebody in between


def buy_through(middleman: Middleman, stack: Stack, tmp_path: Path, *arguments: str) -> tuple[Any, Path]:
    """A purchase that goes through a middleman, so node and token are named. Returns how it ended, and the bundle."""
    file = tmp_path / "document.txt"
    file.write_text(DOCUMENT, encoding="utf-8")
    bundle = tmp_path / "bundle.json"
    done = run(
        "summarize",
        file,
        *("--url", middleman.url, "--rpc", stack.dev.rpc, "--max-words", "5", "--save", bundle),
        *("--asset", f"eip155:{stack.dev.chain_id}:{stack.dev.token}", *arguments),
        cwd=tmp_path,
        TOLLSEAL_BUYER_KEY=stack.dev.buyer_key,
    )
    return done, bundle


def test_a_simulated_service_is_sent_nothing_unless_that_was_allowed(
    stack: Stack, received: Any, tmp_path: Path
) -> None:
    with between(stack.dev.url) as middleman:
        done, bundle = buy_through(middleman, stack, tmp_path)
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith("SIMULATED")
    assert [one.method for one in middleman.passed] == ["GET", "GET"]
    assert not any(one.body for one in middleman.passed)
    assert not bundle.exists()
    assert received() == 0


def test_the_limit_holds_before_a_payment_is_signed(stack: Stack, received: Any, tmp_path: Path) -> None:
    with between(stack.dev.url) as middleman:
        done, _ = buy_through(middleman, stack, tmp_path, "--allow-simulated", "--max-price", "0.005")
    assert done.returncode == 1
    assert middleman.payments == []
    assert received() == 0


def raise_price(document: Any) -> None:
    document["accepts"][0]["amount"] = "20000"


def raise_price_and_offer(document: Any) -> None:
    raise_price(document)
    document["extensions"]["offer-receipt"]["info"]["offers"][0]["payload"]["amount"] = "20000"


def pay_me(document: Any) -> None:
    document["accepts"][0]["payTo"] = "0x" + "66" * 20


def no_offers(document: Any) -> None:
    document["extensions"]["offer-receipt"]["info"]["offers"] = []


@pytest.mark.parametrize("change", [raise_price_and_offer, pay_me, no_offers])
def test_terms_that_were_changed_on_the_way_are_not_paid(
    stack: Stack, received: Any, tmp_path: Path, change: Any
) -> None:
    def meddle(one: Passed) -> None:
        if one.answer.status == 402:
            change_terms(one.answer, change)

    with between(stack.dev.url, meddle) as middleman:
        done, _ = buy_through(middleman, stack, tmp_path, "--allow-simulated", "--json")
    assert done.returncode == 1
    failed = [check["id"] for check in output_json(done)["checks"] if check["status"] == "FAIL"]
    assert failed == ["offer.signature"]
    assert middleman.payments == []
    assert received() == 0


def test_an_old_report_does_not_pass_for_a_fresh_one(
    stack: Stack, bought: Bought, received: Any, tmp_path: Path
) -> None:
    old = bought.document["attestation"]["response"]

    def meddle(one: Passed) -> None:
        if one.path.startswith("/v1/aci/attestation"):
            one.answer.headers.update(old["headers"])
            one.answer.body = old["body"].encode()

    with between(stack.dev.url, meddle) as middleman:
        done, _ = buy_through(middleman, stack, tmp_path, "--allow-simulated", "--json")
    assert done.returncode == 1
    failed = [check["id"] for check in output_json(done)["checks"] if check["status"] == "FAIL"]
    assert failed == ["keyset.binding"]
    assert not any(one.body for one in middleman.passed), "the document was not sent"
    assert received() == 0


def test_a_changed_answer_is_not_shown_and_the_proof_of_it_is_kept(stack: Stack, received: Any, tmp_path: Path) -> None:
    def meddle(one: Passed) -> None:
        if PAYMENT in one.headers:
            one.answer.body = one.answer.body.replace(b'"summary":"', b'"summary":"Not ').replace(
                b'"summary": "', b'"summary": "Not '
            )

    with between(stack.dev.url, meddle) as middleman:
        done, bundle = buy_through(middleman, stack, tmp_path, "--allow-simulated")
    assert len(middleman.payments) == 1
    assert done.returncode == 1
    shown = [line for line in done.stdout.splitlines() if not line.startswith(("pass ", "FAIL ", "not verified "))]
    assert [line.split()[0] for line in shown] == ["FAILED"]
    assert "paid for" in done.stderr
    assert received() == PRICE
    verdict = Verifier(Policy(allow_simulated=True), now=middleman_time(bundle)).verify_bundle(bundle.read_bytes())
    assert verdict.result is Result.FAILED


def middleman_time(bundle: Path) -> int:
    """When the answer in a bundle was made."""
    made: int = json.loads(bundle.read_bytes())["receipt"]["served_at"]
    return made


def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_payment(
    stack: Stack, received: Any, tmp_path: Path
) -> None:
    lost: list[Passed] = []

    def meddle(one: Passed) -> None:
        if PAYMENT in one.headers and not lost:
            lost.append(one)
            one.answer.dropped = True

    with between(stack.dev.url, meddle) as middleman:
        done, bundle = buy_through(middleman, stack, tmp_path, "--allow-simulated", "--json")
    assert done.returncode == 0, done.stderr
    assert len(middleman.payments) == 2
    assert len(set(middleman.payments)) == 1
    assert received() == PRICE
    [first, second] = [one.answer for one in middleman.passed if PAYMENT in one.headers]
    assert first.body == second.body
    assert first.headers["x-receipt"] == second.headers["x-receipt"]
    assert bundle.exists()


def test_a_gateway_that_loses_the_answer_does_not_cost_the_buyer(stack: Stack, received: Any, tmp_path: Path) -> None:
    def meddle(one: Passed) -> None:
        if len(one.headers.get(PAYMENT, "")) and one.answer.status == 200 and not lost:
            lost.append(one)
            one.answer.status = 502
            one.answer.headers = {"content-type": "text/html"}
            one.answer.body = b"<html>Bad gateway"

    lost: list[Passed] = []
    with between(stack.dev.url, meddle) as middleman:
        done, _ = buy_through(middleman, stack, tmp_path, "--allow-simulated", "--json")
    assert lost
    assert received() == PRICE
    assert len(set(middleman.payments)) == 1
    assert done.returncode == 0, done.stderr


def test_a_seller_that_takes_the_payment_and_answers_nonsense_is_not_paid_twice(
    stack: Stack, received: Any, tmp_path: Path
) -> None:
    def meddle(one: Passed) -> None:
        if PAYMENT in one.headers:
            one.answer.status = 418
            one.answer.headers = {"content-type": "text/html"}
            one.answer.body = b'{"title":"\x1b[31mOops"}'

    with between(stack.dev.url, meddle) as middleman:
        done, _ = buy_through(middleman, stack, tmp_path, "--allow-simulated")
    assert done.returncode == 1
    assert "418" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert len(set(middleman.payments)) == 1
    assert received() == PRICE
