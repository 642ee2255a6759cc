"""A real Ollama and its faults: it never notices that its weights changed, and it may die at any moment."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from service.inference.backend import (
    BackendUnavailable,
    Delta,
    GenerationParams,
    Message,
    ModelNotFound,
    Timeouts,
    WeightsChanged,
)
from service.inference.ollama import OllamaBackend
from service.inference.weights import VerifiedWeights, WeightsMismatch
from tests.ollama import MODEL, RealOllama, running_ollama

CONTEXT = 4096
QUESTION = [Message("user", "Name three colours of the sky, please.")]


@asynccontextmanager
async def opened(server: RealOllama, model: str = MODEL) -> AsyncIterator[OllamaBackend]:
    backend = await OllamaBackend.open(
        f"ollama:{server.url}#{model}",
        server.url,
        model,
        context_size=CONTEXT,
        timeouts=Timeouts(60),
        models_dir=server.models_dir,
    )
    yield backend
    await backend.close()


async def test_the_weights_are_the_very_file_that_was_pinned(
    real_ollama: RealOllama, smollm2_weights: VerifiedWeights
) -> None:
    async with opened(real_ollama) as backend:
        identity = backend.identity
    assert (identity.weights_sha256, identity.weights_origin) == (smollm2_weights.file.sha256, "measured")
    assert identity.quantization == "Q4_1"


async def test_a_model_that_is_not_there_is_said_so(real_ollama: RealOllama) -> None:
    with pytest.raises(ModelNotFound):
        async with opened(real_ollama, "another:1b"):
            pass


async def test_left_to_itself_it_would_cut_the_prompt_and_say_nothing(real_ollama: RealOllama) -> None:
    """What every request of ours forbids. Should this fail one day, that may go."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "word " * 1_000}],
        "options": {"num_ctx": 512, "num_predict": 1},
        "stream": False,
    }
    async with httpx.AsyncClient(base_url=real_ollama.url, timeout=120, trust_env=False) as http:
        cut = await http.post("/api/chat", json=body)
        refused = await http.post("/api/chat", json={**body, "truncate": False, "shift": False})
    assert cut.status_code == 200
    assert cut.json()["prompt_eval_count"] <= 512
    assert refused.status_code == 400


async def test_a_corrupted_blob_is_caught_although_it_is_served_happily(
    ollama_program: Path, smollm2_weights: VerifiedWeights, tmp_path: Path
) -> None:
    with running_ollama(ollama_program, tmp_path, smollm2_weights.file.path) as server:
        blob = server.models_dir / "blobs" / f"sha256-{smollm2_weights.file.sha256}"
        async with opened(server) as backend:
            corrupt(blob)
            with pytest.raises(WeightsChanged):
                await backend.complete(QUESTION, GenerationParams(max_tokens=4))
            with pytest.raises(WeightsChanged):
                await anext(backend.stream(QUESTION, GenerationParams(max_tokens=4)))
        with pytest.raises(WeightsMismatch):
            async with opened(server):
                pass
        async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
            body = {"model": MODEL, "messages": [QUESTION[0].to_json()], "stream": False, "options": {"num_predict": 2}}
            assert (await http.post("/api/chat", json=body)).status_code == 200


def corrupt(blob: Path) -> None:
    with blob.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)
        file.seek(50_000_000)
        file.write(bytes([byte[0] ^ 1]))


async def test_killed_in_the_middle_of_a_stream_it_is_unavailable(
    ollama_program: Path, smollm2_weights: VerifiedWeights, tmp_path: Path
) -> None:
    with running_ollama(ollama_program, tmp_path, smollm2_weights.file.path) as server:
        async with opened(server) as backend:
            stream = backend.stream(QUESTION, GenerationParams(max_tokens=2_000))
            assert isinstance(await anext(stream), Delta)
            server.kill()
            with pytest.raises(BackendUnavailable):
                async for _ in stream:
                    pass
            with pytest.raises(BackendUnavailable):
                await backend.complete(QUESTION, GenerationParams(max_tokens=4))
            with pytest.raises(BackendUnavailable):
                await backend.health()
