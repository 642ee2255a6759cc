"""Fetching what a URI found on the chain points at: a document of somebody who may be hostile, in a place they chose.

    https:   one GET, to an address of the public internet; every redirect is judged like the first URI
    data:    the document itself (RFC 2397), so that its content can never change
    http:    only where private addresses are allowed, which is for a chain on this machine

A name is resolved once, all its addresses are judged, and the connection goes to one that was judged: a name server
cannot answer the check with one address and the connection with another. What comes is bounded in size and time.
"""

import asyncio
import base64
import binascii
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import httpx

from attestation.errors import TollsealError

MAX_URI_LENGTH: Final = 2_048
"""Characters of an https: URI. A data: URI is bounded by what it holds."""
_DATA_OVERHEAD: Final = 1_024
"""Characters of a data: URI before its content: media type and parameters."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Gives the addresses of a host name, for a port."""


class FetchError(TollsealError):
    """A URI that must not be followed, or led to nothing usable. The message is a sentence and quotes no content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What a fetch may take.

    max_bytes: size of the document.
    seconds: for everything, redirects included.
    max_redirects: how many are followed.
    allow_private: also follow to loopback and private addresses and by http:, for a chain on this machine. Link-local
        addresses, where clouds keep credentials, stay refused.
    """

    max_bytes: int
    seconds: float = 15.0
    max_redirects: int = 3
    allow_private: bool = False


async def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of a host name, from the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def fetch(
    uri: str, limits: FetchLimits, *, tls: ssl.SSLContext | None = None, resolve: Resolve = resolve_host
) -> bytes:
    """The document behind an https: or data: URI.

    Args:
        uri: as the chain says it; nothing is assumed about it.
        limits: see there.
        tls: judges certificates; by default the system's certificate authorities do.
        resolve: looks up host names.

    Raises:
        FetchError: the URI is refused, leads to a place that is, or does not lead to a document within the limits.
    """
    if uri[:5].lower() == "data:":
        return data_content(uri, max_bytes=limits.max_bytes)
    try:
        async with asyncio.timeout(limits.seconds):
            return await _follow(uri, limits, GuardedTransport(limits, tls=tls, resolve=resolve))
    except TimeoutError as error:
        raise FetchError(f"{_host(uri)} did not send the document within {limits.seconds:g} s") from error


def data_uri(content: bytes, media_type: str = "application/json") -> str:
    """A data: URI (RFC 2397) that holds `content`."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def data_content(uri: str, *, max_bytes: int) -> bytes:
    """What a data: URI holds (RFC 2397).

    Raises:
        FetchError: it is not one, or holds more than `max_bytes`.
    """
    if len(uri) > 3 * max_bytes + _DATA_OVERHEAD:
        raise FetchError(f"the data: URI holds more than {max_bytes} bytes")
    head, comma, body = uri.partition(",")
    if not comma or not uri.isascii():
        raise FetchError("the data: URI is malformed: it needs a comma before its content, and ASCII only")
    content = unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        try:
            content = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise FetchError("the data: URI is malformed: its content is not base64") from error
    if len(content) > max_bytes:
        raise FetchError(f"the data: URI holds more than {max_bytes} bytes")
    return content


class GuardedTransport(httpx.AsyncBaseTransport):
    """Carries requests over HTTP to places that may be asked, and to no others; see the module. Follows no redirect.

    Args:
        limits: `max_bytes` bounds each answer, `seconds` each wait for the network.
        tls: judges certificates; by default the system's certificate authorities do.
        resolve: looks up host names.

    Raises `FetchError` instead of httpx's errors.
    """

    def __init__(
        self, limits: FetchLimits, *, tls: ssl.SSLContext | None = None, resolve: Resolve = resolve_host
    ) -> None:
        self._limits = limits
        self._tls = tls or ssl.create_default_context()
        self._resolve = resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = _judged(request.url, self._limits)
        address = await _address(url, self._limits, self._resolve)
        inner = httpx.Request(
            request.method,
            url.copy_with(host=address),
            headers=request.headers,  # with the name in Host
            stream=request.stream,
            # The connection goes to the judged address; the certificate must still be the name's.
            extensions={"sni_hostname": url.host, "timeout": httpx.Timeout(self._limits.seconds).as_dict()},
        )
        # One transport for one request: a kept connection would outlive the judgement of its address.
        transport = httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False)
        try:
            response = await transport.handle_async_request(inner)
        except httpx.TransportError as error:
            await transport.aclose()
            raise FetchError(f"{url.host} cannot be reached: {_why(error)}") from error
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Bounded(response, transport, url.host, self._limits.max_bytes),
            extensions=response.extensions,
        )


class _Bounded(httpx.AsyncByteStream):
    """The content of an answer, up to a number of bytes."""

    def __init__(
        self, response: httpx.Response, transport: httpx.AsyncBaseTransport, host: str, max_bytes: int
    ) -> None:
        self._response = response
        self._transport = transport
        self._host = host
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._response.aiter_raw():
                size += len(chunk)
                if size > self._max_bytes:
                    raise FetchError(f"the document at {self._host} is larger than {self._max_bytes} bytes")
                yield chunk
        except httpx.TransportError as error:
            raise FetchError(f"{self._host} broke off: {_why(error)}") from error

    async def aclose(self) -> None:
        await self._response.aclose()
        await self._transport.aclose()


async def _follow(uri: str, limits: FetchLimits, transport: GuardedTransport) -> bytes:
    for _ in range(limits.max_redirects + 1):
        request = httpx.Request("GET", _url(uri), headers={"accept": "*/*", "accept-encoding": "identity"})
        host = request.url.host
        response = await transport.handle_async_request(request)
        try:
            if response.status_code not in _REDIRECTS:
                return await _content(response, host)
            target = response.headers.get("location", "")
        finally:
            await response.aclose()
        if not target:
            raise FetchError(f"{host} redirects to nowhere")
        try:
            uri = urljoin(uri, target)
        except ValueError as error:
            raise FetchError(f"{host} redirects to something that is no URI") from error
    raise FetchError(f"{_host(uri)} redirects more than {limits.max_redirects} times")


def _url(uri: str) -> httpx.URL:
    """The URI of one step, when it is written as one."""
    if len(uri) > MAX_URI_LENGTH:
        raise FetchError(f"the URI has {len(uri)} characters, at most {MAX_URI_LENGTH} are followed")
    if not uri.isascii() or not uri.isprintable() or " " in uri:
        raise FetchError("the URI has characters that no URI has")
    try:
        return httpx.URL(uri).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError("the URI is malformed") from error


def _judged(url: httpx.URL, limits: FetchLimits) -> httpx.URL:
    """The URL, when it is of a kind that may be asked."""
    allowed = ("https", "http") if limits.allow_private else ("https",)
    if url.scheme not in allowed:
        named = " and ".join((*allowed, "data"))
        raise FetchError(f"only {named} URIs are followed, not {url.scheme[:20] or 'a bare path'}")
    if not url.host or url.userinfo:
        raise FetchError("the URI needs a host, and must not carry a user name or a password")
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise FetchError(f"the URI's port is {url.port}, which is none")
    return url


async def _address(url: httpx.URL, limits: FetchLimits, resolve: Resolve) -> str:
    """An address of the URL's host, after judging all of them."""
    try:
        found = await resolve(url.host, url.port or (443 if url.scheme == "https" else 80))
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    except (OSError, UnicodeError, ValueError) as error:
        raise FetchError(f"{url.host} has no address") from error
    if not addresses:
        raise FetchError(f"{url.host} has no address")
    for address in addresses:
        if not _may_ask(address, allow_private=limits.allow_private):
            raise FetchError(
                f"{url.host} is at {address}, which is not on the public internet: not followed",
                hint=None if address.is_link_local else "Private addresses can be allowed for a chain on this machine.",
            )
    return str(addresses[0])


def _may_ask(address: IPAddress, *, allow_private: bool) -> bool:
    inner = _inner(address)
    if inner is not None:
        return _may_ask(inner, allow_private=allow_private)
    if address.is_multicast or address.is_unspecified or address.is_link_local:
        return False
    return address.is_global or (allow_private and (address.is_private or address.is_loopback))


def _inner(address: IPAddress) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for, by mapping, 6to4, Teredo or NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


async def _content(response: httpx.Response, host: str) -> bytes:
    if response.status_code != 200:
        raise FetchError(f"{host} answered with status {response.status_code}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchError(f"{host} sent a compressed document, which was not asked for")
    return b"".join([chunk async for chunk in response.aiter_raw()])


def _why(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


def _host(uri: str) -> str:
    try:
        return urlsplit(uri).hostname or "the host"
    except ValueError:
        return "the host"
