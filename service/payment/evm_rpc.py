"""JSON-RPC to one EVM node: pooled connections, several questions in one request, answers that are bounded.

An answer can be one of three things: a result, a refusal by the node (`NodeRefusedError`), or nothing that can be used
(`ChainError`). The node's URL may hold an access key, so it appears in no message.
Source: JSON-RPC 2.0, section 6 (batch); Ethereum execution API.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import aiohttp
from pydantic_core import from_json, to_json

MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""Longest answer read from a node. The receipts of a full pipeline of batches have about 1 MB."""

MAX_BATCH_ITEMS: Final = 100
"""Questions in one request: what hosted nodes commonly allow."""

MAX_CONNECTIONS: Final = 16
"""Open connections to one node."""

_ATTEMPTS: Final = 2
_SECRET_CHARS: Final = 8
"""A part of the URL's path this long may be an access key."""

_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_BYTES: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}")

Call: TypeAlias = tuple[str, Sequence[Any]]
"""A method and its parameters."""


class ChainError(Exception):
    """The node cannot be reached, refused the question, or gave an answer that makes no sense."""


class NodeRefusedError(ChainError):
    """The node answered with an error.

    Attributes:
        refusal: the node's own words, at most 200 characters, without its URL.
        code: JSON-RPC error code, when there is one.
        data: what a contract reverted with; empty when it said nothing.
    """

    def __init__(self, method: str, refusal: str, code: int | None, data: bytes) -> None:
        super().__init__(f"{method}: the node refused: {refusal}")
        self.refusal = refusal
        self.code = code
        self.data = data

    @property
    def reverted(self) -> bool:
        """Whether the EVM refused, not the node."""
        words = self.refusal.lower()
        return self.code == 3 or any(word in words for word in ("revert", "out of gas", "opcode", "vm execution"))


class Node:
    """A connection to the node at `url` (HTTP or HTTPS)."""

    def __init__(self, url: str, *, timeout_seconds: float = 10.0) -> None:
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        parts = urlsplit(url)
        words = [*parts.path.split("/"), *re.split("[&=]", parts.query), parts.password or ""]
        self._secrets = [url, *(word for word in words if len(word) >= _SECRET_CHARS)]

    async def close(self) -> None:
        """Close pooled connections."""
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, *params: Any) -> Any:
        """The result of one question.

        Raises:
            NodeRefusedError: the node says no.
            ChainError: no usable answer.
        """
        answer = await self._post(method, _question(0, method, params))
        result = self._result(method, answer)
        if isinstance(result, NodeRefusedError):
            raise result
        return result

    async def batch(self, calls: Sequence[Call]) -> list[Any]:
        """The results of several questions, in their order; a refused one is its `NodeRefusedError`, not raised.

        Raises:
            ChainError: no usable answer.
        """
        results: list[Any] = []
        for start in range(0, len(calls), MAX_BATCH_ITEMS):
            results += await self._batch(calls[start : start + MAX_BATCH_ITEMS])
        return results

    async def _batch(self, calls: Sequence[Call]) -> list[Any]:
        what = calls[0][0] if len(calls) == 1 else f"{calls[0][0]} and {len(calls) - 1} more"
        answers = await self._post(what, [_question(index, *call) for index, call in enumerate(calls)])
        if isinstance(answers, dict) and "error" in answers:
            refusal = self._result(what, answers)
            raise refusal if isinstance(refusal, ChainError) else ChainError(f"{what}: the node refused")
        if not isinstance(answers, list):
            raise ChainError(f"{what}: the node answered with something that is not a list of answers")
        found: dict[int, Any] = {}
        for answer in answers:
            index = answer.get("id") if isinstance(answer, dict) else None
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(calls) or index in found:
                raise ChainError(f"{what}: the node answered a question that was not asked")
            found[index] = self._result(calls[index][0], answer)
        if len(found) != len(calls):
            raise ChainError(f"{what}: the node answered {len(found)} of {len(calls)} questions")
        return [found[index] for index in range(len(calls))]

    def _result(self, method: str, answer: Any) -> Any:
        """The result, or the refusal as a value."""
        if isinstance(answer, dict) and answer.get("error") is None and "result" in answer:
            return answer["result"]
        error = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(error, dict):
            raise ChainError(f"{method}: the node answered with something that is not JSON-RPC")
        code, data = error.get("code"), error.get("data")
        message = self._clean(str(error.get("message")))
        plain = isinstance(data, str) and _BYTES.fullmatch(data)
        reverted_with = bytes.fromhex(data[2:]) if plain and isinstance(data, str) else b""
        return NodeRefusedError(method, message, code if isinstance(code, int) else None, reverted_with)

    def _clean(self, message: str) -> str:
        for secret in self._secrets:
            message = message.replace(secret, "…")
        return readable(message)

    async def _post(self, what: str, body: Any) -> Any:
        content = to_json(body)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._exchange(what, content)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # Most likely the node closed a connection that had been idle. Every question here may be asked twice:
                # a transaction is the same transaction however often it arrives.
                if attempt == _ATTEMPTS or isinstance(error, aiohttp.ClientConnectorError):
                    raise ChainError(f"{what}: the node did not answer ({type(error).__name__})") from None
            except (TimeoutError, aiohttp.ClientError, OSError, UnicodeError) as error:
                raise ChainError(f"{what}: the node did not answer ({type(error).__name__})") from None
        raise AssertionError("unreachable: the last attempt raises or returns")

    async def _exchange(self, what: str, content: bytes) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"content-type": "application/json"},
            )
        answer = bytearray()
        async with self._session.post(self._url, data=content, allow_redirects=False) as response:
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > MAX_RESPONSE_BYTES:
                    raise ChainError(f"{what}: the node's answer is longer than {MAX_RESPONSE_BYTES} bytes")
        try:
            return from_json(bytes(answer))  # json.loads has no safe limit here, see authorization.py
        except ValueError:
            raise ChainError(
                f"{what}: the node answered with something that is not JSON (status {response.status})"
            ) from None


def quantity(value: Any) -> int:
    """A number as nodes write it: 0x and at most 64 hex digits.

    Raises:
        ChainError: it is something else, or a refusal.
    """
    _raise_refusal(value)
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise ChainError("the node answered with something that is not a number")
    return int(value, 16)


def hex_data(value: Any) -> bytes:
    """Bytes as nodes write them: 0x and an even number of hex digits.

    Raises:
        ChainError: it is something else, or a refusal.
    """
    _raise_refusal(value)
    if not isinstance(value, str) or not _BYTES.fullmatch(value):
        raise ChainError("the node answered with something that is not hex bytes")
    return bytes.fromhex(value[2:])


def hash_text(value: Any) -> str:
    """A 32-byte hash: 0x and 64 lower-case hex digits.

    Raises:
        ChainError: it is something else, or a refusal.
    """
    _raise_refusal(value)
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ChainError("the node answered with something that is not a hash")
    return value.lower()


def json_object(value: Any, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ChainError: it is something else, or a refusal; `what` names it.
    """
    _raise_refusal(value)
    if not isinstance(value, dict):
        raise ChainError(f"the node has no {what}")
    return value


def readable(text: str) -> str:
    """At most 200 printable characters of what a stranger wrote."""
    return "".join(char if char.isprintable() else " " for char in text)[:200]


def _question(index: int, method: str, params: Sequence[Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": index, "method": method, "params": list(params)}


def _raise_refusal(value: Any) -> None:
    if isinstance(value, NodeRefusedError):
        raise value
