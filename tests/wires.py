"""Servers that break HTTP, for tests: they answer with given bytes, piece by piece, whatever HTTP says of them."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


def http(body: bytes = b"{}", *, status: str = "200 OK", length: int | None = None) -> bytes:
    """A response as it stands on the wire; `length` is what it says of its body when that is not true."""
    declared = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {declared}\r\n\r\n".encode() + body


@dataclass
class Wire:
    """A server that answers every request with the same bytes, piece by piece, whatever HTTP says of them."""

    pieces: list[bytes]
    pause: float = 0.0
    hang_up: bool = False
    first: list[bytes] | None = None
    """What the first request gets instead, before its connection is closed."""
    tls: ssl.SSLContext | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of each request."""
    url: str = ""
    connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().strip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append((first.split(" ")[1], headers))
                special = self.first if len(self.requests) == 1 else None
                for piece in self.pieces if special is None else special:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(self.pause)
                if self.hang_up or special is not None:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(*wires: Wire) -> AsyncIterator[list[str]]:
    """Run servers; yields their base URLs."""
    servers = [await asyncio.start_server(wire, "127.0.0.1", 0, ssl=wire.tls) for wire in wires]
    for wire, server in zip(wires, servers, strict=True):
        scheme = "http" if wire.tls is None else "https"
        wire.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield [wire.url for wire in wires]
    finally:
        for server in servers:
            server.close()
