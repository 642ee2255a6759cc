"""What every backend promises, whatever computes behind it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace

import pytest

from attestation.digest import jcs
from service.inference.backend import (
    Backend,
    BackendTimeout,
    BackendUnavailable,
    Completion,
    ContextExceeded,
    Delta,
    GenerationParams,
    JsonOutput,
    Message,
    Timeouts,
)
from service.inference.embedded import EmbeddedBackend
from service.inference.ollama import OllamaBackend
from service.inference.openai import OpenAIBackend
from service.inference.weights import VerifiedWeights
from tests.models import THREADS, FakeServer, fake_ollama, fake_openai, served
from tests.ollama import MODEL as REAL_MODEL
from tests.ollama import RealOllama

CONTEXT = 1024
QUESTION = (Message("system", "You are brief."), Message("user", "Name three colours of the sky, please."))


@dataclass
class Subject:
    backend: Backend
    exact: bool
    server: FakeServer | None
    """The fake behind it; None where an engine computes."""
    model: str
    context: int = CONTEXT
    patience: float = 5
    """Seconds within which it is free again; an engine may finish its batch of prompt tokens first."""


@pytest.fixture(params=["embedded", "ollama-real", "ollama", "openai-llama-server", "openai-vllm", "openai-none"])
async def subject(request: pytest.FixtureRequest, smollm2_weights: VerifiedWeights) -> AsyncIterator[Subject]:
    kind = request.param
    if kind == "ollama-real":
        real: RealOllama = request.getfixturevalue("real_ollama")
        # Its counts are estimated, so that the longest prompt here needs more room; another size would load anew.
        opened = await OllamaBackend.open(
            f"ollama:{real.url}#{REAL_MODEL}",
            real.url,
            REAL_MODEL,
            context_size=4096,
            timeouts=Timeouts(60),
            models_dir=real.models_dir,
        )
        yield Subject(opened, exact=False, server=None, model=REAL_MODEL, context=4096, patience=40)
        await opened.close()
        return
    if kind == "embedded":
        backend = await EmbeddedBackend.open(
            smollm2_weights, threads=THREADS, timeouts=Timeouts(30), context_size=CONTEXT
        )
        yield Subject(backend, exact=True, server=None, model="smollm2-135m")
        await backend.close()
        return
    server = FakeServer()
    if kind == "ollama":
        async with served(fake_ollama(server, hashlib.sha256(b"weights").hexdigest())) as url:
            ollama = await OllamaBackend.open(
                f"ollama:{url}#{server.model}", url, server.model, context_size=CONTEXT, timeouts=Timeouts(30)
            )
            yield Subject(ollama, exact=False, server=server, model=server.model)
            await ollama.close()
        return
    counting = kind.removeprefix("openai-")
    async with served(fake_openai(server, counting)) as url:
        openai = await OpenAIBackend.open(
            f"openai:{url}/v1#{server.model}", f"{url}/v1", server.model, context_size=CONTEXT, timeouts=Timeouts(30)
        )
        yield Subject(openai, exact=counting != "none", server=server, model=server.model)
        await openai.close()


async def test_the_identity_names_model_and_context(subject: Subject) -> None:
    identity = subject.backend.identity
    assert identity.name == subject.model
    assert identity.context_size == subject.context
    assert identity.weights_origin == ("measured" if subject.server is None else "claimed")
    assert identity.name in subject.backend.uri
    jcs(identity.to_json())


async def test_the_count_before_agrees_with_the_count_after(subject: Subject) -> None:
    count = await subject.backend.count_tokens(QUESTION)
    completion = await subject.backend.complete(QUESTION, GenerationParams(max_tokens=8))
    assert count.at_least <= completion.prompt_tokens <= count.value
    assert count.exact is subject.exact
    assert 0 < completion.completion_tokens <= 8


@pytest.mark.parametrize(
    "text", ["", "naïve café — “quoted”", "漢字かな交じり文 🦊", "<|im_end|>", "tab\tand\nnewline", "a" * 500]
)
async def test_counts_hold_for_any_text(subject: Subject, text: str) -> None:
    messages = [Message("user", text)]
    count = await subject.backend.count_tokens(messages)
    completion = await subject.backend.complete(messages, GenerationParams(max_tokens=1))
    assert count.at_least <= completion.prompt_tokens <= count.value


async def test_an_answer_cut_at_max_tokens_says_so(subject: Subject) -> None:
    completion = await subject.backend.complete(QUESTION, GenerationParams(max_tokens=2))
    assert (completion.finish_reason, completion.completion_tokens) == ("length", 2)


async def test_forwarded_is_the_canonical_request_that_was_sent(subject: Subject) -> None:
    params = GenerationParams(max_tokens=3, temperature="0.5", seed=7, stop=("zzz",))
    completion = await subject.backend.complete(QUESTION, params)
    assert b"Name three colours of the sky, please." in completion.forwarded
    assert b"zzz" in completion.forwarded
    if subject.server is not None:
        assert subject.server.bodies == [completion.forwarded]
    again = await subject.backend.complete(QUESTION, params)
    assert again.forwarded == completion.forwarded


async def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_computed(subject: Subject) -> None:
    with pytest.raises(ContextExceeded) as refused:
        await subject.backend.complete([Message("user", "word " * 5000)], GenerationParams(max_tokens=16))
    assert refused.value.limit == subject.context
    assert refused.value.needed >= 5016
    assert subject.server is None or subject.server.bodies == []


async def test_the_answer_counts_towards_the_context(subject: Subject) -> None:
    count = await subject.backend.count_tokens(QUESTION)
    room = subject.context - count.value
    with pytest.raises(ContextExceeded) as refused:
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=room + 1))
    assert refused.value.needed == subject.context + 1
    await subject.backend.complete(QUESTION, GenerationParams(max_tokens=min(room, 600), stop=("e", "o", "a")))


async def test_a_caller_who_leaves_frees_the_backend(subject: Subject) -> None:
    if subject.server is not None:
        subject.server.hold = asyncio.Event()
    # The embedded engine needs seconds for this one.
    long = [Message("user", "Tell the whole story of the fox, in every detail. " * 60)]
    if subject.server is not None and not subject.exact:
        long = list(QUESTION)
    call = asyncio.create_task(subject.backend.complete(long, GenerationParams(max_tokens=128)))
    if subject.server is not None:
        await asyncio.wait_for(subject.server.started.wait(), 5)
    else:
        await asyncio.wait([call], timeout=0.3)
        assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    if subject.server is not None:
        await asyncio.wait_for(subject.server.gone.wait(), 5)
        subject.server.hold = None
    async with asyncio.timeout(subject.patience):
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=1))


async def test_no_answer_in_time_is_a_timeout(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    if subject.server is not None:
        subject.server.hold = asyncio.Event()
    monkeypatch.setattr(subject.backend, "_timeouts", Timeouts(0.05))
    with pytest.raises(BackendTimeout):
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=400))


async def test_a_streamed_answer_is_the_buffered_one_in_pieces(subject: Subject) -> None:
    params = GenerationParams(max_tokens=24, seed=1)
    whole = await subject.backend.complete(QUESTION, params)
    *deltas, last = [piece async for piece in subject.backend.stream(QUESTION, params)]
    texts = [delta.text for delta in deltas if isinstance(delta, Delta)]
    assert len(texts) == len(deltas) > 1
    assert all(texts)
    assert isinstance(last, Completion)
    assert "".join(texts) == last.text == whole.text
    assert replace(last, forwarded=b"") == replace(whole, forwarded=b"")
    assert json.loads(last.forwarded)["stream"] is True


async def test_no_piece_ends_within_a_character(subject: Subject) -> None:
    if subject.server is not None:
        subject.server.text = "🦊🦊 naïve\u2028漢字 👩\u200d🚀"
    # The small model writes foxes when it is asked about foxes; each takes it three tokens.
    question = [Message("user", "Say hello with an emoji: 🦊")]
    pieces = [piece async for piece in subject.backend.stream(question, GenerationParams(max_tokens=24))]
    texts = [piece.text for piece in pieces if isinstance(piece, Delta)]
    assert subject.model == REAL_MODEL or any("🦊" in text for text in texts)
    assert "\ufffd" not in "".join(texts)
    whole = pieces[-1]
    assert isinstance(whole, Completion)
    assert subject.server is None or whole.text == subject.server.text


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_text_ends_the_answer_and_is_not_in_it(subject: Subject, streamed: bool) -> None:
    whole = await subject.backend.complete(QUESTION, GenerationParams(max_tokens=24))
    # From the middle of one token to that of another: it has to be held back until it is known.
    middle = len(whole.text) // 2
    stop = whole.text[middle - 3 : middle + 3]
    params = GenerationParams(max_tokens=24, stop=("no such text", stop))
    if streamed:
        *deltas, last = [piece async for piece in subject.backend.stream(QUESTION, params)]
        assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == whole.text.partition(stop)[0]
    else:
        last = await subject.backend.complete(QUESTION, params)
    assert isinstance(last, Completion)
    assert (last.text, last.finish_reason) == (whole.text.partition(stop)[0], "stop")


async def test_a_stream_cut_at_max_tokens_says_so(subject: Subject) -> None:
    *_, last = [piece async for piece in subject.backend.stream(QUESTION, GenerationParams(max_tokens=2))]
    assert isinstance(last, Completion)
    assert (last.finish_reason, last.completion_tokens) == ("length", 2)


async def test_a_prompt_that_does_not_fit_begins_no_stream(subject: Subject) -> None:
    with pytest.raises(ContextExceeded):
        await anext(subject.backend.stream([Message("user", "word " * 5000)], GenerationParams(max_tokens=16)))
    assert subject.server is None or subject.server.bodies == []


@pytest.mark.parametrize("way", ["close", "cancel"])
async def test_a_reader_who_leaves_a_stream_frees_the_backend(subject: Subject, way: str) -> None:
    if subject.server is not None:
        subject.server.hold_after = 1
    begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(subject.backend.stream(QUESTION, GenerationParams(max_tokens=800))) as pieces:
            async for _ in pieces:
                begun.set()
                if way == "close":
                    return
                await asyncio.Event().wait()

    reader = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), 20)
    if way == "cancel":
        reader.cancel()
    await asyncio.wait([reader])
    if subject.server is not None:
        await asyncio.wait_for(subject.server.gone.wait(), 5)
        subject.server.hold = subject.server.hold_after = None
    # 800 tokens take the engine many times as long as this.
    async with asyncio.timeout(subject.patience / 2):
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=1))


async def test_a_reader_who_leaves_before_the_first_token_frees_the_backend(subject: Subject) -> None:
    if subject.server is not None:
        subject.server.hold_after = 0
    story = "Tell the whole story of the fox, in every detail. " * (60 if subject.server is None else 1)
    stream = subject.backend.stream([Message("user", story)], GenerationParams(max_tokens=128))
    first = asyncio.ensure_future(anext(stream))
    await asyncio.wait([first], timeout=0.3)
    assert not first.done()
    first.cancel()
    await asyncio.wait([first])
    if subject.server is not None:
        await asyncio.wait_for(subject.server.gone.wait(), 5)
        subject.server.hold = subject.server.hold_after = None
    async with asyncio.timeout(subject.patience):
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=1))


@pytest.mark.parametrize(
    ("timeouts", "held_after", "said"),
    [
        (Timeouts(30, first_token=0.001), 0, "the first token did not come within 0.001 seconds"),
        (Timeouts(30, between_tokens=0.0001), 1, "the next token did not come within 0.0001 seconds"),
        (Timeouts(0.3), 1, "no complete answer within 0.3 seconds"),
    ],
)
async def test_a_stream_keeps_to_its_times(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, timeouts: Timeouts, held_after: int, said: str
) -> None:
    if subject.server is not None:
        subject.server.hold_after = held_after
    monkeypatch.setattr(subject.backend, "_timeouts", timeouts)
    with pytest.raises(BackendTimeout, match=said):
        async for _ in subject.backend.stream(QUESTION, GenerationParams(max_tokens=800)):
            pass


async def test_a_closed_backend_begins_no_stream(subject: Subject) -> None:
    await subject.backend.close()
    with pytest.raises(BackendUnavailable):
        await anext(subject.backend.stream(QUESTION, GenerationParams(max_tokens=1)))


async def test_an_answer_can_be_held_to_json(subject: Subject) -> None:
    if subject.server is not None:
        subject.server.text = '{"colours": 3}'
    if not subject.backend.forces_json:
        return
    schema = '{"properties":{"colours":{"enum":[3]}},"required":["colours"],"type":"object"}'
    for output in (JsonOutput(), JsonOutput(schema)):
        question = [Message("user", "How many colours has the sky? Answer in JSON.")]
        answer = await subject.backend.complete(question, GenerationParams(max_tokens=40, output=output, top_p="0.9"))
        assert schema != output.schema or json.loads(answer.text) == {"colours": 3}
        asked = json.loads(answer.forwarded)
        if "format" in asked:
            assert asked["format"] == ("json" if output.schema is None else json.loads(schema))
            assert asked["options"]["top_p"] == 0.9
        else:
            assert asked["response_format"]["type"] == ("json_object" if output.schema is None else "json_schema")
            assert asked["top_p"] == 0.9


async def test_a_healthy_backend_says_so(subject: Subject) -> None:
    await subject.backend.health()


async def test_a_closed_backend_is_unavailable_and_closes_twice(subject: Subject) -> None:
    await subject.backend.close()
    with pytest.raises(BackendUnavailable):
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=1))
    await subject.backend.close()


async def test_callers_at_the_same_time_each_get_their_answer(subject: Subject) -> None:
    calls = [subject.backend.complete(QUESTION, GenerationParams(max_tokens=4)) for _ in range(3)]
    answers = await asyncio.gather(*calls)
    assert len({answer.text for answer in answers}) == 1
