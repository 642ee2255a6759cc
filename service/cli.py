"""Commands for operators: serve, up, demo, models, manifest."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import httpx
import uvloop
from pydantic import ValidationError
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from attestation.checker import ServiceChecker
from attestation.commands import http_url, run
from attestation.enclave import open_enclave
from attestation.encoding import parse_json
from attestation.errors import TollsealError
from attestation.manifest import differences, manifest_digest, parse_manifest
from attestation.policy import Policy
from attestation.terminal import console, print_fields, printable
from service.app import Service
from service.boot import boot
from service.build import audit_manifest, checkout, compute_manifest
from service.demo import run_demo
from service.inference.backend import BackendError
from service.inference.backends import BackendOptions, BackendURIError, open_backend
from service.inference.catalog import CATALOGUE, UnknownModel, find_model
from service.inference.weights import FetchProgress, WeightsError, fetch_weights
from service.localchain.anvil import AnvilError
from service.localchain.deploy import DeployError
from service.localchain.stack import DEFAULT_PORT, described, local_stack
from service.localchain.toolchain import ToolchainError
from service.payment.ledger import LedgerError
from service.server import listening, spare_what_stays
from service.server import serve as serve_http
from service.settings import Settings

DEFAULT_MODEL: Final = "qwen2.5-coder-1.5b"
CACHE_DIR: Final = Path.home() / ".cache" / "tollseal"
STATE_DIR: Final = Path(".tollseal")

# Read by the engine's thread library when it is loaded: threads that wait for each other sleep instead of spinning.
# Spinning gains nothing measurable on an idle machine, and on a busy one it multiplies the time of an answer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_EXPECTED: Final = (
    TollsealError,
    BackendError,
    BackendURIError,
    UnknownModel,
    WeightsError,
    LedgerError,
    ToolchainError,
    AnvilError,
    DeployError,
    OSError,
)
"""What can be wrong with a machine, its settings or its chain: told in a sentence, without a traceback."""

_cache_dir = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=CACHE_DIR,
    envvar="TOLLSEAL_CACHE_DIR",
    show_default="~/.cache/tollseal",
    help="Where models and tools are kept between runs and clones.",
)
_model = click.option("--model", default=DEFAULT_MODEL, show_default=True, help="A name from `tollseal models`.")


class Reporter:
    """Tells a person on stderr what is being done, with a bar for downloads."""

    def __init__(self) -> None:
        self._out = console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=self._out
        )
        self._tasks: dict[str, TaskID] = {}
        self._notes: set[str] = set()

    def __call__(self, words: str) -> None:
        self._out.print(f"{printable(words)}", style="dim", markup=False)

    def fetching(self, step: FetchProgress) -> None:
        """One step of a download or of a check of weights."""
        if step.note and step.note not in self._notes:
            self._notes.add(step.note)
            self(f"{step.model}: {step.note}")
        if step.source not in self._tasks:
            self._tasks[step.source] = self._bar.add_task(f"{step.model} from {step.source}", total=step.total)
            if not self._out.is_terminal:
                self(f"{step.model} from {step.source}")
        self._bar.update(self._tasks[step.source], completed=step.done)

    def __enter__(self) -> "Reporter":
        if self._out.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def read_settings() -> Settings:
    """The settings of the service, from the environment.

    Raises:
        click.UsageError: names every variable that is missing or wrong.
    """
    try:
        return Settings.model_validate({})
    except ValidationError as error:
        lines = [
            f"TOLLSEAL_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        raise click.UsageError("\n".join(lines)) from error


@click.command()
def serve() -> None:
    """Sell on a real chain. Settings are TOLLSEAL_* environment variables (docs/operations.md)."""
    run_to_exit(_serve(read_settings()))


async def _serve(settings: Settings) -> None:
    with Reporter() as reporter, listening(settings.port, settings.host) as listener:
        async with (
            boot(settings, wait_for_agent=False, report=reporter, progress=reporter.fetching) as service,
            serve_http(service, [listener]),
        ):
            spare_what_stays()
            reporter(f"serving at {settings.origin}")
            announcing = asyncio.create_task(_announce(service, reporter))
            await _stopped()
            announcing.cancel()


async def _announce(service: Service, reporter: Reporter) -> None:
    """Say so when the chain knows the service, and it may sell."""
    if service.publication is not None:
        await service.publication.registered()
    reporter(f"ready at {service.settings.origin}")


@click.command()
@_model
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="Another free one is taken when it is in use.")
@click.option("--threads", default=os.cpu_count() or 1, show_default="all cores", help="Compute threads of the model.")
@click.option("--tls", is_flag=True, help="Serve HTTPS with a key of the enclave.")
@_cache_dir
def up(model: str, port: int, threads: int, tls: bool, cache_dir: Path) -> None:
    """Run a local chain and a service on it until Ctrl-C; describes itself in .tollseal/dev.json."""
    run_to_exit(_up(model, port, threads, cache_dir, {"tls": "enclave"} if tls else {}))


async def _up(model: str, port: int, threads: int, cache_dir: Path, more: dict[str, str]) -> None:
    with ExitStack() as closing, Reporter() as reporter:
        async with local_stack(
            model=model,
            state_dir=STATE_DIR,
            cache_dir=cache_dir,
            threads=threads,
            report=reporter,
            progress=reporter.fetching,
            port=port,
            service_settings=more,
        ) as (stack, _, _):
            path = closing.enter_context(described(stack, Path.cwd()))
            out = console()
            fields = {name: str(value) for name, value in stack.to_json().items() if not name.endswith("_key")}
            print_fields(out, fields.items())
            out.print(f"ready; keys are in {path}. Ctrl-C stops everything.", markup=False)
            await _stopped()
            closing.close()


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_model
@click.option("--threads", default=os.cpu_count() or 1, show_default="all cores", help="Compute threads of the model.")
@_cache_dir
def demo(file: Path | None, model: str, threads: int, cache_dir: Path) -> None:
    """Start everything, buy a summary of FILE, check it, stop everything."""
    run_to_exit(_demo(file, model, threads, cache_dir))


async def _demo(file: Path | None, model: str, threads: int, cache_dir: Path) -> int:
    with Reporter() as reporter:
        return await run_demo(
            file, model=model, threads=threads, cache_dir=cache_dir, state_dir=STATE_DIR, reporter=reporter
        )


@click.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """The models that are known by name, each pinned by the sha256 of its weights."""
    if context.invoked_subcommand is None:
        for model in CATALOGUE.values():
            print_fields(
                console(),
                [
                    (model.name, model.title),
                    ("", f"{model.size / 1e6:,.0f} MB, {model.licence}, {model.context_size} tokens of context"),
                    ("", f"good for {model.good_for}"),
                    ("", f"sha256 {model.sha256}"),
                ],
            )


@models.command()
@click.argument("name")
@_cache_dir
def pull(name: str, cache_dir: Path) -> None:
    """Fetch the weights of NAME and check them."""

    async def work() -> None:
        with Reporter() as reporter:
            weights = fetch_weights(find_model(name), cache_dir / "models", progress=reporter.fetching)
        console().print(str(weights.file.path), markup=False)

    run_to_exit(work())


@click.command()
@click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The checkout to hash, instead of the one that is running.",
)
@click.option("--from", "url", callback=http_url, help="Compare with the manifest of a running service, line by line.")
@click.option("--check", "digest", metavar="DIGEST", help="Exit 1 unless the manifest has this digest.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole manifest.")
def manifest(source: Path | None, url: str | None, digest: str | None, as_json: bool) -> None:
    """Compute the build manifest: of this installation with the settings of `serve`, or, with --from, of what a running
    service should have if it was built from this source."""
    if url is not None:
        run(_audit(url, source or checkout(), digest, as_json=as_json))
    try:
        settings = Settings.model_validate({})
    except ValidationError as error:
        raise click.UsageError(
            "the payment terms are part of the manifest: set TOLLSEAL_* as for `serve`, or name a service with --from"
        ) from error
    run_to_exit(_manifest(settings, source, digest, as_json=as_json))


async def _manifest(settings: Settings, source: Path | None, digest: str | None, *, as_json: bool) -> int:
    with Reporter() as reporter:
        options = BackendOptions(
            cache_dir=settings.cache_dir / "models", threads=settings.threads, progress=reporter.fetching
        )
        backend = await open_backend(settings.backend, options)
        try:
            tee_type = open_enclave(settings.enclave).tee_type
            document = compute_manifest(settings, backend.identity, tee_type=tee_type, source=source)
        finally:
            await backend.close()
    return _show_manifest(document, digest, as_json=as_json)


async def _audit(url: str, source: Path, digest: str | None, *, as_json: bool) -> int:
    async with ServiceChecker(policy=Policy()) as checker:
        found = await checker.attest(httpx.URL(url))
    served = parse_manifest(parse_json(found.manifest.body, "manifest"))
    rebuilt = audit_manifest(served, source)
    different = list(differences(rebuilt, served))
    for line in different:
        console(stderr=True).print(printable(line), markup=False)
    return _show_manifest(rebuilt, digest, as_json=as_json) or (1 if different else 0)


def _show_manifest(document: dict[str, Any], digest: str | None, *, as_json: bool) -> int:
    found = manifest_digest(document)
    click.echo(json.dumps(document, indent=2) if as_json else found)
    if digest is not None and digest != found:
        console(stderr=True).print(f"expected {printable(digest)}", style="red", markup=False)
        return 1
    return 0


async def _stopped() -> None:
    """Wait for Ctrl-C or SIGTERM, and end well: from then on further signals change nothing."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        # Closing finishes what was sold, and takes its time.
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()


async def _interruptible(work: Coroutine[Any, Any, int | None]) -> int | None:
    """Let SIGINT and SIGTERM cancel the work from its first step on, so that whatever it opened is closed in order.

    A second one raises KeyboardInterrupt at once, also out of a step that blocks the loop, such as a download.
    Returns 128 and the signal's number when the work was cut short.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    received: list[int] = []

    def cancel(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)

    for number in _STOP_SIGNALS:
        signal.signal(number, cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]


def run_to_exit(work: Coroutine[Any, Any, int | None]) -> NoReturn:
    """Run a command of the service to its exit code; what is expected to go wrong is a sentence on stderr."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_interruptible(work))
    except _EXPECTED as error:
        text = error.diagnostics() if isinstance(error, TollsealError) else str(error)
        console(stderr=True).print(printable(text, lines=True), style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)
