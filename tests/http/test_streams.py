"""Streamed answers: paid when the model has begun, on their way while it goes on, and covered to the last byte."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from attestation.digest import digest
from tests.http.conftest import Stack
from tests.http.world import DOCUMENT, PRICE, SUMMARIZE, distinct_body, offered, problem_of
from tests.payments import as_document, as_header, pay

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

CHAT = "/v1/chat/completions"
QUESTION: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]


class Pays(httpx.AsyncHTTPTransport):
    """Pays for whatever costs something, and otherwise leaves everything as it is."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key
        self.payment = ""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if response.status_code != 402:
            return response
        await response.aread()
        self.payment = as_header(as_document(pay(offered(response), key=self._key)))
        request.headers["payment-signature"] = self.payment
        return await super().handle_async_request(request)


@asynccontextmanager
async def buyer(stack: Stack) -> AsyncIterator[tuple[httpx.AsyncClient, Pays]]:
    transport = Pays(stack.caller.buyer_key)
    async with httpx.AsyncClient(transport=transport, base_url=stack.url, timeout=30) as http:
        yield http, transport


@asynccontextmanager
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with buyer(stack) as (http, _):
        taken: Any = http
        yield openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", http_client=taken, max_retries=0)


def events_of(body: bytes) -> list[Any]:
    """The JSON documents in a stream that ended as it should."""
    *events, last = [event for event in body.decode().split("\n\n") if event]
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def stream_body(**more: Any) -> bytes:
    return distinct_body(json.dumps(more))[:-1] + b', "stream": true}'


async def gather(response: httpx.Response, received: bytearray) -> None:
    async for chunk in response.aiter_bytes():
        received += chunk


async def receipt_of(stack: Stack, response: httpx.Response) -> Any:
    receipt = await stack.caller.get(f"/v1/aci/receipts/{response.headers['x-receipt-id']}")
    assert receipt.status_code == 200, receipt.text
    return receipt.json()


async def test_openais_client_reads_a_stream(stack: Stack) -> None:
    before = await stack.earned()
    async with client(stack) as ai:
        stream = await ai.chat.completions.create(
            model=stack.model.model, messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert await stack.earned() == before + PRICE
    *told, last = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert told[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == stack.model.text
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * 5 + ["stop"]
    assert [chunk.usage for chunk in told] == [None] * 6
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5


async def test_the_first_words_leave_while_the_model_writes_the_rest(stack: Stack) -> None:
    stack.model.hold_after = 2
    async with client(stack) as ai:
        stream = await ai.chat.completions.create(model=stack.model.model, messages=QUESTION, stream=True, seed=1)
        first, second = await anext(stream), await anext(stream)
        assert (first.choices[0].delta.content, second.choices[0].delta.content) == ("one", " two")
        assert stack.model.hold is not None
        assert not stack.model.hold.is_set()
        stack.model.hold.set()
        rest = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(rest) == " three four five"


@pytest.mark.parametrize("path", [CHAT, SUMMARIZE])
async def test_the_receipt_covers_every_byte_of_a_stream(stack: Stack, path: str) -> None:
    body = stream_body(path=path)
    if path == CHAT:
        body = json.dumps({"model": stack.model.model, "messages": QUESTION, "stream": True, "seed": 2}).encode()
    async with buyer(stack) as (http, pays):
        response = await http.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        receipt = await receipt_of(stack, response)
        again = await http.post(
            path, content=body, headers={"content-type": "application/json", "payment-signature": pays.payment}
        )
    events = {event["type"]: event for event in receipt["event_log"]}
    assert events["response.returned"] == {
        "type": "response.returned",
        "body_hash": digest(response.content),
        "complete": True,
    }
    assert events["request.forwarded"]["body_hash"] == digest(stack.model.bodies[-1])
    assert receipt["chat_id"] == events_of(response.content)[0]["id"]
    assert again.content == response.content, "the same payment gets the same answer"


async def test_a_streamed_summary_has_the_words_of_the_buffered_one(stack: Stack) -> None:
    stack.model.text = "Summary:\n1. Cracks in the quay.\n2. A vote\u2028comes in March 🦊.\n"
    buffered = (await stack.caller.buy(distinct_body("both ways"))).json()
    async with buyer(stack) as (http, _):
        request = {"document": f"{DOCUMENT} Reference both ways.", "stream": True}
        lines = []
        async with http.stream("POST", SUMMARIZE, json=request) as response:
            assert response.status_code == 200
            # As httpx splits lines, also where the standard does not.
            lines = [line async for line in response.aiter_lines() if line]
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    assert "".join(chunk["delta"] for chunk in chunks) == buffered["summary"]
    assert set(chunks[0]) == {"id", "object", "created", "model", "delta", "finish_reason"}
    assert {(chunk["object"], chunk["finish_reason"], chunk["model"]) for chunk in chunks} == {
        ("summary.chunk", None, stack.model.model)
    }
    assert (last["delta"], last["finish_reason"], last["usage"]) == ("", "stop", buffered["usage"])


@pytest.mark.parametrize("text", ["", " \n"])
async def test_a_stream_that_never_begins_costs_nothing(stack: Stack, text: str) -> None:
    before = await stack.earned()
    stack.model.text = text
    async with buyer(stack) as (http, _):
        response = await http.post(SUMMARIZE, json={"document": DOCUMENT, "stream": True, "max_words": 30})
    problem_of(response, 503, "inference-failed")
    assert await stack.earned() == before


async def test_a_server_that_dies_before_the_first_word_costs_nothing(stack: Stack) -> None:
    before = await stack.earned()
    stack.model.break_after = 0
    async with client(stack) as ai:
        with pytest.raises(openai.InternalServerError) as failed:
            await ai.chat.completions.create(model=stack.model.model, messages=QUESTION, stream=True, seed=3)
    assert failed.value.code == "inference-failed"
    assert await stack.earned() == before


async def test_a_broken_stream_says_so_and_is_bought_again_by_the_same_payment(stack: Stack) -> None:
    before = await stack.earned()
    stack.model.break_after = 2
    body = json.dumps({"model": stack.model.model, "messages": QUESTION, "stream": True, "seed": 4}).encode()
    headers = {"content-type": "application/json"}
    received = bytearray()
    async with buyer(stack) as (http, pays):
        request = http.build_request("POST", CHAT, content=body, headers=headers)
        response = await http.send(request, stream=True)
        with pytest.raises(httpx.RemoteProtocolError):
            await gather(response, received)
        assert b"two" in received
        assert b"[DONE]" not in received
        broken = {event["type"]: event for event in (await receipt_of(stack, response))["event_log"]}
        assert broken["response.returned"] == {
            "type": "response.returned",
            "body_hash": digest(bytes(received)),
            "complete": False,
        }
        stack.model.break_after = None
        again = await http.post(CHAT, content=body, headers={**headers, "payment-signature": pays.payment})
    assert again.status_code == 200
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(again.content)) == (
        stack.model.text
    )
    assert await stack.earned() == before + PRICE


async def test_the_place_is_free_when_a_stream_has_ended(stack: Stack) -> None:
    stack.model.hold_after = 1
    async with client(stack) as ai:
        stream = await ai.chat.completions.create(model=stack.model.model, messages=QUESTION, stream=True, seed=5)
        await anext(stream)
        assert stack.service.admission.depth().active == 1
        assert stack.model.hold is not None
        stack.model.hold.set()
        async for _ in stream:
            pass
    await stack.service.calls.drain()
    assert stack.service.admission.depth().active == 0
