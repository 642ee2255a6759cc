"""Chat completions: bought by OpenAI's own client, refused where they could not be whole."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from attestation.client import PURCHASE, PayingTransport, Purchase
from attestation.digest import digest
from attestation.policy import Policy
from service.http.chat import DEFAULT_MAX_TOKENS
from service.inference.backend import BackendRejected, TokenCount
from tests.http.bench import Bench, bench
from tests.http.conftest import Stack, buyer_of
from tests.http.fakes import STUB_MODEL
from tests.http.world import PRICE, offered, problem_of
from tests.models import pieces_of
from tests.payments import as_document, as_header, pay

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

CHAT = "/v1/chat/completions"
POLICY = Policy(allow_simulated=True)
QUESTION: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]


@asynccontextmanager
async def client(stack: Stack, bought: list[Purchase] | None = None) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client, which knows nothing of payments, over the transport that makes them."""

    async def keep(response: httpx.Response) -> None:
        if bought is not None and PURCHASE in response.extensions:
            bought.append(response.extensions[PURCHASE])

    transport = PayingTransport(buyer_of(stack, POLICY))
    async with httpx.AsyncClient(transport=transport, timeout=30, event_hooks={"response": [keep]}) as http:
        # It takes clients of httpx and of its successor, and its annotations say only the latter.
        taken: Any = http
        yield openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none", http_client=taken, max_retries=0)


def body_of(**changes: Any) -> bytes:
    return json.dumps({"model": STUB_MODEL.name, "messages": QUESTION, **changes}).encode()


async def ask(shop: Bench, body: bytes, payment: str | None = None) -> httpx.Response:
    headers = {"content-type": "application/json", **({} if payment is None else {"payment-signature": payment})}
    return await shop.caller.send("POST", CHAT, content=body, headers=headers)


async def buy(shop: Bench, body: bytes) -> httpx.Response:
    requirements = offered(await ask(shop, body))
    payment = as_header(as_document(pay(requirements, key=shop.caller.buyer_key, valid_before=1 << 40)))
    return await ask(shop, body, payment)


async def test_openais_client_buys_an_answer_with_its_whole_proof(stack: Stack) -> None:
    bought: list[Purchase] = []
    before = await stack.earned()
    async with client(stack, bought) as ai:
        answer = await ai.chat.completions.create(model=stack.model.model, messages=QUESTION)
    assert await stack.earned() == before + PRICE
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content == stack.model.text
    assert answer.object == "chat.completion"
    assert answer.model == stack.model.model
    assert abs(answer.created - stack.caller.clock()) < 60
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(pieces_of(stack.model.text))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint == stack.service.identity.manifest_digest

    (purchase,) = bought
    assert purchase.verdict.exit_code == 0
    receipt: Any = purchase.bundle.receipt
    assert (receipt["endpoint"], receipt["chat_id"]) == (CHAT, answer.id)
    events = {event["type"]: event for event in receipt["event_log"]}
    assert events["request.forwarded"]["body_hash"] == digest(stack.model.bodies[-1])
    completed = events["inference.completed"]
    assert completed["prompt_tokens"] == answer.usage.prompt_tokens
    assert completed["completion_tokens"] == answer.usage.completion_tokens
    assert (completed["finish_reason"], completed["calls"]) == ("stop", 1)


async def test_what_is_asked_for_reaches_the_model_exactly(stack: Stack) -> None:
    async with client(stack) as ai:
        await ai.chat.completions.create(
            model=stack.model.model,
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two?"}]},
                {"role": "assistant", "content": "Three."},
                {"role": "user", "content": "Four?"},
            ],
            max_completion_tokens=7,
            temperature=0.7,
            top_p=0.95,
            seed=11,
            stop=["\n\n", "END"],
        )
    assert json.loads(stack.model.bodies[-1]) == {
        "model": stack.model.model,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One\ntwo?"},
            {"role": "assistant", "content": "Three."},
            {"role": "user", "content": "Four?"},
        ],
        "max_tokens": 7,
        "temperature": 0.7,
        "top_p": 0.95,
        "seed": 11,
        "stop": ["\n\n", "END"],
        "stream": False,
    }


async def test_an_answers_message_can_be_sent_back_as_it_is(stack: Stack) -> None:
    async with client(stack) as ai:
        first = await ai.chat.completions.create(model=stack.model.model, messages=QUESTION, stop="four")
        message: Any = first.choices[0].message
        assert message.content == "one two three "
        again = await ai.chat.completions.create(
            model=stack.model.model, messages=[*QUESTION, message, {"role": "user", "content": "And?"}]
        )
    assert again.choices[0].finish_reason == "stop"
    sent = json.loads(stack.model.bodies[-1])["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "user"]
    assert sent[1]["content"] == message.content


async def test_an_answer_cut_at_max_tokens_says_so(stack: Stack) -> None:
    async with client(stack) as ai:
        answer = await ai.chat.completions.create(model=stack.model.model, messages=QUESTION, max_tokens=2)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("length", "one two")


async def test_openais_client_lists_the_model(stack: Stack) -> None:
    async with client(stack) as ai:
        (listed,) = [model async for model in ai.models.list()]
        found = await ai.models.retrieve(stack.model.model)
        assert listed.id == found.id == stack.model.model
        assert found.object == "model"
        assert found.model_dump()["weights_origin"] == "claimed"
        with pytest.raises(openai.NotFoundError) as missing:
            await ai.models.retrieve("gpt-5")
    assert missing.value.body == {
        "message": f"The model served here is {stack.model.model}.",
        "type": "not_found",
        "code": "model-not-found",
        "param": "model",
    }


async def test_refusals_are_the_clients_own_errors(stack: Stack) -> None:
    before = await stack.earned()
    async with client(stack) as ai:
        with pytest.raises(openai.NotFoundError):
            await ai.chat.completions.create(model="gpt-5", messages=QUESTION)
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await ai.chat.completions.create(model=stack.model.model, messages=QUESTION, n=2)
        assert (refused.value.param, refused.value.code) == ("n", "invalid-request")
    assert await stack.earned() == before


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("temprature", {"temprature": 0.5}),
        ("n", {"n": 2}),
        ("n", {"n": True}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("logprobs", {"logprobs": True}),
        ("logit_bias", {"logit_bias": {"50256": -100}}),
        ("presence_penalty", {"presence_penalty": 0.1}),
        ("frequency_penalty", {"frequency_penalty": -1}),
        ("store", {"store": True}),
        ("service_tier", {"service_tier": "flex"}),
        ("modalities.0", {"modalities": ["audio"]}),
        ("reasoning_effort", {"reasoning_effort": "low"}),
        ("temperature", {"temperature": 2.1}),
        ("temperature", {"temperature": 0.1234}),
        ("temperature", {"temperature": "0.5"}),
        ("top_p", {"top_p": 0}),
        ("top_p", {"top_p": 1.5}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 1 << 32}),
        ("max_tokens", {"max_tokens": 0}),
        ("body", {"max_tokens": 5, "max_completion_tokens": 6}),
        ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
        ("stop.0", {"stop": [""]}),
        ("stop.0", {"stop": "x" * 201}),
        ("stream", {"stream": "yes"}),
        ("body", {"stream_options": {"include_usage": True}}),
        ("stream_options.every", {"stream": True, "stream_options": {"every": 1}}),
        ("response_format", {"response_format": {"type": "xml"}}),
        ("response_format.json_schema.json_schema", {"response_format": {"type": "json_schema"}}),
        ("messages", {"messages": []}),
        ("messages", {"messages": "Hello"}),
        ("messages.0.role", {"messages": [{"role": "tool", "content": "x"}]}),
        ("messages.0.content", {"messages": [{"role": "user"}]}),
        ("messages.0.content", {"messages": [{"role": "user", "content": None}]}),
        ("messages.0.content", {"messages": [{"role": "user", "content": []}]}),
        ("messages.0.name", {"messages": [{"role": "user", "content": "x", "name": "Ann"}]}),
        ("body", {"messages": [*QUESTION, {"role": "assistant", "content": "Because"}]}),
        ("model", {"model": None}),
    ],
)
async def test_what_would_be_ignored_is_refused_by_name(ledger_path: Path, field: str, changes: dict[str, Any]) -> None:
    async with bench(ledger_path) as shop:
        problem = problem_of(await ask(shop, body_of(**changes)), 422, "invalid-request", field)
        assert problem["detail"].startswith(field)


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text"}, "text", 1])
async def test_only_text_is_understood(ledger_path: Path, part: object) -> None:
    async with bench(ledger_path) as shop:
        body = body_of(messages=[{"role": "user", "content": [{"type": "text", "text": "See:"}, part]}])
        response = await ask(shop, body)
        assert response.status_code == 422
        assert response.json()["field"].startswith("messages.0.content")


async def test_values_that_ask_for_nothing_are_accepted(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        nothing = {
            "n": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "logit_bias": {},
            "logprobs": False,
            "top_logprobs": None,
            "tools": [],
            "tool_choice": "none",
            "parallel_tool_calls": True,
            "modalities": ["text"],
            "service_tier": "auto",
            "store": False,
            "response_format": {"type": "text"},
            "stop": None,
            "stream": False,
            "stream_options": None,
            "temperature": 1,
            "top_p": 1,
            "user": "ann",
            "metadata": {"order": "7"},
            "max_tokens": 5,
            "max_completion_tokens": 5,
        }
        assert (await ask(shop, body_of(**nothing))).status_code == 402


async def test_a_conversation_that_does_not_fit_is_refused_before_its_price_is_named(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        prompt, context = 8, STUB_MODEL.context_size
        messages = [{"role": "user", "content": "word " * prompt}]
        fits = body_of(messages=messages, max_tokens=context - prompt)
        assert (await ask(shop, fits)).status_code == 402
        over = await ask(shop, body_of(messages=messages, max_tokens=context - prompt + 1))
        problem = problem_of(over, 422, "context-exceeded", "messages")
        assert (problem["prompt_tokens"], problem["max_tokens"], problem["limit"]) == (prompt, 8185, context)
        long = await ask(shop, body_of(messages=[{"role": "user", "content": "word " * context}]))
        assert problem_of(long, 422, "context-exceeded", "messages")["prompt_tokens"] == context
        assert shop.backend.completions == 0


@pytest.mark.parametrize(("words", "longest"), [(8, DEFAULT_MAX_TOKENS), (8_190, 2)])
async def test_without_a_limit_the_answer_has_a_fixed_one_or_what_is_left(
    ledger_path: Path, words: int, longest: int
) -> None:
    async with bench(ledger_path) as shop:
        answer = await buy(shop, body_of(messages=[{"role": "user", "content": "word " * words}]))
        assert answer.status_code == 200, answer.text
        assert shop.backend.asked[-1].max_tokens == longest


async def test_messages_that_the_model_has_no_form_for_cost_nothing(
    ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def count_tokens(_messages: object) -> TokenCount:
        raise BackendRejected("the template says no")

    async with bench(ledger_path) as shop:
        monkeypatch.setattr(shop.backend, "count_tokens", count_tokens)
        problem_of(await ask(shop, body_of()), 422, "messages-refused", "messages")


async def test_json_is_promised_only_by_a_server_that_is_known_to_keep_it(stack: Stack, ledger_path: Path) -> None:
    async with client(stack) as ai:
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await ai.chat.completions.create(
                model=stack.model.model, messages=QUESTION, response_format={"type": "json_object"}
            )
    assert refused.value.param == "response_format"
    async with bench(ledger_path) as shop:
        shop.backend.text, shop.backend.numbered = '{"colour": "blue"}', False
        schema = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
        format_ = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema, "strict": True}}
        answer = await buy(shop, body_of(response_format=format_))
        assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"colour": "blue"}
        output = shop.backend.asked[-1].output
        assert output is not None
        assert json.loads(output.schema or "") == schema


@pytest.mark.parametrize("text", ["", "not JSON", '{"half": '])
async def test_no_answer_is_sold_that_is_not_what_was_asked_for(ledger_path: Path, text: str) -> None:
    async with bench(ledger_path) as shop:
        shop.backend.text, shop.backend.numbered = text, False
        problem_of(await buy(shop, body_of(response_format={"type": "json_object"})), 503, "inference-failed")
        assert shop.ledger.states() == ["RELEASED"]
        assert "settle" not in shop.facilitator.calls


async def test_a_dangerous_schema_is_refused_by_its_word(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        schema = {"type": "string", "pattern": "(a+)+$"}
        format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        problem = (await ask(shop, body_of(response_format=format_))).json()
        assert problem["status"] == 422
        assert "schema.pattern" in problem["detail"]


async def test_the_same_payment_gets_the_same_answer(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        body = body_of()
        requirements = offered(await ask(shop, body))
        payment = as_header(as_document(pay(requirements, key=shop.caller.buyer_key, valid_before=1 << 40)))
        first = await ask(shop, body, payment)
        again = await ask(shop, body, payment)
        assert first.status_code == again.status_code == 200
        assert first.content == again.content
        assert shop.backend.completions == 1
        problem_of(await ask(shop, body_of(seed=5), payment), 409, "payment-used")


async def test_openais_client_may_ask_from_a_browser(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        wanted = "authorization,content-type,payment-signature,x-stainless-lang,x-stainless-retry-count"
        headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
        allowed = await shop.caller.send("OPTIONS", CHAT, headers={**headers, "access-control-request-headers": wanted})
    assert allowed.status_code == 200
    assert set(wanted.split(",")) <= {
        name.strip() for name in allowed.headers["access-control-allow-headers"].split(",")
    }


async def test_chat_can_be_switched_off(ledger_path: Path) -> None:
    async with bench(ledger_path, chat=False) as shop:
        problem_of(await ask(shop, body_of()), 404, "not-found")
        problem_of(await shop.caller.get("/v1/models"), 404, "not-found")


async def test_model_names_with_a_slash_are_found(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        shop.backend.identity = replace(STUB_MODEL, name="org/name:1b")
        for path in ("/v1/models/org/name:1b", "/v1/models/org%2Fname%3A1b"):
            assert (await shop.caller.get(path)).json()["id"] == "org/name:1b"


async def test_the_description_of_the_api_shows_both_ways_of_answering(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        document = (await shop.caller.get("/openapi.json")).json()
    for path in (CHAT, "/v1/summarize"):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
        assert {"400", "402", "409", "413", "415", "422", "503"} <= set(operation["responses"])
        assert "PAYMENT-REQUIRED" in operation["responses"]["402"]["headers"]
    assert "404" in document["paths"][CHAT]["post"]["responses"]
    text = json.dumps(document)
    defined = set(document["components"]["schemas"])
    referred = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert referred <= defined
    assert '"#/$defs' not in text


async def test_openais_client_reads_a_stream_over_the_paying_transport(stack: Stack) -> None:
    before = await stack.earned()
    async with client(stack) as ai:
        stream = await ai.chat.completions.create(model=stack.model.model, messages=QUESTION, stream=True, seed=21)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == stack.model.text
    assert await stack.earned() == before + PRICE
