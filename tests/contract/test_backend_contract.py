"""What every backend promises, whatever computes behind it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from attestation.digest import jcs
from service.inference.backend import (
    Backend,
    BackendTimeout,
    BackendUnavailable,
    ContextExceeded,
    GenerationParams,
    Message,
)
from service.inference.embedded import EmbeddedBackend
from service.inference.ollama import OllamaBackend
from service.inference.openai import OpenAIBackend
from service.inference.weights import VerifiedWeights
from tests.models import THREADS, FakeServer, fake_ollama, fake_openai, served

CONTEXT = 1024
QUESTION = (Message("system", "You are brief."), Message("user", "Name three colours of the sky, please."))


@dataclass
class Subject:
    backend: Backend
    exact: bool
    server: FakeServer | None
    """The fake behind it; None for the embedded engine."""


@pytest.fixture(params=["embedded", "ollama", "openai-llama-server", "openai-vllm", "openai-none"])
async def subject(request: pytest.FixtureRequest, smollm2_weights: VerifiedWeights) -> AsyncIterator[Subject]:
    kind = request.param
    if kind == "embedded":
        backend = await EmbeddedBackend.open(smollm2_weights, threads=THREADS, timeout_seconds=30, context_size=CONTEXT)
        yield Subject(backend, exact=True, server=None)
        await backend.close()
        return
    server = FakeServer()
    if kind == "ollama":
        async with served(fake_ollama(server, hashlib.sha256(b"weights").hexdigest())) as url:
            ollama = await OllamaBackend.open(
                f"ollama:{url}#{server.model}", url, server.model, context_size=CONTEXT, timeout_seconds=30
            )
            yield Subject(ollama, exact=False, server=server)
            await ollama.close()
        return
    counting = kind.removeprefix("openai-")
    async with served(fake_openai(server, counting)) as url:
        openai = await OpenAIBackend.open(
            f"openai:{url}/v1#{server.model}", f"{url}/v1", server.model, context_size=CONTEXT, timeout_seconds=30
        )
        yield Subject(openai, exact=counting != "none", server=server)
        await openai.close()


async def test_the_identity_names_model_and_context(subject: Subject) -> None:
    identity = subject.backend.identity
    assert identity.name == ("smollm2-135m" if subject.server is None else subject.server.model)
    assert identity.context_size == CONTEXT
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
        await subject.backend.complete([Message("user", "word " * 2000)], GenerationParams(max_tokens=16))
    assert refused.value.limit == CONTEXT
    assert refused.value.needed >= 2016
    assert subject.server is None or subject.server.bodies == []


async def test_the_answer_counts_towards_the_context(subject: Subject) -> None:
    count = await subject.backend.count_tokens(QUESTION)
    room = CONTEXT - count.value
    with pytest.raises(ContextExceeded) as refused:
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=room + 1))
    assert refused.value.needed == CONTEXT + 1
    await subject.backend.complete(QUESTION, GenerationParams(max_tokens=min(room, 600), stop=("e", "o", "a")))


async def test_a_caller_who_leaves_frees_the_backend(subject: Subject) -> None:
    if subject.server is not None:
        subject.server.hold = asyncio.Event()
    # The embedded engine needs seconds for this one.
    long = [Message("user", "Tell the whole story of the fox, in every detail. " * 60)]
    if subject.exact is False:
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
    async with asyncio.timeout(5):
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=1))


async def test_no_answer_in_time_is_a_timeout(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    if subject.server is not None:
        subject.server.hold = asyncio.Event()
    monkeypatch.setattr(subject.backend, "_timeout", 0.05)
    with pytest.raises(BackendTimeout):
        await subject.backend.complete(QUESTION, GenerationParams(max_tokens=400))


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
