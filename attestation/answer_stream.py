"""Passing a streamed answer on while it arrives, and verifying it when it has ended."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import httpx

from attestation.buying import StreamBrokenError

MAX_STREAM_BYTES: Final = 16 << 20
"""Longest stream that is kept for its proof: far above the longest answer of a model."""

AGAIN: Final = "Send the same request again: it gets the whole answer for the same payment."


class AnswerStream(httpx.AsyncByteStream):
    """The body of a response whose bytes are worth nothing until the iteration has ended without an error.

    Args:
        sent: the response, of which only the head has been read.
        verify: is given the whole body, and raises when it is not proven.
    """

    def __init__(self, sent: httpx.Response, verify: Callable[[bytes], Awaitable[None]]) -> None:
        self._sent = sent
        self._verify = verify

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = bytearray()
        try:
            async for chunk in self._sent.aiter_raw():
                body += chunk
                if len(body) > MAX_STREAM_BYTES:
                    raise StreamBrokenError(f"the stream is longer than {MAX_STREAM_BYTES} bytes")
                yield chunk
        except httpx.TransportError as error:
            raise StreamBrokenError(
                f"the stream broke off after {len(body)} bytes ({type(error).__name__})", hint=AGAIN
            ) from error
        await self._verify(bytes(body))

    async def aclose(self) -> None:
        await self._sent.aclose()
