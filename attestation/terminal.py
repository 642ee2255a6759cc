"""How results look to people: short, aligned, in colour on a terminal and plain when piped.

Texts from elsewhere (a summary, an error of a service) never reach a terminal with control characters in them.
"""

import sys
from collections.abc import Iterable
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attestation.verdict import Result, Status, Verdict

_STATUS_STYLES: Final = {Status.PASS: "green", Status.FAIL: "bold red", Status.NOT_VERIFIED: "yellow"}
_RESULT_STYLES: Final = {
    Result.VERIFIED: "bold green",
    Result.FAILED: "bold red",
    Result.SIMULATED: "bold yellow",
    Result.INCOMPLETE: "bold yellow",
}
_MEANINGS: Final = {
    Result.VERIFIED: "every required check passed",
    Result.FAILED: "do not rely on this",
    Result.SIMULATED: "everything fits together, but no hardware stands behind it",
    Result.INCOMPLETE: "a required check could not run",
}


def console(*, stderr: bool = False) -> Console:
    """A console on stdout, or on stderr for what is not the result itself."""
    stream = sys.stderr if stderr else sys.stdout
    # A pipe has no width; wrapping there would break lines that other programs read.
    width = None if stream.isatty() else 10_000
    return Console(file=stream, highlight=False, soft_wrap=not stream.isatty(), width=width)


def printable(text: str, *, lines: bool = False) -> str:
    """The text without control characters; line ends stay when `lines` is set."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else " " for c in text)


def print_fields(out: Console, fields: Iterable[tuple[str, str]]) -> None:
    """Names on the left, values aligned on the right."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(Text(name, style="bold"), Text(printable(value, lines=True)))
    out.print(table)


def print_verdict(out: Console, verdict: Verdict) -> None:
    """One line per check, and the verdict."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in verdict.checks:
        table.add_row(
            Text(check.status.value, style=_STATUS_STYLES[check.status]), check.id, Text(printable(check.detail))
        )
    out.print(table)
    line = Text(verdict.result.value, style=_RESULT_STYLES[verdict.result])
    out.print(line.append(f"  {_MEANINGS[verdict.result]}", style="default"))
