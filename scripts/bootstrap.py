#!/usr/bin/env python3
"""Make .venv from uv.lock with nothing but a Python interpreter.

uv does the work; this only gets uv, at a pinned version: through pip where the interpreter has it, else by unpacking
the wheel it publishes. uv then finds an interpreter that the project supports, and installs exactly what
the lock file names.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import ssl
import stat
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path

UV_VERSION = "0.13.8"
ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tollseal" / "tools" / f"uv-{UV_VERSION}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--extra", action="append", default=[], help="extra of the project to install")
    extras = arguments.parse_args().extra
    uv = TOOLS / "bin" / "uv"
    if not uv.exists():
        print(f"fetching uv {UV_VERSION}", flush=True)
        if not (with_pip() or with_wheel()):
            print(f"uv {UV_VERSION} could not be fetched from PyPI: is it reachable?", file=sys.stderr)
            return 1
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(ROOT / ".venv")}
    environment.pop("VIRTUAL_ENV", None)
    command = [str(uv), "sync", "--frozen", "--inexact", *(f"--extra={extra}" for extra in extras)]
    if sys.version_info[:2] in ((3, 11), (3, 12), (3, 13)):
        command.append(f"--python={sys.executable}")
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def with_pip() -> bool:
    """Install uv with the interpreter's own pip; False when it has none."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(TOOLS), f"uv=={UV_VERSION}"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode == 0 and (TOOLS / "bin" / "uv").exists():
        return True
    shutil.rmtree(TOOLS, ignore_errors=True)
    return False


def with_wheel() -> bool:
    """Unpack uv from its wheel; False when PyPI has none for this machine."""
    context = ssl.create_default_context()
    with urllib.request.urlopen(f"https://pypi.org/pypi/uv/{UV_VERSION}/json", context=context, timeout=30) as answer:
        files = json.load(answer)["urls"]
    machine = platform.machine()
    libc = "musllinux" if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "") else "manylinux"
    system = {"Linux": libc, "Darwin": "macosx"}.get(platform.system(), "?")
    for file in files:
        name = file["filename"]
        if not (name.endswith(".whl") and system in name and machine in name):
            continue
        with urllib.request.urlopen(file["url"], context=context, timeout=120) as answer:  # noqa: S310 - from PyPI
            wheel = answer.read()
        if hashlib.sha256(wheel).hexdigest() != file["digests"]["sha256"]:
            continue
        (TOOLS / "bin").mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            program = archive.read(f"uv-{UV_VERSION}.data/scripts/uv")
        target = TOOLS / "bin" / "uv"
        target.write_bytes(program)
        target.chmod(target.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
