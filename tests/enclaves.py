"""TEEs that are not there: a configfs tree, two daemons and a device, as their sources and their own SDKs know them.

Each fake stands where the real thing begins (system calls, a Unix socket) and makes its evidence through a function of
the report data, so that a test can plug in evidence that is signed.
"""

import ctypes
import errno
import fcntl
import importlib
import json
import os
import re
import socketserver
import struct
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import cbor2
import pytest

Make = Callable[[bytes], bytes]
"""Report data -> evidence."""


def upstream(module: str, distribution: str) -> ModuleType:
    """An upstream SDK. Missing, it is a failure as soon as the project declares it, and a skip only before."""
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.split(r"[^A-Za-z0-9_-]", entry)[0] for entry in project["optional-dependencies"]["dev"]}
    if distribution in declared:
        return importlib.import_module(module)
    imported: ModuleType = pytest.importorskip(module)
    return imported


# Evidence without signatures, in the vendors' layouts


def tdx_quote(report_data: bytes, version: int = 4) -> bytes:
    """A TDX quote's header and TD report around the report data, then what stands for the signature."""
    header = struct.pack("<HHI", version, 2, 0x81).ljust(48, b"\0")
    descriptor = struct.pack("<HI", 2, 584) if version == 5 else b""
    return header + descriptor + b"\x11" * 520 + report_data + struct.pack("<I", 16) + b"\x22" * 16


def snp_report(report_data: bytes, *, vlek: bool = False) -> bytes:
    """A SEV-SNP report of version 3 around the report data."""
    report = bytearray(struct.pack("<I", 3).ljust(0x4A0, b"\x33"))
    report[0x48:0x4C] = struct.pack("<I", 1 << 2 if vlek else 0)
    report[0x50:0x90] = report_data
    return bytes(report)


def nitro_document(report_data: bytes) -> bytes:
    """A COSE_Sign1 around the report data, as the module makes it: without a tag."""
    payload = cbor2.dumps({"module_id": "i-0-enc0", "user_data": report_data, "nonce": None, "public_key": None})
    return cbor2.dumps([cbor2.dumps({1: -35}), {}, payload, b"\x44" * 96])


VCEK, VLEK, ASK, ARK = (
    "63da758d-e664-4564-adc5-f4b93be8accd",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae",
)


def certificate_table(certificates: dict[str, bytes]) -> bytes:
    """A GHCB certificate table: entries of GUID, offset and length, one of zeros, then the certificates."""
    offset = 24 * (len(certificates) + 1)
    head, data = b"", b""
    for guid, certificate in certificates.items():
        head += UUID(guid).bytes + struct.pack("<II", offset + len(data), len(certificate))
        data += certificate
    return head + bytes(24) + data


# configfs-tsm


@dataclass
class _Entry:
    inblob: bytes = b""
    privlevel: int = 0
    generation: int = 0
    outblob: bytes | None = None
    read_generation: int = -1


@dataclass
class _Open:
    entry: _Entry
    attribute: str
    writes: bytes = b""
    content: bytes | None = None
    position: int = 0


@dataclass
class FakeConfigfs:
    """/sys/kernel/config/tsm/report at the system calls, after drivers/virt/coco/guest/report.c and fs/configfs/file.c.

    mkdir makes an entry with its attributes, rmdir takes both away; a binary attribute is committed when it is closed,
    whatever becomes of it; a report is made when `outblob` is read and kept until the next write.
    """

    root: Path
    provider: str | None
    make: Make
    auxblob: bytes | None = None
    """None: the attribute is not there, as on kernels that hide it."""
    floor: int = 0
    failures: list[int] = field(default_factory=list)
    """Error numbers that the next reads of `outblob` answer with."""
    disturbances: int = 0
    """How many of the next reports another process disturbs by a write of its own."""
    levels: list[int] = field(default_factory=list)
    """The privilege levels that reports were made for."""
    entries: dict[str, _Entry] = field(default_factory=dict)
    reports: int = 0
    _open: dict[int, _Open] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _next: int = 1 << 20

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root.mkdir(parents=True)
        for name in ("mkdir", "rmdir", "open", "read", "write", "close"):
            monkeypatch.setattr(os, name, self._routed(name, getattr(os, name), getattr(self, f"_{name}_")))

    def _routed(self, name: str, real: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            if name in ("read", "write", "close"):
                ours = target in self._open
            else:
                ours = isinstance(target, str | Path) and self.root in Path(target).parents
            if not ours:
                return real(target, *args, **kwargs)
            with self._lock:
                return fake(target, *args)

        return call

    def _mkdir_(self, path: str | Path, *_: Any) -> None:
        if self.provider is None:
            raise _error(errno.ENXIO)
        if Path(path).name in self.entries:
            raise _error(errno.EEXIST)
        self.entries[Path(path).name] = _Entry()

    def _rmdir_(self, path: str | Path) -> None:
        if self.entries.pop(Path(path).name, None) is None:
            raise _error(errno.ENOENT)

    def _open_(self, path: str | Path, flags: int, *_: Any) -> int:
        path = Path(path)
        entry = self.entries.get(path.parent.name)
        attributes = {"inblob", "outblob", "generation", "provider"}
        attributes |= {"auxblob"} if self.auxblob is not None else set()
        attributes |= {"privlevel", "privlevel_floor"} if self.provider == "sev_guest" else set()
        if entry is None or path.name not in attributes:
            raise _error(errno.EACCES if flags & os.O_CREAT else errno.ENOENT)
        if (flags & os.O_ACCMODE == os.O_WRONLY) != (path.name in {"inblob", "privlevel"}):
            raise _error(errno.EACCES)
        self._next += 1
        self._open[self._next] = _Open(entry, path.name)
        return self._next

    def _write_(self, descriptor: int, data: bytes) -> int:
        file = self._open[descriptor]
        if file.attribute == "inblob" and len(file.writes) + len(data) > 64:
            raise _error(errno.EFBIG)
        if file.attribute == "privlevel":
            if not self.floor <= int(data) <= 3:
                raise _error(errno.EINVAL)
            file.entry.privlevel = int(data)
            file.entry.generation += 1
        file.writes += data
        return len(data)

    def _close_(self, descriptor: int) -> None:
        file = self._open.pop(descriptor)
        if file.attribute == "inblob":
            file.entry.inblob = file.writes
            file.entry.generation += 1

    def _read_(self, descriptor: int, size: int) -> bytes:
        file = self._open[descriptor]
        if file.content is None:
            file.content = self._content(file.entry, file.attribute)
        piece = file.content[file.position : file.position + min(size, 4096)]
        file.position += len(piece)
        return piece

    def _content(self, entry: _Entry, attribute: str) -> bytes:
        if attribute == "generation":
            return b"%d\n" % entry.generation
        if attribute == "provider":
            return f"{self.provider}\n".encode()
        if attribute == "privlevel_floor":
            return b"%d\n" % self.floor
        if not entry.inblob:
            raise _error(errno.EINVAL)
        if entry.read_generation != entry.generation:
            if self.failures:
                raise _error(self.failures.pop(0))
            if entry.privlevel < self.floor:
                raise _error(errno.EIO)
            self.reports += 1
            self.levels.append(entry.privlevel)
            entry.outblob = self.make(entry.inblob)
            entry.read_generation = entry.generation
        if self.disturbances:
            self.disturbances -= 1
            entry.inblob = b"\xff" * 64
            entry.generation += 1
        content = entry.outblob if attribute == "outblob" else self.auxblob
        assert content is not None
        return content


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


# Daemons on Unix sockets

Reply = tuple[int, bytes]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    answer: Callable[[str, str, bytes], Reply]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent about clients that left before they were answered."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status, answer = self.server.answer(self.command, self.path, body)
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def listening(path: Path, answer: Callable[[str, str, bytes], Reply]) -> Iterator[None]:
    """Serve HTTP on a Unix socket in threads, for clients of either kind, until the block ends."""
    server = _Server(str(path), _Handler)
    server.answer = answer
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        path.unlink()


@dataclass
class FakeDstack:
    """The dstack guest agent: guest-agent/rpc/proto/agent_rpc.proto and src/rpc_service.rs."""

    make: Make = tdx_quote
    app_compose: str = '{"manifest_version":2,"name":"tollseal","runner":"docker-compose"}'
    event_log: str = '[{"imr":3,"event_type":134217729,"digest":"","event":"app-id","event_payload":"aa"}]'
    app_id: str = "ab" * 20
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method -> fields of its answer that differ; a value of None leaves the field out."""
    replies: dict[str, Reply] = field(default_factory=dict)
    """Method -> an answer that replaces the real one."""
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def __call__(self, method: str, path: str, body: bytes) -> Reply:
        rpc = path.removeprefix("/")
        request = json.loads(body)
        self.requests.append((rpc, request))
        if rpc in self.replies:
            return self.replies[rpc]
        if method != "POST" or rpc not in {"GetQuote", "Info"}:
            return 404, b'{"error":"Service not found"}'
        answer = self._quote(bytes.fromhex(request["report_data"])) if rpc == "GetQuote" else self._info()
        answer |= self.overrides.get(rpc, {})
        return 200, json.dumps({name: value for name, value in answer.items() if value is not None}).encode()

    def _quote(self, report_data: bytes) -> dict[str, Any]:
        slot = report_data.ljust(64, b"\0")
        return {
            "quote": self.make(slot).hex(),
            "event_log": self.event_log,
            "report_data": slot.hex(),
            "vm_config": '{"cpu_count":1}',
        }

    def _info(self) -> dict[str, Any]:
        register = "00" * 48
        tcb_info = {
            **dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"), register),
            **dict.fromkeys(("mr_aggregated", "os_image_hash", "compose_hash", "device_id"), "00" * 32),
            "event_log": json.loads(self.event_log),
            "app_compose": self.app_compose,
        }
        return {
            "app_id": self.app_id,
            "instance_id": "cd" * 20,
            "app_cert": "",
            "tcb_info": json.dumps(tcb_info, indent=2),
            "app_name": "tollseal",
            "device_id": "00" * 32,
            "mr_aggregated": "00" * 32,
            "os_image_hash": "00" * 32,
            "key_provider_info": "",
            "compose_hash": "00" * 32,
            "vm_config": "{}",
            "cloud_vendor": "",
            "cloud_product": "",
        }


APP_ID = "rofl1qqn9xndja7e2pnxhttktmecvwzz0yqwxsquqyxdf"
APP_ID_BYTES = bytes.fromhex("0026534db2efb2a0ccd75aecbde70c7084f201c680")
RAK = b"\x5a" * 32


@dataclass
class FakeRoflAppd:
    """The ROFL app daemon and the chain behind it: rofl-appd/src/routes, runtime-sdk/src/modules/rofl/types.rs."""

    app_id: str = APP_ID
    metadata: dict[str, str] = field(default_factory=dict)
    chain: dict[str, str] = field(default_factory=dict)
    """This replica's metadata as it is registered."""
    blocks: int = 0
    """How many queries it takes until a change is on chain."""
    stuck: bool = False
    """No transaction comes through."""
    replies: dict[str, Reply] = field(default_factory=dict)
    registrations: int = 0
    _due: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, method: str, path: str, body: bytes) -> Reply:
        with self._lock:
            if path in self.replies:
                return self.replies[path]
            match method, path:
                case "GET", "/rofl/v1/app/id":
                    return 200, self.app_id.encode()
                case "GET", "/rofl/v1/metadata":
                    return 200, json.dumps(self.metadata).encode()
                case "POST", "/rofl/v1/metadata":
                    return self._set(json.loads(body))
                case "PUT", "/rofl/v1/metadata":
                    return self._set({**self.metadata, **json.loads(body)})
                case "POST", "/rofl/v1/query":
                    request = json.loads(body)
                    return self._query(request["method"], cbor2.loads(bytes.fromhex(request["args"])))
            return 404, b"not found"

    def _set(self, metadata: dict[str, str]) -> Reply:
        if len(metadata) > 54 or not all(isinstance(value, str) for value in metadata.values()):
            return 400, b"invalid argument"
        if metadata != self.metadata:
            self.metadata, self._due = metadata, self.blocks
            self.registrations += 1
        return 200, b""

    def _query(self, method: str, args: Any) -> Reply:
        if method != "rofl.AppInstances" or args != {"id": APP_ID_BYTES}:
            return 500, b"Query failed"
        if not self.stuck and self._due <= 0:
            self.chain = {f"net.oasis.app.{name}": value for name, value in self.metadata.items()}
        self._due -= 1
        stranger = {"app": APP_ID_BYTES, "node_id": b"\x01" * 32, "rak": b"\x02" * 32, "rek": bytes(32)}
        ours = {"app": APP_ID_BYTES, "node_id": b"\x03" * 32, "rak": RAK, "rek": bytes(32), "metadata": self.chain}
        listed = [{**one, "expiration": 40_002, "extra_keys": []} for one in (stranger, ours)]
        return 200, json.dumps({"data": cbor2.dumps(listed).hex()}).encode()


# /dev/nsm


class _Vector(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Raw(ctypes.Structure):
    _fields_ = (("request", _Vector), ("response", _Vector))


@dataclass
class FakeNsm:
    """The ioctl of the Nitro Secure Module, after drivers/misc/nsm.c: reads the request out of the caller's memory, and
    writes the answer into it, cut to the space that the caller gave."""

    device: Path
    make: Make = nitro_document
    answer: bytes | None = None
    """The answer to everything; None: the real one."""
    requests: list[Any] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device.touch()
        real = fcntl.ioctl
        inode = self.device.stat().st_ino

        def ioctl(file: Any, request: int, argument: Any = 0, *rest: Any) -> Any:
            descriptor = file if isinstance(file, int) else file.fileno()
            if os.fstat(descriptor).st_ino != inode:
                return real(file, request, argument, *rest)
            if request != 0xC0200A00:
                raise _error(errno.EINVAL)
            return self._raw(_Raw.from_buffer(argument))

        monkeypatch.setattr(fcntl, "ioctl", ioctl)

    def _raw(self, message: _Raw) -> int:
        if message.request.length > 0x1000:
            raise _error(errno.EMSGSIZE)
        answer = self._ask(cbor2.loads(ctypes.string_at(message.request.address, message.request.length)))
        message.response.length = min(message.response.length, len(answer))
        ctypes.memmove(message.response.address, answer, message.response.length)
        return 0

    def _ask(self, request: Any) -> bytes:
        self.requests.append(request)
        if self.answer is not None:
            return self.answer
        if request == "GetRandom":
            return cbor2.dumps({"GetRandom": {"random": os.urandom(256)}})
        wanted = request["Attestation"]
        if wanted["user_data"] is not None and len(wanted["user_data"]) > 512:
            return cbor2.dumps({"Error": "InputTooLarge"})
        return cbor2.dumps({"Attestation": {"document": self.make(wanted["user_data"])}})
