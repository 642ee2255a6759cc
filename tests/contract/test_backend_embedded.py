"""The embedded engine: which weights, which settings, and who can reach it."""

import asyncio
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from service.inference.backend import (
    BackendUnavailable,
    Completion,
    GenerationParams,
    InvalidBackendAnswer,
    Message,
    Timeouts,
    TokenCount,
    TruncatedPrompt,
    WeightsChanged,
)
from service.inference.backends import BackendOptions, open_backend
from service.inference.catalog import SMOLLM2_135M
from service.inference.embedded import EmbeddedBackend
from service.inference.weights import MeasuredFile, VerifiedWeights, verify_weights
from tests.models import MODEL_CACHE, THREADS

PROMPT = [Message("user", "Say hello in five words.")]


async def test_the_same_prompt_gets_the_same_answer(small_model: EmbeddedBackend) -> None:
    params = GenerationParams(max_tokens=24)
    first = await small_model.complete(PROMPT, params)
    other = await small_model.complete([Message("user", "Count from one to nine.")], params)
    assert other.text != first.text
    assert await small_model.complete(PROMPT, params) == first


async def test_nobody_else_can_reach_the_engine(small_model: EmbeddedBackend) -> None:
    address = small_model._server.listening_address
    assert address.startswith("unix://")
    directory = Path(address.removeprefix("unix://")).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    await small_model.close()
    assert not directory.exists()


@pytest.mark.parametrize(("difference", "error"), [(1, TruncatedPrompt), (-1, InvalidBackendAnswer)])
async def test_an_engine_that_saw_another_number_of_tokens_gives_no_answer(
    small_model: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch, difference: int, error: type[Exception]
) -> None:
    counted = await small_model.count_tokens(PROMPT)
    wrong = TokenCount(counted.value + difference, counted.at_least + difference)

    async def count_tokens(_messages: object) -> TokenCount:
        return wrong

    monkeypatch.setattr(small_model, "count_tokens", count_tokens)
    with pytest.raises(error):
        await small_model.complete(PROMPT, GenerationParams(max_tokens=1))


async def test_weights_written_to_while_serving_stop_the_service(
    tmp_path: Path, smollm2_weights: VerifiedWeights
) -> None:
    path = tmp_path / SMOLLM2_135M.file_name
    shutil.copyfile(smollm2_weights.file.path, path)
    backend = await EmbeddedBackend.open(
        verify_weights(SMOLLM2_135M, path), threads=THREADS, timeouts=Timeouts(30), context_size=512
    )
    await backend.complete(PROMPT, GenerationParams(max_tokens=1))
    with path.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0")
    with pytest.raises(WeightsChanged):
        await backend.complete(PROMPT, GenerationParams(max_tokens=1))
    with pytest.raises(WeightsChanged):
        await backend.health()
    await backend.close()


async def test_a_file_that_is_no_model_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "junk.gguf"
    path.write_bytes(b"junk" * 1000)
    result = path.stat()
    measured = MeasuredFile(path, "0" * 64, (result.st_ino, result.st_size, result.st_mtime_ns))
    with pytest.raises(BackendUnavailable, match="does not load"):
        await EmbeddedBackend.open(VerifiedWeights(SMOLLM2_135M, measured), threads=1, timeouts=Timeouts(1))


@pytest.mark.parametrize("options", [{"threads": 0}, {"context_size": 8193}, {"context_size": 10}])
async def test_settings_out_of_range_are_refused(smollm2_weights: VerifiedWeights, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        await EmbeddedBackend.open(smollm2_weights, **{"threads": 1, "timeouts": Timeouts(1), **options})


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.01, 0.1])
async def test_an_opening_that_is_cut_off_ends_and_leaves_no_engine(
    smollm2_weights: VerifiedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: float
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opening = asyncio.create_task(
        EmbeddedBackend.open(smollm2_weights, threads=1, timeouts=Timeouts(30), context_size=512)
    )
    await asyncio.sleep(moment)
    assert not opening.done()
    opening.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert not await asyncio.to_thread(os.listdir, tmp_path)


async def test_closing_ends_a_running_answer(small_model: EmbeddedBackend) -> None:
    long = [Message("user", "Tell the whole story of the fox. " * 100)]
    call: asyncio.Task[Completion] = asyncio.create_task(small_model.complete(long, GenerationParams(max_tokens=900)))
    await asyncio.wait([call], timeout=0.2)
    async with asyncio.timeout(10):
        await small_model.close()
        with pytest.raises(BackendUnavailable):
            await call


async def test_closing_ends_a_running_stream(small_model: EmbeddedBackend) -> None:
    stream = small_model.stream(PROMPT, GenerationParams(max_tokens=900))
    await anext(stream)
    async with asyncio.timeout(10):
        await small_model.close()
        with pytest.raises(BackendUnavailable, match="closed"):
            async for _ in stream:
                pass


async def test_a_slow_reader_does_not_slow_the_engine(small_model: EmbeddedBackend) -> None:
    stream = small_model.stream(PROMPT, GenerationParams(max_tokens=24))
    await anext(stream)
    # Answered only once the engine's one slot is free, although nobody reads the stream.
    async with asyncio.timeout(20):
        await small_model.complete(PROMPT, GenerationParams(max_tokens=1))
    assert isinstance([piece async for piece in stream][-1], Completion)


async def test_the_uri_loads_verified_weights_from_the_cache(smollm2_weights: VerifiedWeights) -> None:
    options = BackendOptions(cache_dir=MODEL_CACHE, threads=THREADS, context_size=512)
    backend = await open_backend("embedded:smollm2-135m", options)
    assert backend.identity.weights_sha256 == smollm2_weights.file.sha256
    assert backend.uri == "embedded:smollm2-135m"
    await backend.health()
    await backend.close()


async def test_the_engine_is_silent_unless_asked(
    smollm2_weights: VerifiedWeights, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = await EmbeddedBackend.open(smollm2_weights, threads=1, timeouts=Timeouts(30), context_size=512)
    await backend.complete(PROMPT, GenerationParams(max_tokens=1))
    await backend.close()
    assert capfd.readouterr() == ("", "")
