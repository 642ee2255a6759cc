"""The build manifest: what is running here, as one JSON document whose hash the chain and every receipt carry.

It is computed at boot from what is on disk and loaded, and by anyone from a checkout. A program that hashes itself
proves nothing alone: the manifest counts because the image that computes it is measured by the TEE
(docs/threat-model.md).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attestation import encoding
from attestation.digest import file_sha256, jcs_digest
from attestation.errors import MalformedError, ManifestError

SCHEMA: Final = "tollseal.manifest/1"
PATH: Final = "/.well-known/tee-manifest.json"

_FIELDS: Final = {"schema", "source", "image_digest", "model", "prompts", "payment", "tee"}
_SOURCE_FIELDS: Final = {"commit", "lock_sha256", "files"}
_IGNORED_DIRECTORIES: Final = frozenset({"__pycache__", "node_modules"})


def hash_sources(packages: Mapping[str, Path], group_of: Callable[[str], str]) -> dict[str, dict[str, str]]:
    """The sha256 of every file of some packages, grouped.

    Args:
        packages: package name -> its directory.
        group_of: maps a path such as ``service/payment/ledger.py`` to its group.

    Returns:
        group -> path -> 64 hex characters. Byte code is left out: Python derives it from the sources.

    Raises:
        ManifestError: a file cannot be read.
    """
    groups: dict[str, dict[str, str]] = {}
    for name, directory in sorted(packages.items()):
        for file in sorted(directory.rglob("*")):
            if not file.is_file() or _IGNORED_DIRECTORIES & set(file.relative_to(directory).parts):
                continue
            path = f"{name}/{file.relative_to(directory).as_posix()}"
            try:
                groups.setdefault(group_of(path), {})[path] = file_sha256(file)
            except OSError as error:
                raise ManifestError(f"{path} cannot be hashed: {error.strerror}") from error
    return groups


def build_manifest(
    *,
    commit: str | None,
    lock_sha256: str | None,
    files: Mapping[str, Mapping[str, str]],
    image_digest: str | None,
    model: Mapping[str, Any],
    prompts: Mapping[str, str],
    payment: Mapping[str, Any],
    tee: str,
) -> dict[str, Any]:
    """A manifest from its parts; docs/formats.md gives the shape of each."""
    return {
        "schema": SCHEMA,
        "source": {"commit": commit, "lock_sha256": lock_sha256, "files": {k: dict(v) for k, v in files.items()}},
        "image_digest": image_digest,
        "model": dict(model),
        "prompts": dict(prompts),
        "payment": dict(payment),
        "tee": tee,
    }


def parse_manifest(value: Any) -> dict[str, Any]:
    """A manifest of this schema from its JSON document.

    Raises:
        MalformedError: another schema, a field is missing or unknown, or the source names no file.
    """
    document = encoding.as_object(value, "manifest")
    encoding.only(document, "manifest", _FIELDS)
    if document["schema"] != SCHEMA:
        raise MalformedError("manifest.schema", f"must be {SCHEMA}")
    for name in ("source", "model", "prompts", "payment"):
        encoding.as_object(document[name], f"manifest.{name}")
    _check_source(document["source"])
    return document


def _check_source(source: dict[str, Any]) -> None:
    """A manifest that names no file says nothing about what runs."""
    where = "manifest.source"
    encoding.only(source, where, _SOURCE_FIELDS)
    encoding.text(source["commit"], f"{where}.commit", nullable=True)
    if source["lock_sha256"] is not None:
        encoding.hex_bytes(source["lock_sha256"], f"{where}.lock_sha256", size=32)
    groups = encoding.as_object(source["files"], f"{where}.files")
    if not groups:
        raise MalformedError(f"{where}.files", "must name the files that the build is made of")
    for group, files in groups.items():
        if not encoding.as_object(files, f"{where}.files.{group}"):
            raise MalformedError(f"{where}.files.{group}", "must name at least one file")
        for path, sha256 in files.items():
            encoding.hex_bytes(sha256, f"{where}.files.{path}", size=32)


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """``sha256:<hex>`` over the RFC 8785 form."""
    return jcs_digest(manifest)


def differences(expected: Any, actual: Any, where: str = "") -> Iterator[str]:
    """One line per value that differs between two manifests, by path."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        for name in sorted(expected.keys() | actual.keys()):
            path = f"{where}.{name}" if where else name
            if name not in actual:
                yield f"- {path}"
            elif name not in expected:
                yield f"+ {path}"
            else:
                yield from differences(expected[name], actual[name], path)
    elif expected != actual:
        yield f"! {where}: expected {expected!r}, is {actual!r}"


def check_pinned(digest: str, pinned: str | None) -> None:
    """Refuse a build other than the pinned one; None pins nothing.

    Raises:
        ManifestError: the digests differ.
    """
    if pinned is not None and digest != pinned:
        raise ManifestError(
            f"the build manifest is {digest}, the pinned one is {pinned}",
            hint="`tollseal manifest --json` prints the current one; compare the two before you change the pin.",
        )
