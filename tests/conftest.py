"""Fixtures that every layer of tests may use."""

from pathlib import Path

import pytest

pytest_plugins = ["tests.chain", "tests.models", "tests.ollama", "tests.postgres"]

EVIDENCE = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "attestation"


@pytest.fixture(scope="session")
def evidence_dir() -> Path:
    """Evidence captured on real hardware, which lies beside the project on some machines and never inside it."""
    if not EVIDENCE.is_dir():
        pytest.skip("no captured evidence beside the project")
    return EVIDENCE


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long bytes go by their argument's name: evidence is signed anew in every process, a test's name must not be."""
    return argname if isinstance(val, bytes) and len(val) > 16 else None
