"""A facilitator that says yes at once, in a process of its own: what it costs must not hide what the sellers cost.

`/verify` and `/settle` answer every payment with success; no chain is behind it. It reads of a request only as much as
HTTP needs. Prints ``listening PORT`` and serves until it is terminated.
"""

import asyncio
import json
from typing import Final, cast

import uvloop

from bench.process import pin, serve_until_terminated

NETWORK: Final = "eip155:84532"
TRANSACTION: Final = "0x" + "5e" * 32

_ANSWERS: Final = {
    b"/verify": {"isValid": True},
    b"/settle": {"success": True, "transaction": TRANSACTION, "network": NETWORK},
    b"/supported": {
        "kinds": [{"x402Version": 2, "scheme": "exact", "network": NETWORK}],
        "extensions": [],
        "signers": {},
    },
}


def _response(status: str, document: object) -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


_RESPONSES: Final = {path: _response("200 OK", document) for path, document in _ANSWERS.items()}
_NOT_FOUND: Final = _response("404 Not Found", {"error": "not found"})


class _Connection(asyncio.Protocol):
    """One kept-alive connection; requests come one after the other."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end]).lower()
            _, found, rest = head.partition(b"content-length:")
            size = end + 4 + (int(rest.partition(b"\r\n")[0]) if found else 0)
            if len(self._buffer) < size:
                return
            path = head.split(b" ", 2)[1]
            del self._buffer[:size]
            assert self._transport is not None
            self._transport.write(_RESPONSES.get(path, _NOT_FOUND))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
    await serve_until_terminated()
    server.close()


if __name__ == "__main__":
    pin(1)
    uvloop.run(main())
