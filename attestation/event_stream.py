"""Streams of server-sent events, as streamed answers come: one JSON document per event, and ``[DONE]`` at the end.

Source: HTML Living Standard, section 9.2 (event stream interpretation), of which answers use comments and `data` lines
only; the documents are those of OpenAI's streaming API.
"""

from collections.abc import Iterator
from typing import Any, Final

from attestation import encoding
from attestation.errors import MalformedError

DONE: Final = "[DONE]"
"""Data of the last event of a stream that is complete."""


class EventReader:
    """Takes a stream apart as it arrives. Nothing that it gives out has been verified."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """The data of every event that these bytes complete.

        Raises:
            MalformedError: not such a stream.
        """
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            yield from _data_of(event)

    def end(self) -> None:
        """Check that the stream did not end within an event.

        Raises:
            MalformedError: it did.
        """
        if self._rest:
            raise MalformedError("stream", "ends within an event")


def parse_stream(body: bytes) -> tuple[dict[str, Any], ...]:
    """The documents of a complete stream, from all of its bytes.

    Raises:
        MalformedError: not such a stream, or it does not end with ``[DONE]``.
    """
    reader = EventReader()
    data = list(reader.feed(body))
    reader.end()
    if data[-1:] != [DONE]:
        raise MalformedError("stream", f"must end with {DONE}")
    return tuple(parse_event(item) for item in data[:-1])


def parse_event(data: str) -> dict[str, Any]:
    """The JSON document of one event.

    Raises:
        MalformedError: not a JSON object.
    """
    return encoding.as_object(encoding.parse_json(data, "stream event"), "stream event")


def _data_of(event: bytes) -> Iterator[str]:
    try:
        lines = event.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise MalformedError("stream", "must be UTF-8") from error
    data = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line.startswith(":"):
            raise MalformedError("stream", "may only hold data and comments")
    if data:
        yield "\n".join(data)
