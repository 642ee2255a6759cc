"""`tollseal up` and `tollseal demo` from start to end: whatever stops them, nothing is left."""

import json
import signal
import stat
from pathlib import Path

import pytest

from attestation.devstack import DevStack
from tests.e2e.conftest import check_that_ctrl_c_leaves_nothing
from tests.e2e.stack import (
    DOCUMENT,
    MODEL,
    Program,
    alive,
    answers,
    family,
    run,
    start_stack,
    until,
    up_arguments,
)

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("killed")]

FIELDS = {
    "url": str, "rpc": str, "chain_id": int, "token": str, "identity_registry": str, "reputation_registry": str,
    "validation_registry": str, "agent_id": int, "pay_to": str, "buyer_key": str, "operator_key": str,
}  # fmt: skip


def test_two_stacks_run_beside_each_other_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    homes = tmp_path / "one", tmp_path / "two"
    stacks = []
    try:
        for home in homes:
            home.mkdir()
            stacks.append(start_stack(home))
        for stack in stacks:
            description = stack.directory / ".tollseal" / "dev.json"
            document = json.loads(description.read_bytes())
            assert {name: type(value) for name, value in document.items()} == FIELDS
            assert stat.S_IMODE(description.stat().st_mode) == 0o600, "it holds keys"
            assert document["buyer_key"] not in "\n".join(stack.program.lines)
            assert document["operator_key"] not in "\n".join(stack.program.lines)
        assert stacks[0].dev.rpc != stacks[1].dev.rpc
        assert stacks[0].dev.url != stacks[1].dev.url
        for stack in stacks:
            check_that_ctrl_c_leaves_nothing(stack)
    finally:
        for stack in stacks:
            stack.program.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["chain ", "loading the model", "registering the agent", "agent "])
def test_a_signal_during_the_start_leaves_nothing(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    program = Program(up_arguments(), cwd=tmp_path)
    try:
        program.wait_for(moment)
        members = family(program.pid)
        program.interrupt(number)
        assert program.end() in (128 + number, 0), "0 when it was just ready"
        until(lambda: not alive(members), "the processes to end")
        assert not (tmp_path / ".tollseal" / "dev.json").exists()
        assert not any("Traceback" in line for line in program.lines), "\n".join(program.lines)
    finally:
        program.kill()


def test_a_terminated_stack_leaves_nothing(tmp_path: Path) -> None:
    stack = start_stack(tmp_path)
    try:
        members = family(stack.program.pid)
        stack.program.interrupt(signal.SIGTERM)
        assert stack.program.end() == 0
        assert not alive(members)
        assert not (tmp_path / ".tollseal" / "dev.json").exists()
    finally:
        stack.program.kill()


def test_a_killed_stack_takes_its_chain_along_and_does_not_hinder_the_next(tmp_path: Path) -> None:
    stack = start_stack(tmp_path)
    members = family(stack.program.pid)
    stack.program.kill()
    until(lambda: not alive(members), "the chain to end")
    assert not answers(stack.dev.rpc)
    again = start_stack(tmp_path)
    try:
        assert again.dev.rpc != stack.dev.rpc
        assert DevStack.read(tmp_path / ".tollseal" / "dev.json") == again.dev
    finally:
        again.program.kill()


def test_the_demo_shows_everything_and_leaves_only_its_proof(tmp_path: Path) -> None:
    file = tmp_path / "my text.txt"
    file.write_text(DOCUMENT, encoding="utf-8")
    done = run("demo", file, "--model", MODEL, "--threads", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("chain", "model", "service", "agent", "document", "terms", "paid", "transaction", "proof"):
        assert any(line.startswith(name) for line in lines), name
    assert any(line.startswith("SIMULATED") for line in lines)
    assert not any(line.startswith("FAIL") for line in lines)
    bundle = tmp_path / ".tollseal" / "demo-bundle.json"
    assert run("verify", bundle, "--allow-simulated", cwd=tmp_path).returncode == 0
    assert run("verify", bundle, cwd=tmp_path).returncode == 3
    assert not (tmp_path / ".tollseal" / "dev.json").exists()


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b"\xff\xfe", "UTF-8"), (b"too short", "words")])
def test_a_demo_of_a_file_that_cannot_be_summarised_says_why(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    done = run("demo", file, "--model", MODEL, "--threads", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = run("up", "--model", "no-such-model", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "no-such-model" in done.stderr
    assert MODEL in done.stderr, "the known ones are named"
    assert "Traceback" not in done.stderr
