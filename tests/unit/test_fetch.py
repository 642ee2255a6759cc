"""Following a URI that a stranger put on the chain: what is refused, and what a hostile host can do."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from attestation.fetch import FetchError, FetchLimits, Resolve, data_content, data_uri, fetch
from attestation.tls import make_certificate, server_context

LIMITS = FetchLimits(max_bytes=1_000, seconds=5)
LOCAL = replace(LIMITS, allow_private=True)

Answer = Callable[[str], bytes | Awaitable[bytes]]


def at(*addresses: str) -> Resolve:
    """A name server that gives these addresses for every name."""

    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return resolve


def http(status: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def host(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """An HTTP host on this machine, and the heads of the requests it gets."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            heads.append(head)
            given = answer(head.split()[1])
            writer.write(given if isinstance(given, bytes) else await given)
            await writer.drain()
        except (asyncio.IncompleteReadError, UnicodeDecodeError, ConnectionError):
            pass  # what came was no request
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def refused(uri: str, words: str, limits: FetchLimits = LIMITS, resolve: Resolve | None = None) -> None:
    with pytest.raises(FetchError, match=words):
        await fetch(uri, limits, resolve=resolve or at("127.0.0.1"))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.3.4",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",  # noqa: S104 - refused
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
async def test_no_address_that_is_not_public_is_asked(address: str) -> None:
    await refused("https://agent.example/", "not on the public internet", resolve=at(address))


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    await refused("https://agent.example/", "not on the public internet", resolve=at("8.8.8.8", "10.0.0.1"))


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"])
async def test_where_clouds_keep_credentials_stays_refused_on_a_private_chain(address: str) -> None:
    await refused("http://agent.example/", "not on the public internet", LOCAL, at(address))


@pytest.mark.parametrize("literal", ["127.0.0.1", "[::1]", "2130706433", "0x7f000001", "127.1", "localhost"])
async def test_every_spelling_of_this_machine_is_refused_by_the_real_resolver(literal: str) -> None:
    with pytest.raises(FetchError, match=r"not on the public internet|no address|malformed"):
        await fetch(f"https://{literal}/", LIMITS)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://agent.example/", "only https and data URIs"),
        ("file:///etc/passwd", "only https and data URIs"),
        ("ipfs://bafy", "only https and data URIs"),
        ("gopher://agent.example/", "only https and data URIs"),
        ("", "only https and data URIs"),
        ("https://", "needs a host"),
        ("https:///path", "needs a host"),
        ("https://user:secret@agent.example/", "must not carry a user name"),
        ("https://agent.example/\x1b[31m", "characters that no URI has"),
        ("https://agent.example/a b", "characters that no URI has"),
        ("https://agent.example/\n", "characters that no URI has"),
        ("https://ägent.example/", "characters that no URI has"),
        ("https://agent.example:99999999/", "port is 99999999, which is none"),
        ("https://[::/", "malformed"),
        ("https://agent.example/" + "a" * 3_000, "at most 2048 are followed"),
    ],
)
async def test_what_is_no_https_uri_is_refused_in_words(uri: str, words: str) -> None:
    await refused(uri, words, resolve=at("8.8.8.8"))


async def test_a_document_arrives_whole() -> None:
    async with host(lambda _: http("200 OK", b'{"a":1}')) as (url, heads):
        assert await fetch(f"{url}/x?y=1#z", LOCAL) == b'{"a":1}'
    assert heads[0].startswith("GET /x?y=1 HTTP/1.1\r\n")


async def test_the_connection_goes_to_the_address_that_was_judged_and_names_the_host() -> None:
    asked: list[tuple[str, int]] = []

    async def resolve(name: str, port: int) -> list[str]:
        asked.append((name, port))
        return ["127.0.0.1"]

    async with host(lambda _: http("200 OK", b"here")) as (url, heads):
        port = int(url.rpartition(":")[2])
        assert await fetch(f"http://agent.example:{port}/", LOCAL, resolve=resolve) == b"here"
    assert asked == [("agent.example", port)]
    assert f"host: agent.example:{port}\r\n" in heads[0].lower()


@pytest.mark.parametrize("said", [True, False])
async def test_a_document_larger_than_the_limit_is_cut_off(said: bool) -> None:
    whole = http("200 OK", b"x" * 1_001)
    if not said:
        whole = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 1_001
    async with host(lambda _: whole) as (url, _):
        await refused(url, "larger than 1000 bytes", LOCAL)


async def test_a_host_that_never_answers_costs_the_time_limit_and_no_more() -> None:
    done = asyncio.Event()

    async def never() -> bytes:
        await done.wait()
        return b""

    async with host(lambda _: never()) as (url, _):
        await refused(url, "did not send the document within 0.2 s", replace(LOCAL, seconds=0.2))
        done.set()


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "206 Partial Content", "304 Not Modified"])
async def test_only_a_200_is_a_document(status: str) -> None:
    async with host(lambda _: http(status, b"x")) as (url, _):
        await refused(url, f"answered with status {status[:3]}", LOCAL)


async def test_a_compressed_document_is_not_unpacked() -> None:
    async with host(lambda _: http("200 OK", b"bomb", **{"content-encoding": "gzip"})) as (url, _):
        await refused(url, "compressed", LOCAL)


async def test_a_redirect_is_followed_and_judged_like_the_first_uri() -> None:
    async with host(lambda path: http("200 OK", b"b") if path == "/b" else http("302 Found", location="/b")) as (
        url,
        _,
    ):
        assert await fetch(f"{url}/a", LOCAL) == b"b"
    targets = [
        ("https://169.254.169.254/latest/meta-data", "not on the public internet"),
        ("file:///etc/passwd", "only https and http and data URIs"),
        ("data:,x", "only https and http and data URIs"),
        ("//user@agent.example/", "must not carry a user name"),
        ("", "redirects to nowhere"),
        ("http://[bad", "no URI"),
    ]
    for target, words in targets:
        async with host(lambda _, target=target: http("302 Found", location=target)) as (url, _):  # type: ignore[misc]
            with pytest.raises(FetchError, match=words):
                await fetch(url, LOCAL)


async def test_redirects_end() -> None:
    async with host(lambda _: http("307 Again", location="/")) as (url, heads):
        await refused(url, "redirects more than 3 times", LOCAL)
    assert len(heads) == 4


async def test_a_host_that_breaks_off_or_is_not_there_is_a_sentence() -> None:
    async with host(lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx") as (url, _):
        await refused(url, "broke off", LOCAL)
    await refused(url, "cannot be reached", LOCAL)

    async def unknown(name: str, port: int) -> list[str]:
        raise OSError

    await refused("https://agent.example/", "has no address", resolve=unknown)
    await refused("https://agent.example/", "has no address", resolve=at())


async def test_a_certificate_must_be_trusted_and_be_the_names() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(key, host="agent.example", now=int(time.time()))
    trusting = ssl.create_default_context(cadata=certificate)
    async with host(lambda _: http("200 OK", b"here"), tls=server_context(key, certificate)) as (url, heads):
        port = url.rpartition(":")[2]
        uri, resolve = f"https://agent.example:{port}/", at("127.0.0.1")
        assert await fetch(uri, LOCAL, tls=trusting, resolve=resolve) == b"here"
        await refused(uri, "cannot be reached: .*certificate verify failed", LOCAL)
        with pytest.raises(FetchError, match="Hostname mismatch"):
            await fetch(f"https://other.example:{port}/", LOCAL, tls=trusting, resolve=resolve)
    assert len(heads) == 1


@given(content=st.binary(max_size=1_000))
async def test_a_data_uri_gives_back_what_was_put_in(content: bytes) -> None:
    assert await fetch(data_uri(content), LIMITS) == content


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("data:,hello%20you", b"hello you"),
        ("DATA:application/json;charset=utf-8,{}", b"{}"),
        ("data:;BASE64,aGk=", b"hi"),
    ],
)
def test_data_uris_in_their_other_forms(uri: str, content: bytes) -> None:
    assert data_content(uri, max_bytes=100) == content


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data:nothing", "needs a comma"),
        ("data:,é", "ASCII only"),
        ("data:;base64,a", "not base64"),
        ("data:;base64,aG k=", "not base64"),
        ("data:," + "x" * 1_001, "more than 1000 bytes"),
        ("data:," + "x" * 100_000, "more than 1000 bytes"),
    ],
)
def test_a_data_uri_that_is_malformed_or_huge_is_refused(uri: str, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        data_content(uri, max_bytes=1_000)
