"""`tollseal verify` on a real bundle: its exit codes, and what it says."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.localchain.anvil import Anvil
from tests.e2e.conftest import Bought
from tests.e2e.mutations import HEADERS, with_payment, with_value
from tests.e2e.stack import Stack, free_port, output_json, run

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]

DAY = 86_400
CHAIN_CHECKS = {"registry.key", "registry.manifest", "payment.onchain"}


def test_a_simulated_bundle_is_refused_unless_that_was_allowed(bought: Bought, tmp_path: Path) -> None:
    refused = run("verify", bought.path, cwd=tmp_path)
    assert refused.returncode == 3
    assert refused.stdout.splitlines()[-1].startswith("SIMULATED")
    assert "VERIFIED" not in refused.stdout
    allowed = run("verify", bought.path, "--allow-simulated", cwd=tmp_path)
    assert allowed.returncode == 0
    assert allowed.stdout.splitlines()[-1].startswith("SIMULATED"), "allowing it never makes it VERIFIED"


def test_every_check_has_a_line_of_its_own_and_json_says_the_same(bought: Bought, tmp_path: Path) -> None:
    *lines, verdict = run("verify", bought.path, cwd=tmp_path).stdout.splitlines()
    assert verdict.split()[0] == "SIMULATED"
    said = [(line[:12].strip(), line[12:].split()[0]) for line in lines]
    assert {status for status, _ in said} == {"pass", "not verified"}
    assert len(said) == len({check for _, check in said}) >= 19
    assert {check for _, check in said} > CHAIN_CHECKS
    document = output_json(run("verify", bought.path, "--json", cwd=tmp_path))
    assert (document["verdict"], document["exit_code"]) == ("SIMULATED", 3)
    assert [(check["status"], check["id"]) for check in document["checks"]] == said


def test_the_live_chain_confirms_agent_and_payment(bought: Bought, stack: Stack, tmp_path: Path) -> None:
    done = run("verify", bought.path, "--rpc", stack.dev.rpc, "--allow-simulated", "--json", cwd=tmp_path)
    assert done.returncode == 0
    status = {check["id"]: check["status"] for check in output_json(done)["checks"]}
    assert {status[check] for check in CHAIN_CHECKS} == {"pass"}
    assert [check for check, word in status.items() if word != "pass"] == ["evidence.policy", "channel.tls"]


def test_a_node_that_cannot_be_reached_leaves_it_incomplete(bought: Bought, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    done = run("verify", bought.path, "--rpc", nobody, "--allow-simulated", "--json", cwd=tmp_path)
    assert done.returncode == 4
    document = output_json(done)
    assert document["verdict"] == "INCOMPLETE"
    assert {check["status"] for check in document["checks"] if check["id"] in CHAIN_CHECKS} == {"not verified"}


def test_another_chain_does_not_confirm_it(bought: Bought, anvil: Anvil, tmp_path: Path) -> None:
    done = run("verify", bought.path, "--rpc", anvil.rpc, "--allow-simulated", "--json", cwd=tmp_path)
    assert done.returncode == 1
    status = {check["id"]: check["status"] for check in output_json(done)["checks"]}
    assert {status[check] for check in CHAIN_CHECKS} == {"FAIL"}


@pytest.mark.parametrize("rpc", ["not a url", "http://[", "http://127.0.0.1:99999"])
def test_a_node_url_that_is_none_is_said_so_without_a_traceback(bought: Bought, tmp_path: Path, rpc: str) -> None:
    done = run("verify", bought.path, "--rpc", rpc, "--allow-simulated", cwd=tmp_path)
    assert done.returncode in (2, 4)
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    done = run("verify", tmp_path / "missing.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "missing.json" in done.stderr


def test_a_directory_is_not_a_bundle(tmp_path: Path) -> None:
    done = run("verify", tmp_path, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


def test_after_its_keyset_expired_a_bundle_is_checked_as_of_its_own_time(bought: Bought, tmp_path: Path) -> None:
    now = int(time.time())
    late = run("verify", bought.path, "--allow-simulated", "--at", str(now + 8 * DAY), cwd=tmp_path)
    assert late.returncode == 1
    assert "keyset.lifetime" in next(line for line in late.stdout.splitlines() if line.startswith("FAIL"))
    early = run("verify", bought.path, "--allow-simulated", "--at", str(now - DAY), cwd=tmp_path)
    assert early.returncode == 1


CHANGES: dict[str, tuple[tuple[str | int, ...], Callable[[Any], Any], str]] = {
    "answer": (("answer", "response", "body"), lambda text: text.replace("smollm2", "smollm3"), "answer.signature"),
    "request": (("answer", "request", "body"), lambda text: text.replace("Lindow", "Lindox"), "receipt.request"),
    "receipt": (("receipt", "served_at"), lambda value: value + 1, "receipt.signature"),
    "keyset": (
        ("attestation", "response", "body"),
        lambda text: text.replace('"not_after":1', '"not_after":2'),
        "keyset.binding",
    ),
    "evidence": (
        ("attestation", "response", "body"),
        lambda text: text.replace('"issued_at":1', '"issued_at":2'),
        "evidence.genuine",
    ),
    "offer": (("offer", "payload", "amount"), lambda value: value + "0", "offer.signature"),
    "x402 receipt": (("x402_receipt", "payload", "payer"), lambda value: value[::-1], "payment.receipt"),
    "manifest": (("manifest", "response", "body"), lambda text: text.replace("sha256", "sha257", 1), "build.manifest"),
    "payment": (HEADERS[1], lambda text: text[:-8] + "AAAA" + text[-4:], "receipt.payment"),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_changed_part_is_named_and_the_exit_code_is_1(bought: Bought, tmp_path: Path, part: str) -> None:
    path, change, check = CHANGES[part]
    value: Any = bought.document
    for step in path:
        value = value[step]
    assert change(value) != value
    file = tmp_path / "changed.json"
    file.write_bytes(with_value(bought.document, path, change(value)))
    done = run("verify", file, "--allow-simulated", cwd=tmp_path)
    assert done.returncode == 1
    *lines, verdict = done.stdout.splitlines()
    failed = [line.split()[1] for line in lines if line.startswith("FAIL")]
    assert failed[0] == check
    assert verdict.split()[0] == "FAILED"


def test_a_made_up_payment_does_not_pass_for_one_on_the_chain(bought: Bought, stack: Stack, tmp_path: Path) -> None:
    other = "0x" + "ab" * 32
    document = bought.document
    file = tmp_path / "changed.json"
    file.write_bytes(with_payment(document, ("payload", "authorization", "nonce"), other))
    done = run("verify", file, "--allow-simulated", "--rpc", stack.dev.rpc, cwd=tmp_path)
    assert done.returncode == 1


@pytest.mark.parametrize("exchange", ["attestation", "answer"])
@pytest.mark.parametrize("url", ["http://[", ""])
def test_a_bundle_with_a_url_that_is_none_fails_with_a_node_as_without(
    bought: Bought, stack: Stack, tmp_path: Path, exchange: str, url: str
) -> None:
    file = tmp_path / "changed.json"
    file.write_bytes(with_value(bought.document, (exchange, "request", "url"), url))
    done = run("verify", file, "--allow-simulated", "--rpc", stack.dev.rpc, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("FAILED")


def test_control_characters_of_a_bundle_do_not_reach_the_terminal(bought: Bought, tmp_path: Path) -> None:
    file = tmp_path / "changed.json"
    file.write_bytes(with_value(bought.document, ("format",), "\x1b[2J\x1b]0;owned\x07"))
    done = run("verify", file, cwd=tmp_path)
    assert done.returncode == 1
    file.write_bytes(with_value(bought.document, ("receipt", "receipt_id"), "\x1b[2Jx"))
    shown = done.stdout + run("verify", file, cwd=tmp_path).stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_the_bundle_can_come_from_standard_input(bought: Bought, tmp_path: Path) -> None:
    done = run("verify", "-", "--allow-simulated", "--json", cwd=tmp_path, given=bought.data.decode())
    assert done.returncode == 0
    assert json.loads(done.stdout)["verdict"] == "SIMULATED"
