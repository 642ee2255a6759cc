"""A stream is read event by event however it is cut into pieces, and a stream that is not whole is not one."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedError
from attestation.event_stream import EventReader, parse_event, parse_stream
from tests.purchases import stream_body

BODY = b': hello\n\ndata: {"a":1}\n\n: still there\ndata:{"b":\ndata: "\xc3\xa9"}\n\ndata: [DONE]\n\n'
DATA = ['{"a":1}', '{"b":\n"\N{LATIN SMALL LETTER E WITH ACUTE}"}', "[DONE]"]


@given(st.lists(st.integers(0, len(BODY)), max_size=6))
def test_events_are_the_same_however_the_bytes_arrive(cuts: list[int]) -> None:
    reader = EventReader()
    places = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[start:end] for start, end in pairwise(places)]
    assert [data for piece in pieces for data in reader.feed(piece)] == DATA
    reader.end()


def test_a_whole_stream_is_its_documents() -> None:
    assert parse_stream(BODY) == ({"a": 1}, {"b": "\N{LATIN SMALL LETTER E WITH ACUTE}"})
    assert [event["delta"] for event in parse_stream(stream_body("one", " two"))] == ["one", " two", ""]
    assert parse_stream(b"data: [DONE]\n\n") == ()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", r"must end with \[DONE\]"),
        (b'data: {"a":1}\n\n', r"must end with \[DONE\]"),
        (b"data: [DONE]\n\n: bye", "ends within an event"),
        (b"data: [DONE]\n", "ends within an event"),
        (b'data: [DONE]\n\ndata: {"a":1}\n\n', r"must end with \[DONE\]"),
        (b"data: 1\n\ndata: [DONE]\n\n", "must be a JSON object"),
        (b"data: {\n\ndata: [DONE]\n\n", "must be JSON"),
        (b"event: x\ndata: [DONE]\n\n", "only hold data and comments"),
        (b"data: \xff\n\ndata: [DONE]\n\n", "must be UTF-8"),
        (b"data: [DONE]\r\n\r\n", "ends within an event"),
    ],
)
def test_any_other_stream_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        parse_stream(body)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_stream_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_stream(data + b"x")


def test_an_event_is_one_json_object() -> None:
    assert parse_event('{"a":1}') == {"a": 1}
    with pytest.raises(MalformedError, match="stream event"):
        parse_event("[]")
