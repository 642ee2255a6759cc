"""The outermost layer: every response leaves complete and signed, or as an empty 500.

A stream of events is the one kind of response that leaves before it is complete. Its head is signed, and its body is
bound by the receipt that follows (docs/formats.md, "Streamed answers").

It stands outside everything else, so that errors, 402s, unknown paths and crashes are signed like answers.
"""

import logging
import re
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attestation.errors import MalformedError
from attestation.http_signature import Exchange, is_stream, sign_response, sign_stream_head
from attestation.receipt import API_VERSION
from service.credentials import Credentials, Keyholder
from service.http.problems import Problem, internal_error
from service.http.state import CREDENTIALS

_log: Final = logging.getLogger(__name__)

_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


_Signed: TypeAlias = tuple[int, list[tuple[bytes, bytes]], bytes]


class SigningMiddleware:
    """Signs what the app answers (RFC 9421), with the headers that aci/1 section 5.2 asks for.

    Args:
        app: what answers.
        keyholder: has the keys. A response is signed under the credentials that the resource has chosen for it, else
            under the current ones.
        public_origin: the origin that buyers use, or None to take it from the request.
        clock: unix seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keyholder: Keyholder,
        public_origin: str | None,
        clock: Callable[[], int],
    ) -> None:
        self._app = app
        self._keyholder = keyholder
        self._origin = public_origin
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # Nothing here speaks WebSocket, and its frames could not be signed.
            await send({"type": "websocket.close", "code": 1003})
            return
        state: dict[str, Any] = {}
        scope = {**scope, "state": state}
        try:
            answer = await self._signed(scope, receive, send, state)
        except Exception as error:
            _log.critical("signing failed: %s", type(error).__name__)
            answer = 500, [(b"content-length", b"0")], b""
        if answer is None:  # a stream, which has left
            return
        status, headers, body = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _signed(self, scope: Scope, receive: Receive, send: Send, state: dict[str, Any]) -> "_Signed | None":
        """Status, signed headers and body; None when a stream has been sent."""
        try:
            url = request_url(scope, self._origin)
            response = _Response(
                send, lambda head: self._sign_head(url, scope["method"], head, self._credentials(state))
            )
            await self._answer(scope, receive, response)
            if response.streaming:
                return None
            signed = self._sign(url, scope["method"], response, self._credentials(state))
        except MalformedError:
            return await self._refusal(scope, receive, send)
        return response.status, signed, response.body

    async def _answer(self, scope: Scope, receive: Receive, response: "_Response") -> None:
        """What the app answers; a crash is an answer too, unless one has begun to leave."""
        # A HEAD is answered like the GET, and the server leaves the body out (RFC 9110 section 9.3.2).
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(inner, receive, response)
        except Exception as error:
            if response.streaming:
                # The server closes a connection whose response was not brought to its end: the caller sees a broken
                # stream, never a short one that looks whole.
                _log.warning("a stream broke off: %s", type(error).__name__)
                return
            response.headers, response.body = {}, b""  # what the framework says of a crash is dropped
            await internal_error(error).response()(scope, receive, response)

    async def _refusal(self, scope: Scope, receive: Receive, send: Send) -> "_Signed":
        """A signed answer to a request whose URL cannot be put in a signature."""
        problem = Problem(400, "malformed-target", "Malformed request", "The URL cannot be put in a signature.")
        response = _Response(send, lambda _: [])
        await problem.response()(scope, receive, response)
        url = f"{self._origin or 'http://invalid'}/"
        signed = self._sign(url, scope["method"], response, self._keyholder.current)
        return response.status, signed, response.body

    def _credentials(self, state: dict[str, Any]) -> Credentials:
        chosen: Credentials | None = state.get(CREDENTIALS)
        return chosen or self._keyholder.current

    def _sign(self, url: str, method: str, response: "_Response", under: Credentials) -> list[tuple[bytes, bytes]]:
        headers = _with_standing(response.headers, under)
        # What a HEAD's answer carries is nothing, and that is what its Content-Digest is over (RFC 9530 section 2).
        body = b"" if method == "HEAD" else response.body
        exchange = Exchange(method=method, url=url, status=response.status, headers=headers, body=body)
        headers.update(sign_response(exchange, under.keys, created=self._clock()))
        headers["content-length"] = str(len(response.body))
        return _raw(headers)

    def _sign_head(self, url: str, method: str, head: "_Response", under: Credentials) -> list[tuple[bytes, bytes]]:
        headers = _with_standing(head.headers, under)
        exchange = Exchange(method=method, url=url, status=head.status, headers=headers, body=b"")
        headers.update(sign_stream_head(exchange, under.keys, created=self._clock()))
        return _raw(headers)


def _with_standing(headers: dict[str, str], under: Credentials) -> dict[str, str]:
    return {
        **headers,
        "x-aci-version": API_VERSION,
        "x-aci-keyset-digest": under.identity.keyset.digest,
        "x-content-type-options": "nosniff",
    }


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def request_url(scope: MutableMapping[str, Any], public_origin: str | None) -> str:
    """The URL of a request as its sender wrote it: the origin by its Host header unless a public one is set.

    Raises:
        MalformedError: there is not exactly one Host, or it is none. With a slash or a question mark in it, an answer
            of one resource could be had signed as that of another.
    """
    origin = public_origin
    if origin is None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            raise MalformedError("host", "must be one host name or address, and a port where needed")
        origin = f"{scope['scheme']}://{hosts[0]}"
    else:
        parts = urlsplit(origin)
        origin = f"{parts.scheme}://{parts.netloc}"
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope["query_string"]
    target: bytes = path.partition(b"?")[0] + (b"?" + query if query else b"")
    return origin + target.decode("latin-1")


class _Response:
    """Collects one response; the events of a stream are passed on as they come, once its head has been signed."""

    def __init__(self, send: Send, sign_head: "Callable[[_Response], list[tuple[bytes, bytes]]]") -> None:
        self._send = send
        self._sign_head = sign_head
        self.status = 500
        self.headers: dict[str, str] = {}
        self.body = b""
        self.streaming = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self.streaming:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    async def _start(self, message: Message) -> None:
        self.status = message["status"]
        for name, value in message.get("headers", []):
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text
        if is_stream(self.headers):
            signed = self._sign_head(self)
            self.streaming = True
            await self._send({"type": "http.response.start", "status": self.status, "headers": signed})
