"""`pip install .` without extras in an empty environment: all that a verifier needs, nothing that an operator needs."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Bought
from tests.e2e.stack import COMMAND_SECONDS, DOCUMENT, Stack, environment

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("attestation", "service", "pyproject.toml", "README.md", "LICENSE")
ABSENT = ("fastapi", "uvicorn", "ollama", "xllamacpp", "sqlalchemy", "pydantic_settings", "starlette", "pytest")
INSTALL_SECONDS = 280


@dataclass(frozen=True)
class Installed:
    """An environment of its own, and a directory away from the sources to run in."""

    home: Path
    away: Path

    def run(self, program: str, *arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.home / "bin" / program), *map(str, arguments)],
            cwd=self.away,
            env=environment(PYTHONPATH="", **settings),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of a copy of the sources, installed without extras."""
    directory = tmp_path_factory.mktemp("install")
    copy = directory / "copy"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    home, away = directory / "environment", directory / "away"
    away.mkdir()
    uv = Path(sys.executable).with_name("uv")
    if os.access(uv, os.X_OK):
        commands = [
            [str(uv), "venv", "--quiet", "--python", sys.executable, str(home)],
            [str(uv), "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), str(copy)],
        ]
    else:
        commands = [
            [sys.executable, "-m", "venv", str(home)],
            [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", str(copy)],
        ]
    for command in commands:
        subprocess.run(command, cwd=away, env=environment(), check=True, timeout=INSTALL_SECONDS, capture_output=True)
    return Installed(home, away)


def test_it_verifies_a_bundle(installed: Installed, bought: Bought) -> None:
    done = installed.run("tollseal", "verify", bought.path, "--allow-simulated")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("SIMULATED")


def test_it_verifies_against_the_chain(installed: Installed, bought: Bought, stack: Stack) -> None:
    done = installed.run("tollseal", "verify", bought.path, "--allow-simulated", "--rpc", stack.dev.rpc, "--json")
    assert done.returncode == 0, done.stderr
    status = {check["id"]: check["status"] for check in json.loads(done.stdout)["checks"]}
    assert status["registry.key"] == status["payment.onchain"] == "pass"


def test_it_buys(installed: Installed, stack: Stack, tmp_path: Path) -> None:
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT, encoding="utf-8")
    done = installed.run(
        "tollseal",
        *("summarize", document, "--url", stack.dev.url, "--rpc", stack.dev.rpc, "--max-words", "5", "--json"),
        *("--asset", f"eip155:{stack.dev.chain_id}:{stack.dev.token}", "--allow-simulated"),
        TOLLSEAL_BUYER_KEY=stack.dev.buyer_key,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "SIMULATED"


def test_what_an_operator_needs_is_absent(installed: Installed) -> None:
    looks = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    done = installed.run("python", "-c", looks, *ABSENT)
    assert done.returncode == 0
    assert done.stdout.split() == []


def test_everything_that_is_installed_can_be_imported(installed: Installed) -> None:
    walk = (
        "import importlib, pkgutil, attestation\n"
        "for module in pkgutil.walk_packages(attestation.__path__, 'attestation.'):\n"
        "    importlib.import_module(module.name)\n"
    )
    done = installed.run("python", "-W", "error::ImportWarning", "-c", walk)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["up", "models"])
def test_an_operators_command_says_which_extra_is_missing(installed: Installed, command: str) -> None:
    done = installed.run("tollseal", command)
    assert done.returncode == 1
    assert "pip install 'tollseal[service]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_works_and_lists_every_command(installed: Installed) -> None:
    done = installed.run("tollseal", "--help")
    assert done.returncode == 0
    assert {"verify", "summarize", "inspect", "up", "serve", "demo"} <= set(done.stdout.split())


def test_the_package_holds_no_tests_and_no_development_files(installed: Installed) -> None:
    [packages] = (installed.home / "lib").glob("python*/site-packages")
    names = {path.name for path in packages.iterdir()}
    assert {"attestation", "service"} <= names
    assert not {"tests", "bench", "contracts", "scripts"} & names
