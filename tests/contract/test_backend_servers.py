"""What Ollama and OpenAI-compatible servers do wrong, and that none of it becomes an answer."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi.responses import JSONResponse

from service.inference.backend import (
    Backend,
    BackendError,
    BackendRejected,
    BackendUnavailable,
    Completion,
    ContextExceeded,
    Delta,
    GenerationParams,
    InvalidBackendAnswer,
    Message,
    ModelNotFound,
    Timeouts,
    TruncatedPrompt,
    WeightsChanged,
)
from service.inference.backends import BackendOptions, BackendURIError, open_backend
from service.inference.catalog import UnknownModel
from service.inference.ollama import OllamaBackend
from service.inference.openai import OpenAIBackend
from service.inference.weights import WeightsMismatch, WeightsMissing
from tests.models import Counting, FakeServer, failing, fake_ollama, fake_openai, served

CONTEXT = 2048
BLOB = b"GGUF and then some weights"
BLOB_SHA256 = hashlib.sha256(BLOB).hexdigest()
SECRET = "the buyer's secret document " * 4
PROMPT = [Message("user", SECRET)]
SHORT = GenerationParams(max_tokens=4)


@asynccontextmanager
async def ollama(
    server: FakeServer, models_dir: Path | None = None, *, context_size: int = CONTEXT, modelfile_extra: str = ""
) -> AsyncIterator[OllamaBackend]:
    async with served(fake_ollama(server, BLOB_SHA256, modelfile_extra=modelfile_extra)) as url:
        uri = f"ollama:{url}#{server.model}"
        backend = await OllamaBackend.open(
            uri, url, server.model, context_size=context_size, timeouts=Timeouts(10), models_dir=models_dir
        )
        yield backend
        await backend.close()


@asynccontextmanager
async def openai(server: FakeServer, counting: Counting = "none") -> AsyncIterator[OpenAIBackend]:
    async with served(fake_openai(server, counting)) as url:
        uri = f"openai:{url}/v1#{server.model}"
        backend = await OpenAIBackend.open(
            uri, f"{url}/v1", server.model, context_size=CONTEXT, timeouts=Timeouts(10), api_key="sk-secret"
        )
        yield backend
        await backend.close()


@pytest.fixture(params=["ollama", "openai"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Backend, FakeServer]]:
    server = FakeServer()
    opened = ollama(server) if request.param == "ollama" else openai(server)
    async with opened as backend:
        yield backend, server


def ollama_chat(**changes: object) -> dict[str, object]:
    chat: dict[str, object] = {
        "model": "fake-model:1b",
        "message": {"role": "assistant", "content": "text"},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 40,
        "eval_count": 1,
    }
    return {name: value for name, value in {**chat, **changes}.items() if value is not None}


def openai_chat(**changes: object) -> dict[str, object]:
    chat: dict[str, object] = {
        "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "text"}}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 1},
    }
    return {name: value for name, value in {**chat, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, {"error": "model 'x' not found"}, ModelNotFound),
        (404, {"error": {"message": "The model does not exist", "type": "NotFoundError"}}, ModelNotFound),
        (400, {"error": "the input length exceeds the context length"}, BackendRejected),
        (422, {"detail": [{"input": SECRET}]}, BackendRejected),
        (401, {"error": {"message": "bad key", "type": "invalid_request_error"}}, BackendRejected),
        (429, {"error": {"message": "slow down"}}, BackendUnavailable),
        (500, {"error": "model requires more system memory"}, BackendUnavailable),
        (503, {"error": "server busy, please try again. maximum pending requests exceeded"}, BackendUnavailable),
        (502, "<html>Bad Gateway</html>", BackendUnavailable),
        (200, "not json", InvalidBackendAnswer),
        (200, [], InvalidBackendAnswer),
        (200, {}, InvalidBackendAnswer),
        (200, {"error": "an error under 200"}, InvalidBackendAnswer),
    ],
)
async def test_every_failure_is_a_typed_error_without_the_document(
    subject: tuple[Backend, FakeServer], status: int, body: object, error: type[BackendError]
) -> None:
    backend, server = subject
    server.answer = failing(status, body)
    with pytest.raises(error) as failed:
        await backend.complete(PROMPT, SHORT)
    assert type(failed.value) is error
    assert "secret document" not in str(failed.value)


async def test_llama_servers_word_for_a_long_prompt_is_understood() -> None:
    server = FakeServer()
    error = {"code": 400, "type": "exceed_context_size_error", "message": "…", "n_prompt_tokens": 3000, "n_ctx": 1000}
    server.answer = failing(400, {"error": error})
    async with openai(server) as backend:
        with pytest.raises(ContextExceeded) as refused:
            await backend.complete(PROMPT, SHORT)
    assert (refused.value.limit, refused.value.needed) == (1000, 3000)


@pytest.mark.parametrize(
    "changes",
    [
        {"done": False},
        {"done_reason": "load"},
        {"done_reason": None},
        {"prompt_eval_count": None},
        {"prompt_eval_count": -1},
        {"eval_count": None},
        {"message": {"role": "assistant"}},
        {"prompt_eval_count": 100_000},
    ],
)
async def test_an_incomplete_ollama_answer_is_no_answer(changes: dict[str, object]) -> None:
    server = FakeServer()
    server.answer = lambda: JSONResponse(ollama_chat(**changes))
    async with ollama(server) as backend:
        with pytest.raises(InvalidBackendAnswer):
            await backend.complete(PROMPT, SHORT)


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": None},
        {"choices": []},
        {"choices": [{"finish_reason": "content_filter", "message": {"content": "x"}}]},
        {"choices": [{"finish_reason": "stop", "message": {"content": None}}]},
        {"usage": {"prompt_tokens": 100_000, "completion_tokens": 1}},
    ],
)
async def test_an_incomplete_openai_answer_is_no_answer(changes: dict[str, object]) -> None:
    server = FakeServer()
    server.answer = lambda: JSONResponse(openai_chat(**changes))
    async with openai(server) as backend:
        with pytest.raises(InvalidBackendAnswer):
            await backend.complete(PROMPT, SHORT)


async def read_all(backend: Backend) -> list[Delta | Completion]:
    return [piece async for piece in backend.stream(PROMPT, SHORT)]


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, {"error": "model 'x' not found"}, ModelNotFound),
        (400, {"error": "the input length exceeds the context length"}, BackendRejected),
        (503, {"error": "server busy"}, BackendUnavailable),
        (200, "not json", BackendError),
        (200, {}, BackendError),
        (200, "x" * 2_000_000, BackendError),
    ],
)
async def test_a_stream_that_is_refused_is_a_typed_error(
    subject: tuple[Backend, FakeServer], status: int, body: object, error: type[BackendError]
) -> None:
    backend, server = subject
    server.answer = failing(status, body)
    with pytest.raises(error):
        await read_all(backend)


@pytest.mark.parametrize("pieces", [0, 2])
async def test_a_server_that_dies_in_a_stream_is_unavailable(subject: tuple[Backend, FakeServer], pieces: int) -> None:
    backend, server = subject
    server.break_after = pieces
    stream = backend.stream(PROMPT, SHORT)
    for _ in range(pieces):
        assert isinstance(await anext(stream), Delta)
    with pytest.raises(BackendUnavailable):
        await anext(stream)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["data: [DONE]\n\n"],
        ['data: {"error": {"message": "out of memory", "type": "server_error"}}\n\n'],
        ['data: {"object": "error", "message": "old vLLM"}\n\n'],
        ['data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n', "data: [DONE]\n\n"],
        ['data: {"choices": [{"delta": {}, "finish_reason": "content_filter"}]}\n\n'],
        ['data: {"choices": [], "usage": {"prompt_tokens": 99, "completion_tokens": 1}}\n\n'],
        ["data: x\n\n"],
        ["data: " + "x" * 2_000_000],
    ],
)
async def test_an_openai_stream_without_a_right_end_is_no_answer(lines: list[str]) -> None:
    server = FakeServer(last_lines=lines)
    async with openai(server) as backend:
        with pytest.raises((BackendUnavailable, InvalidBackendAnswer)) as failed:
            await read_all(backend)
    assert "out of memory" not in str(failed.value)


@pytest.mark.parametrize(
    "line",
    [
        {"error": "llama runner process has terminated"},
        {"done": True, "done_reason": "stop"},
        {"message": {"content": ""}, "done": True, "done_reason": "load", "prompt_eval_count": 40, "eval_count": 1},
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 1},
        None,
    ],
)
async def test_an_ollama_stream_without_a_right_end_is_no_answer(line: dict[str, object] | None) -> None:
    server = FakeServer(last_lines=[] if line is None else [json.dumps(line)])
    async with ollama(server) as backend:
        with pytest.raises((BackendUnavailable, InvalidBackendAnswer)) as failed:
            await read_all(backend)
    assert "runner" not in str(failed.value)


async def test_a_stream_that_saw_less_than_was_sent_has_no_end() -> None:
    end = ollama_chat(message={"content": ""}, prompt_eval_count=2)
    async with ollama(FakeServer(last_lines=[json.dumps(end)])) as backend:
        with pytest.raises(TruncatedPrompt):
            await read_all(backend)
    usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    stop = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    server = FakeServer(last_lines=[f"data: {json.dumps(event)}\n\n" for event in (stop, usage)])
    async with openai(server) as backend:
        with pytest.raises(TruncatedPrompt):
            await read_all(backend)


async def test_comments_and_other_fields_of_an_event_stream_are_passed_over() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 1}}
    stop = {"choices": [{"delta": {"content": None}, "finish_reason": "stop"}]}
    lines = [": keep-alive\r\n", "event: x\r\n", *(f"data:{json.dumps(event)}\r\n\r\n" for event in (stop, usage))]
    async with openai(FakeServer(last_lines=lines)) as backend:
        pieces = await read_all(backend)
    assert isinstance(pieces[-1], Completion)


async def test_only_known_servers_are_trusted_with_json() -> None:
    for counting in ("llama-server", "vllm", "none"):
        async with openai(FakeServer(), counting) as backend:
            assert backend.forces_json is (counting != "none")


async def test_a_prompt_cut_in_silence_is_never_an_answer(subject: tuple[Backend, FakeServer]) -> None:
    backend, server = subject
    words = [Message("user", "word " * 300)]
    server.answer = lambda: JSONResponse(
        {**ollama_chat(prompt_eval_count=299), **openai_chat(usage={"prompt_tokens": 299, "completion_tokens": 1})}
    )
    with pytest.raises(TruncatedPrompt) as cut:
        await backend.complete(words, SHORT)
    assert (cut.value.sent, cut.value.seen) == (300, 299)


@pytest.mark.parametrize("counting", ["llama-server", "vllm"])
async def test_with_an_exact_count_one_token_less_is_a_cut(counting: Counting) -> None:
    server = FakeServer()
    async with openai(server, counting) as backend:
        count = await backend.count_tokens(PROMPT)
        assert count.exact
        usage = {"prompt_tokens": count.value - 1, "completion_tokens": 1}
        server.answer = lambda: JSONResponse(openai_chat(usage=usage))
        with pytest.raises(TruncatedPrompt):
            await backend.complete(PROMPT, SHORT)


async def test_ollama_is_told_the_context_and_forbidden_to_cut_or_shift() -> None:
    server = FakeServer()
    async with ollama(server) as backend:
        await backend.complete(PROMPT, GenerationParams(max_tokens=7, temperature="0.25", seed=3, stop=("x",)))
    body = json.loads(server.bodies[0])
    assert (body["truncate"], body["shift"], body["stream"]) == (False, False, False)
    assert body["options"] == {"num_ctx": CONTEXT, "num_predict": 7, "seed": 3, "stop": ["x"], "temperature": 0.25}


async def test_ollama_weights_are_measured_from_the_blob_itself(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / f"sha256-{BLOB_SHA256}"
    blob.parent.mkdir()
    blob.write_bytes(BLOB)
    async with ollama(FakeServer(), tmp_path) as backend:
        assert (backend.identity.weights_sha256, backend.identity.weights_origin) == (BLOB_SHA256, "measured")
        assert backend.identity.quantization == "Q4_1"
        blob.write_bytes(b"other weights")
        with pytest.raises(WeightsChanged):
            await backend.complete(PROMPT, SHORT)
        with pytest.raises(WeightsChanged):
            await backend.health()


async def test_a_corrupted_or_missing_ollama_blob_is_refused(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / f"sha256-{BLOB_SHA256}"
    with pytest.raises(WeightsMissing):
        async with ollama(FakeServer(), tmp_path):
            pass
    blob.parent.mkdir()
    blob.write_bytes(BLOB[:-1] + b"!")
    with pytest.raises(WeightsMismatch):
        async with ollama(FakeServer(), tmp_path):
            pass


async def test_without_the_models_directory_ollamas_word_is_only_a_claim() -> None:
    async with ollama(FakeServer()) as backend:
        assert (backend.identity.weights_sha256, backend.identity.weights_origin) == (BLOB_SHA256, "claimed")


@pytest.mark.parametrize("extra", ["ADAPTER /root/adapter.gguf\n", f"FROM /m/blobs/sha256-{'0' * 64}\n"])
async def test_an_ollama_model_of_several_files_is_refused(extra: str) -> None:
    with pytest.raises(InvalidBackendAnswer, match="exactly one weights file"):
        async with ollama(FakeServer(), modelfile_extra=extra):
            pass


async def test_more_context_than_the_model_was_trained_for_is_refused() -> None:
    with pytest.raises(ValueError, match="trained for 8192"):
        async with ollama(FakeServer(), context_size=8193):
            pass


@pytest.mark.parametrize("scheme", ["ollama", "openai"])
async def test_a_uri_opens_the_backend_it_names(scheme: str, tmp_path: Path) -> None:
    server = FakeServer(model="org/name:tag")
    app = fake_ollama(server, BLOB_SHA256) if scheme == "ollama" else fake_openai(server, "none")
    options = BackendOptions(cache_dir=tmp_path, threads=1, context_size=CONTEXT, api_key="sk-secret")
    assert "sk-secret" not in repr(options)
    async with served(app) as url:
        base = url if scheme == "ollama" else f"{url}/v1"
        backend = await open_backend(f"{scheme}:{base}#org/name:tag", options)
        assert backend.identity.name == "org/name:tag"
        await backend.close()
        with pytest.raises(ModelNotFound):
            await open_backend(f"{scheme}:{base}#another", options)
    with pytest.raises(BackendUnavailable):
        await open_backend(f"{scheme}:{base}#org/name:tag", options)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "smollm2-135m",
        "vllm:http://host#m",
        "ollama:http://host:11434",
        "ollama:#model",
        "ollama:ftp://host#m",
        "openai:https://user:password@host/v1#m",
        "openai:https://host/v1?key=1#m",
        "openai:https://host:99999/v1#m",
    ],
)
async def test_a_uri_that_names_no_backend_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BackendURIError) as refused:
        await open_backend(uri, BackendOptions(cache_dir=tmp_path, threads=1))
    assert "password" not in str(refused.value) or "must not hold" in str(refused.value)


async def test_an_embedded_model_must_be_in_the_catalogue(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        await open_backend("embedded:gpt-5", BackendOptions(cache_dir=tmp_path, threads=1))
