"""What arrives on the socket that no client library would send: the answer is a signed one all the same."""

import asyncio
import socket
from urllib.parse import urlsplit

import pytest

from attestation.http_signature import Exchange
from service.server import MAX_HEADER_BYTES, listening
from tests.http.conftest import Stack
from tests.http.world import SUMMARIZE, check_response, request_body

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]


async def talk(stack: Stack, request: bytes) -> bytes:
    """What the service says to raw bytes, until it closes the connection or falls silent."""
    address = urlsplit(stack.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    received = bytearray()
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            await writer.drain()
            while chunk := await reader.read(65_536):
                received += chunk
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return bytes(received)


def parse(raw: bytes, *, method: str, url: str) -> Exchange:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Exchange(method=method, url=url, status=int(status.split()[1]), headers=headers, body=body)


async def exchange(stack: Stack, request: bytes, *, method: str = "GET", path: str = "/healthz") -> Exchange:
    found = parse(await talk(stack, request), method=method, url=stack.url + path)
    check_response(found, stack.caller.keyset, now=stack.caller.clock())
    return found


def host(stack: Stack) -> bytes:
    return urlsplit(stack.url).netloc.encode()


async def test_head_carries_no_body_and_a_signature_over_none(stack: Stack) -> None:
    request = b"HEAD /healthz HTTP/1.1\r\nHost: " + host(stack) + b"\r\nConnection: close\r\n\r\n"
    assert (await exchange(stack, request, method="HEAD")).body == b""


async def test_http_1_0_is_answered(stack: Stack) -> None:
    found = await exchange(stack, b"GET /healthz HTTP/1.0\r\nHost: " + host(stack) + b"\r\n\r\n")
    assert found.status == 200


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["exa mple"],
        ["[::1"],
        ["user:pw@summaries.example"],
        ["summaries.example/v1/aci/receipts/1?"],
        ["summaries.example#"],
        ["summaries.example?"],
        ["\xff\xfe"],
        ["one.example", "two.example"],
    ],
    ids=repr,
)
async def test_a_host_that_is_none_is_a_400(stack: Stack, hosts: list[str]) -> None:
    """With more than a host in it, an answer of one resource could be had signed as that of another."""
    lines = "".join(f"Host: {name}\r\n" for name in hosts)
    raw = await talk(stack, f"GET /healthz HTTP/1.0\r\n{lines}\r\n".encode("latin-1"))
    found = parse(raw, method="GET", url="http://invalid/")
    assert found.status == 400
    assert b"malformed-target" in found.body
    check_response(found, stack.caller.keyset, now=stack.caller.clock())


@pytest.mark.parametrize("name", ["summaries.example", "Summaries.Example:8080", "[::1]:8402", "192.0.2.7", "a_b-c.d"])
async def test_a_host_is_what_the_answer_is_signed_for(stack: Stack, name: str) -> None:
    raw = await talk(stack, f"GET /healthz HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
    found = parse(raw, method="GET", url=f"http://{name}/healthz")
    assert found.status == 200
    check_response(found, stack.caller.keyset, now=stack.caller.clock())


async def test_an_absolute_target_is_the_same_request(stack: Stack) -> None:
    request = b"GET " + stack.url.encode() + b"/healthz HTTP/1.1\r\nHost: " + host(stack)
    assert (await exchange(stack, request + b"\r\nConnection: close\r\n\r\n")).status == 200


@pytest.mark.parametrize("path", ["/healthz", SUMMARIZE, "/nowhere"])
async def test_an_offer_to_speak_websocket_is_passed_over(stack: Stack, path: str) -> None:
    """Frames could not be signed. A refusal by the server below us would not be signed either."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host(stack).decode()}\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    found = await exchange(stack, request.encode(), path=path)
    assert found.status == {"/healthz": 200, SUMMARIZE: 405, "/nowhere": 404}[path]


@pytest.mark.parametrize("shape", ["one header", "many headers", "the target"])
async def test_a_head_without_end_is_not_read_to_its_end(stack: Stack, shape: str) -> None:
    size = 64 * MAX_HEADER_BYTES
    if shape == "the target":
        request = b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: " + host(stack) + b"\r\n\r\n"
    elif shape == "one header":
        request = b"GET /healthz HTTP/1.1\r\nHost: " + host(stack) + b"\r\nX: " + b"a" * size + b"\r\n\r\n"
    else:
        lines = b"".join(b"X-%d: aaaaaaaaaaaaaaaaaaaaaaaa\r\n" % number for number in range(size // 32))
        request = b"GET /healthz HTTP/1.1\r\nHost: " + host(stack) + b"\r\n" + lines + b"\r\n"
    raw = await talk(stack, request)
    assert raw == b"" or parse(raw, method="GET", url=stack.url).status in (400, 414, 431)


async def test_a_body_that_ends_early_costs_nothing(stack: Stack) -> None:
    rows = len(stack.ledger.rows())
    payment = await stack.caller.payment()
    body = request_body()
    head = (
        f"POST {SUMMARIZE} HTTP/1.1\r\nHost: {host(stack).decode()}\r\nContent-Type: application/json\r\n"
        f"Payment-Signature: {payment}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = urlsplit(stack.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(head.encode() + body[:-1])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await stack.caller.get("/healthz")).status_code == 200
    assert len(stack.ledger.rows()) == rows


async def test_two_requests_on_one_connection_get_two_signed_answers(stack: Stack) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: " + host(stack) + b"\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: " + host(stack) + b"\r\nConnection: close\r\n\r\n"
    raw = await talk(stack, one + last)
    second = raw.index(b"HTTP/1.1", 1)
    for part, path in ((raw[:second], "/healthz"), (raw[second:], "/nowhere")):
        found = parse(part, method="GET", url=stack.url + path)
        check_response(found, stack.caller.keyset, now=stack.caller.clock())


async def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """It leaves in two writes. With Nagle's algorithm the second waits for the first one's, for 40 ms."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listening(0, exact=False) as listener:
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            no_delay = await accepted
            writer.close()
            await writer.wait_closed()
    assert no_delay != 0
