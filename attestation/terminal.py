"""How results look to people: short, aligned, in colour on a terminal and plain when piped.

Texts from elsewhere (a summary, an error of a service) never reach a terminal with control characters in them.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from attestation.verdict import Check, Result, Status, Verdict

_GAP: Final = 2
_STATUS_STYLES: Final = {Status.PASS: "green", Status.FAIL: "bold red", Status.NOT_VERIFIED: "yellow"}
_RESULT_STYLES: Final = {
    Result.VERIFIED: "bold green",
    Result.FAILED: "bold red",
    Result.SIMULATED: "bold yellow",
    Result.INCOMPLETE: "bold yellow",
}
MEANINGS: Final = {
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
    rows = [(Text(name, style="bold"), Text(printable(value, lines=True))) for name, value in fields]
    _print_aligned(out, rows)


def print_checks(out: Console, checks: Iterable[Check]) -> None:
    """One line per check."""
    rows = [
        (Text(c.status.value, style=_STATUS_STYLES[c.status]), Text(c.id), Text(printable(c.detail))) for c in checks
    ]
    _print_aligned(out, rows)


def print_verdict(out: Console, verdict: Verdict) -> None:
    """One line per check, and the verdict."""
    print_checks(out, verdict.checks)
    line = Text(verdict.result.value, style=_RESULT_STYLES[verdict.result])
    out.print(line.append(f"  {MEANINGS[verdict.result]}", style="default"))


def _print_aligned(out: Console, rows: Sequence[tuple[Text, ...]]) -> None:
    """Rows of columns, all but the last as wide as their widest cell, and no blanks at the end of a line."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        line = Text()
        for cell, width in zip(row, widths, strict=False):
            padded = cell.copy()
            padded.pad_right(width - len(cell) + _GAP)
            line.append_text(padded)
        out.print(line.append_text(row[-1]))
