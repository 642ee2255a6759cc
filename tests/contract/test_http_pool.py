"""The connections to facilitators: reused while that is safe, bounded, and honest about what was sent."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from attestation.enclave.keyring import KeyRing
from service.payment import http_pool
from service.payment.http_pool import MAX_CONNECTIONS, HttpPool, HttpResponse, NoResponseError
from tests.wires import Wire, http, listening

LIMIT = 1_000


@asynccontextmanager
async def pool_at(wire: Wire, path: str = "") -> AsyncIterator[HttpPool]:
    async with listening(wire) as (url,):
        pool = HttpPool(url + path, headers={"x-key": "k"}, max_body_bytes=LIMIT)
        yield pool
        await pool.close()


async def ask(pool: HttpPool, path: str = "/verify", *, timeout_seconds: float = 0.5) -> HttpResponse:
    return await pool.request("POST", path, b"question", timeout_seconds=timeout_seconds)


async def refused(pool: HttpPool) -> NoResponseError:
    with pytest.raises(NoResponseError) as refusal:
        await ask(pool)
    return refusal.value


async def test_requests_share_a_connection_and_carry_the_headers() -> None:
    wire = Wire([http(b"answer")])
    async with pool_at(wire, "/base/") as pool:
        for _ in range(5):
            response = await ask(pool)
            assert (response.status, response.body) == (200, b"answer")
            assert response.headers[b"content-type"] == b"application/json"
    assert wire.connections == 1
    path, headers = wire.requests[0]
    assert (path, headers["x-key"], headers["content-length"]) == ("/base/verify", "k", "8")
    assert headers["host"] == wire.url.removeprefix("http://")


async def test_requests_at_the_same_time_have_a_connection_each_and_no_more_than_there_are_places() -> None:
    wire = Wire([http(b"answer")], pause=0.02)
    async with pool_at(wire) as pool:
        answers = await asyncio.gather(*(ask(pool, timeout_seconds=20) for _ in range(2 * MAX_CONNECTIONS)))
    assert {answer.body for answer in answers} == {b"answer"}
    assert wire.connections == MAX_CONNECTIONS


WHOLE: dict[str, list[bytes]] = {
    "in chunks": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"3\r\nans\r\n", b"3\r\nwer\r\n0\r\n\r\n"],
    "byte by byte": [bytes([byte]) for byte in http(b"answer")],
    "after a hint": [b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", http(b"answer")],
    "after leave to go on": [b"HTTP/1.1 100 Continue\r\n\r\n" + http(b"answer")],
}


@pytest.mark.parametrize("name", list(WHOLE))
async def test_an_answer_may_come_in_pieces(name: str) -> None:
    wire = Wire(WHOLE[name])
    async with pool_at(wire) as pool:
        for _ in range(2):
            assert (await ask(pool)).body == b"answer"
    assert wire.connections == 1


async def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    wire = Wire([b"HTTP/1.0 200 OK\r\n\r\n", b"ans", b"wer"], hang_up=True)
    async with pool_at(wire) as pool:
        for _ in range(2):
            assert (await ask(pool)).body == b"answer"
    assert wire.connections == 2


LAST: dict[str, list[bytes]] = {
    "says so": [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nanswer"],
    "an old version": [b"HTTP/1.0 200 OK\r\ncontent-length: 6\r\n\r\nanswer"],
    "a second answer": [http(b"answer") + http(b"other")],
    "garbage behind it": [http(b"answer") + b"garbage"],
}


@pytest.mark.parametrize("name", list(LAST))
async def test_a_connection_is_not_used_again_after_an_answer_that(name: str) -> None:
    wire = Wire(LAST[name])
    async with pool_at(wire) as pool:
        for _ in range(3):
            assert (await ask(pool)).body == b"answer"
    assert wire.connections == 3


async def test_what_comes_unasked_between_two_requests_is_no_answer_to_the_second() -> None:
    wire = Wire([http(b"answer"), http(b"other")], pause=0.05)
    async with pool_at(wire) as pool:
        for _ in range(3):
            assert (await ask(pool)).body == b"answer"
            await asyncio.sleep(0.15)
    assert wire.connections == 3


async def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire([http(b"answer")])
    async with pool_at(wire) as pool:
        await ask(pool)
        await ask(pool)
        assert wire.connections == 1
        monkeypatch.setattr(http_pool, "KEEPALIVE_SECONDS", 0.0)
        await ask(pool)
    assert wire.connections == 2


async def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    wire = Wire([http(b"answer")], hang_up=True)
    async with pool_at(wire) as pool:
        for _ in range(3):
            assert (await ask(pool)).body == b"answer"
            await asyncio.sleep(0.05)
    assert wire.connections == 3


async def test_whoever_stops_waiting_leaves_no_answer_for_the_next() -> None:
    slow = Wire([b"", http(b"late")], pause=0.1)
    async with pool_at(slow) as pool:
        impatient = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.05)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert (await ask(pool)).body == b"late"
    assert slow.connections == 2


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

BOUNDS: dict[str, list[bytes]] = {
    "a declared length": [http(b"x" * (LIMIT + 1))],
    "chunks": [CHUNKED, *[b"64\r\n" + b"x" * 100 + b"\r\n"] * 11],
    "tiny chunks": [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        *[b"1;" + b"e" * 3_000 + b"\r\nx\r\n"] * 9,
    ],
    "headers": [b"HTTP/1.1 200 OK\r\n", *[b"x: " + b"y" * 2_000 + b"\r\n"] * 10],
    "one header": [b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000],
    "hints": [b"HTTP/1.1 103 x\r\nlink: </x>\r\n\r\n" * 5_000],
}


@pytest.mark.parametrize("name", list(BOUNDS))
async def test_an_answer_is_bounded_in(name: str) -> None:
    async with pool_at(Wire(BOUNDS[name])) as pool:
        error = await refused(pool)
    assert error.sent
    assert "longer than 1000 bytes" in str(error)


async def test_no_connection_means_that_nothing_was_sent() -> None:
    pool = HttpPool("http://127.0.0.1:1", headers={}, max_body_bytes=LIMIT)
    error = await refused(pool)
    assert not error.sent
    assert "127.0.0.1" not in str(error), "a URL may hold an access key"
    await pool.close()


async def test_a_certificate_of_somebody_else_means_that_nothing_was_sent(tmp_path: Path) -> None:
    keys = KeyRing.generate()
    _, context = keys.tls_server(host="127.0.0.1", now=1_790_000_000)
    assert isinstance(context, ssl.SSLContext)
    wire = Wire([http(b"answer")], tls=context)
    async with pool_at(wire) as pool:
        error = await refused(pool)
    assert not error.sent
    assert wire.requests == []


async def test_a_place_that_does_not_become_free_means_that_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire([b""], pause=5)
    async with pool_at(wire) as pool:
        waiting = [asyncio.create_task(ask(pool, timeout_seconds=1.0)) for _ in range(MAX_CONNECTIONS)]
        await asyncio.sleep(0)
        error = await refused(pool)
        assert not error.sent
        assert "in use" in str(error)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, NoResponseError) and one.sent for one in outcomes)


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://me:pw@x", "https:///path"])
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="a server is named by"):
        HttpPool(url, headers={}, max_body_bytes=LIMIT)


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "\x00", "ключ"])
def test_a_header_that_would_become_two_is_refused_and_not_quoted(value: str) -> None:
    with pytest.raises(ValueError, match="the header x-key cannot be sent") as refusal:
        HttpPool("http://x", headers={"x-key": value}, max_body_bytes=LIMIT)
    assert value not in str(refusal.value)
