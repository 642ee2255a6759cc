"""`tollseal policy init`, `verify --policy`, `--html` and `tollseal manifest`, against the running stack."""

import json
import re
import shutil
from pathlib import Path

import pytest

from service.build import checkout
from tests.e2e.conftest import Bought
from tests.e2e.stack import Stack, output_json, run

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]


def policy_of(stack: Stack, directory: Path, *flags: str) -> Path:
    path = directory / "policy.toml"
    done = run("policy", "init", "--from", stack.dev.url, "--out", path, *flags, cwd=directory)
    assert done.returncode == 0, done.stderr
    assert "TRUST ON FIRST USE" in done.stderr
    assert "TRUST ON FIRST USE" in path.read_text(encoding="utf-8")
    return path


def test_a_policy_made_from_a_service_accepts_that_service(stack: Stack, bought: Bought, tmp_path: Path) -> None:
    policy = policy_of(stack, tmp_path, "--allow-simulated", "--rpc", stack.dev.rpc)
    done = run("verify", bought.path, "--policy", policy, "--rpc", stack.dev.rpc, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("SIMULATED")


def test_a_policy_demands_the_chain_when_the_chain_was_there(stack: Stack, bought: Bought, tmp_path: Path) -> None:
    policy = policy_of(stack, tmp_path, "--allow-simulated", "--rpc", stack.dev.rpc)
    done = run("verify", bought.path, "--policy", policy, "--json", cwd=tmp_path)
    assert (done.returncode, output_json(done)["verdict"]) == (4, "INCOMPLETE")


def test_a_policy_does_not_take_simulated_evidence_by_itself(stack: Stack, bought: Bought, tmp_path: Path) -> None:
    policy = policy_of(stack, tmp_path)
    assert run("verify", bought.path, "--policy", policy, cwd=tmp_path).returncode == 3


@pytest.mark.parametrize(
    ("pattern", "instead", "check"),
    [
        (r"sha256:[0-9a-f]{64}", "sha256:" + "00" * 32, "build.manifest"),
        (r"(eip155:\d+:0x[0-9a-f]{40}):\d+", r"\1:4711", "registry.agent"),
    ],
    ids=["build", "agent"],
)
def test_a_policy_for_another_service_refuses_this_one(
    stack: Stack, bought: Bought, tmp_path: Path, pattern: str, instead: str, check: str
) -> None:
    policy = policy_of(stack, tmp_path, "--allow-simulated")
    text = policy.read_text(encoding="utf-8")
    assert re.search(pattern, text)
    policy.write_text(re.sub(pattern, instead, text), encoding="utf-8")
    done = run("verify", bought.path, "--policy", policy, "--json", cwd=tmp_path)
    failed = [item["id"] for item in output_json(done)["checks"] if item["status"] == "FAIL"]
    assert (done.returncode, failed) == (1, [check])


def test_a_policy_with_an_unknown_name_is_refused_by_name(bought: Bought, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("allow_simulatd = true\n", encoding="utf-8")
    done = run("verify", bought.path, "--policy", policy, cwd=tmp_path)
    assert done.returncode == 2
    assert "allow_simulatd" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_report_is_one_page_with_every_check(bought: Bought, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = run("verify", bought.path, "--allow-simulated", "--json", "--html", page, cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    for check in output_json(done)["checks"]:
        assert check["id"] in text
    assert "SIMULATED" in text
    assert "VERIFIED" not in text
    assert not re.search(r"(src|href)=[\"']?http|<script", text), "it needs nothing else, and runs nothing"


def test_a_checkout_has_the_manifest_of_the_service_that_runs_from_it(
    stack: Stack, bought: Bought, tmp_path: Path
) -> None:
    done = run("manifest", "--from", stack.dev.url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = done.stdout.strip()
    assert f'"{found}"' in json.dumps(bought.document["receipt"]), "the receipt names it"
    checked = run("manifest", "--from", stack.dev.url, "--source", checkout(), "--check", found, cwd=tmp_path)
    assert checked.returncode == 0
    assert run("manifest", "--from", stack.dev.url, "--check", "sha256:" + "0" * 64, cwd=tmp_path).returncode == 1


def test_a_changed_source_shows_line_by_line(stack: Stack, tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    shutil.copytree(checkout(), source, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "bench"))
    same = run("manifest", "--from", stack.dev.url, "--source", source, cwd=tmp_path)
    changed = source / "service" / "payment" / "ledger.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    done = run("manifest", "--from", stack.dev.url, "--source", source, cwd=tmp_path)
    assert done.returncode == 1
    new = [line for line in done.stderr.splitlines() if line not in same.stderr.splitlines()]
    assert any("service/payment/ledger.py" in line for line in new), done.stderr
    assert done.stdout != same.stdout
