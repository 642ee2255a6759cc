"""What the commands share: options, output, and how they end."""

import asyncio
import json
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click
import httpx

from attestation.errors import MalformedError, TollsealError
from attestation.html_report import render
from attestation.policy import Policy
from attestation.policy_file import load_policy
from attestation.terminal import console, print_verdict, printable
from attestation.verdict import Verdict


def http_url(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise click.BadParameter("must be an http or https URL")
    return value


def _read_policy(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Policy | None:
    if value is None:
        return None
    try:
        return load_policy(value.read_text("utf-8"))
    except (MalformedError, OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(str(error)) from error


allow_simulated_option = click.option(
    "--allow-simulated", is_flag=True, help="Accept a service without a TEE. The verdict stays SIMULATED."
)
rpc_option = click.option(
    "--rpc",
    metavar="URL",
    envvar="TOLLSEAL_RPC",
    callback=http_url,
    help="Ask the chain through this node of your choice.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
policy_option = click.option(
    "--policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_read_policy,
    metavar="FILE",
    help="What to demand (TOML; `tollseal policy init` writes one).",
)
html_option = click.option(
    "--html",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Also write a page that draws the chain of proof.",
)


def with_consent(policy: Policy | None, *, allow_simulated: bool) -> Policy:
    """The policy of the file, or the default; the flag may only add the consent to simulated evidence."""
    chosen = policy or Policy()
    return replace(chosen, allow_simulated=chosen.allow_simulated or allow_simulated)


def show_verdict(verdict: Verdict, *, as_json: bool, html: Path | None = None) -> None:
    """Print a verdict, and draw it when a page is asked for."""
    write_page(verdict, html)
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(console(), verdict)


def write_page(verdict: Verdict, html: Path | None) -> None:
    """Draw a verdict, when a page is asked for."""
    if html is not None:
        html.write_text(render(verdict), encoding="utf-8")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def complain(problem: TollsealError | str) -> None:
    """A sentence on stderr, and what to do about it."""
    text = problem.diagnostics() if isinstance(problem, TollsealError) else problem
    console(stderr=True).print(printable(text, lines=True), style="red", markup=False)


def run(work: Coroutine[Any, Any, int], *, as_json: bool = False) -> NoReturn:
    """Run a command to its exit code; a failure is a sentence on stderr, and JSON on stdout where that was asked."""
    try:
        code = asyncio.run(work)
    except (TollsealError, httpx.HTTPError, OSError) as error:
        unreachable = isinstance(error, httpx.HTTPError)
        told = f"the service cannot be reached: {type(error).__name__}: {error}" if unreachable else str(error)
        if as_json:
            print_json({"error": told})
        complain(error if isinstance(error, TollsealError) else told)
        code = 1
    sys.exit(code)
