"""Bytes that are made once and read by whoever asks: a streamed answer, from its beginning, by every reader."""

import asyncio
from collections.abc import AsyncIterator


class StreamBrokenError(Exception):
    """The answer broke off. What was sent is not the whole."""


class Broadcast:
    """One writer, any number of readers; each reads everything, however late it comes. For one event loop."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._ended = False
        self._broken = False
        self._more = asyncio.Event()

    def write(self, piece: bytes) -> None:
        """Pass on the next bytes."""
        self._pieces.append(piece)
        self._wake()

    def end(self) -> None:
        """There is nothing more to come."""
        self._ended = True
        self._wake()

    def break_off(self) -> None:
        """There is more, but it will not come: readers get a `StreamBrokenError` after what there is."""
        self._broken = True
        self.end()

    @property
    def written(self) -> bytes:
        """Everything so far."""
        return b"".join(self._pieces)

    async def read(self) -> AsyncIterator[bytes]:
        """All pieces, from the first one.

        Raises:
            StreamBrokenError: the writer broke off.
        """
        index = 0
        while True:
            more = self._more
            while index < len(self._pieces):
                yield self._pieces[index]
                index += 1
            if self._ended:
                break
            await more.wait()
        if self._broken:
            raise StreamBrokenError("the answer broke off")

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()
