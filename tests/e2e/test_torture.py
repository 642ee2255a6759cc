"""Torture at its small size: after each fault, what the chain charged is what the buyers hold verified answers for."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.torture.scenarios import SCENARIOS

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("torture"), pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]

SLOW = {"hanging-facilitator"}
"""Takes as long as the service waits for a facilitator; `make torture` runs it."""


@pytest.mark.parametrize("scenario", sorted(SCENARIOS.keys() - SLOW))
def test_charges_are_answers_after(scenario: str) -> None:
    command = [sys.executable, "-m", "bench.torture", "--size", "ci", scenario]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if "skipped:" in done.stdout:
        pytest.skip(done.stdout.partition("skipped: ")[2].splitlines()[0])
