"""Puts what was measured last into docs/performance.md: `python -m bench.tables`, after `make bench`.

Each table stands between two comments that name it; nothing else of the file changes. A measurement that has not been
made leaves its table as it is.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

OUT: Final = Path(__file__).parent / "out"
DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "performance.md"

_SELLERS: Final = {"bare": "bare FastAPI, unpaid", "sdk": "x402 SDK middleware", "ours": "Tollseal"}
_BLOCKS: Final = {"instant": "instant", "two_second": "2 s"}


class TableError(ValueError):
    """The document has no place for a table."""


def paid(measured: Mapping[str, Any]) -> str:
    """bench/out/paid.json as a table."""
    lines = [
        "| connections | endpoint | requests/s | p50 ms | p99 ms | CPU us per request |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for connections, row in measured["connections"].items():
        for name, title in _SELLERS.items():
            one = row[name]
            lines.append(
                f"| {connections} | {title} | {one['rps']:,.0f} | {one['p50_ms']:.2f} | {one['p99_ms']:.2f} "
                f"| {one['cpu_us']:,.0f} |"
            )
    ratios = "; ".join(
        f"{connections} connections: {row['rps_ratio']:.1f} times the throughput, {row['p99_ratio']:.2f} of the p99"
        for connections, row in measured["connections"].items()
    )
    return "\n".join([*lines, "", f"Tollseal against the SDK's middleware, {ratios}."])


def settlement(measured: Mapping[str, Any]) -> str:
    """bench/out/settlement.json as a table."""
    lines = ["| blocks | facilitator | payments settled/s | gas per payment |", "|---|---|---:|---:|"]
    for key, title in _BLOCKS.items():
        for name, facilitator in (("sdk", "x402 SDK, 8 threads"), ("ours", "Tollseal")):
            one = measured[key][name]
            lines.append(f"| {title} | {facilitator} | {one['settled_per_s']:,.1f} | {one['gas_per_payment']:,.0f} |")
    return "\n".join(lines)


TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {"paid": paid, "settlement": settlement}


def replaced(text: str, name: str, table: str) -> str:
    """The document with this table in its place.

    Raises:
        TableError: the two comments are not there.
    """
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise TableError(f"the document has no place for {name}: it needs {begin.strip()} and {end.strip()}")
    return head + begin + table + end + tail


def main() -> None:
    text = DOCUMENT.read_text("utf-8")
    for name, table in TABLES.items():
        measured = OUT / f"{name}.json"
        if not measured.exists():
            print(f"{name}: not measured here", file=sys.stderr)
            continue
        text = replaced(text, name, table(json.loads(measured.read_text("utf-8"))))
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
