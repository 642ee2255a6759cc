"""Chat requests: numbers stay what they were written as, and no body at all is more than a refusal."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.http.body import validated
from service.http.chat_request import ChatRequest, decimal_text
from service.http.problems import Problem
from tests.fuzz import changed

REQUEST: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": "Yes?", "refusal": None, "annotations": [], "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ],
    "max_completion_tokens": 5,
    "temperature": 0.25,
    "top_p": 0.5,
    "seed": 3,
    "stop": ["a", "b"],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "x", "strict": True, "schema": {"type": "object", "properties": {"a": {}}}},
    },
    "stream": True,
    "stream_options": {"include_usage": True},
    "metadata": {"a": "b"},
}


def parse(document: Any) -> ChatRequest:
    return validated(json.dumps(document).encode(), ChatRequest)


def test_everything_that_has_an_effect_is_taken_over() -> None:
    request = parse(REQUEST)
    assert [turn.to_json() for turn in request.turns()] == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    params = request.params(request.limit or 0)
    assert params.to_json() == {
        "max_tokens": 5,
        "output": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object", "properties": {"a": {}}}, "strict": True},
        },
        "seed": 3,
        "stop": ["a", "b"],
        "temperature": "0.25",
        "top_p": "0.5",
    }
    assert request.include_usage


def test_what_is_absent_has_a_value_that_never_changes() -> None:
    request = parse({"model": "m", "messages": [{"role": "user", "content": "Why?"}]})
    params = request.params(1)
    assert (params.temperature, params.seed, params.stop, params.top_p, params.output) == ("0", 0, (), None, None)
    assert (request.limit, request.stream, request.include_usage) == (None, None, False)


@pytest.mark.parametrize(
    ("written", "text"),
    [("0.7", "0.7"), ("0.70", "0.7"), ("7e-1", "0.7"), ("1", "1"), ("1.0", "1"), ("2", "2"), ("0", "0"), ("-0.0", "0")],
)
def test_a_temperature_is_the_decimal_that_was_written(written: str, text: str) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "?"}]})[:-1]
    params = validated(f'{body}, "temperature": {written}}}'.encode(), ChatRequest).params(1)
    assert params.temperature == text
    assert params.wire_temperature() == float(written)


@given(st.integers(0, 2000))
def test_every_temperature_that_is_accepted_is_one_that_models_take(thousandths: int) -> None:
    request = parse({"model": "m", "messages": [{"role": "user", "content": "?"}], "temperature": thousandths / 1000})
    assert float(request.params(1).temperature) == thousandths / 1000
    assert decimal_text(thousandths / 1000) == str(request.params(1).temperature)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(changed(REQUEST))
def test_any_body_is_understood_or_refused_with_the_field(document: Any) -> None:
    found: ChatRequest | Problem
    try:
        found = parse(document)
    except Problem as problem:
        found = problem
    if isinstance(found, Problem):
        assert found.status in (400, 422)
        assert found.body["field"]
    else:  # what was accepted can be asked of a model
        assert found.turns()
        found.params(found.limit or 1).to_json()
