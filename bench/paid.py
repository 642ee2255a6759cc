"""What being paid costs: a bare endpoint, the same one behind the official SDK, and ours, in one go.

    python -m bench.paid [--seconds 3] [--rounds 3] [--profile FILE]

Every seller runs in a process of its own on core 0; load generator and stub facilitator share core 1. Rounds alternate
between the sellers, so that whatever else the machine does hits all of them; the median round counts. Payments are
signed before the clock starts, no two are alike, and neither seller looks at a chain: both take the facilitator's word.
Writes bench/out/paid.json {"connections": {"1"|"16"|"64": {bare|sdk|ours: {rps, p50_ms, p99_ms, cpu_us}, rps_ratio,
p99_ratio}}}, the ratios being ours to the SDK's, and draws bench/out/paid.svg and .png.
"""

import argparse
import base64
import json
import os
import pstats
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import uvloop

from attestation.verdict import Status
from bench.chart import draw_paid
from bench.load import Round, run_round
from bench.orders import Order, Purse, new_body
from bench.process import Server, cores, cpu_seconds, pin, server
from bench.sample import verify_sample
from bench.sellers import PATH, SELLERS

OUT: Final = Path(__file__).parent / "out"
CONNECTIONS: Final = (1, 16, 64)
PROFILED_CONNECTIONS: Final = 16
PROBE_REQUESTS: Final = 300
MAX_REQUESTS: Final = 12_000
"""Of one round: signing more would take longer than sending them."""
SAMPLE: Final = 5
"""Answers of ours per round that are verified completely afterwards."""

_FACILITATOR: Final = "bench.stub_facilitator"


class Measuring:
    """Rounds against running sellers."""

    def __init__(self, sellers: Mapping[str, Server], facilitator: Server) -> None:
        self._sellers = sellers
        self._facilitator = facilitator
        self._purses = {name: _purse(seller) for name, seller in sellers.items() if name != "bare"}
        self.failed = 0
        self.complaints: list[str] = []
        self.verified = 0

    def orders(self, name: str, count: int) -> list[Order]:
        purse = self._purses.get(name)
        return [Order(new_body(), None if purse is None else purse.sign().header) for _ in range(count)]

    async def round(self, name: str, count: int, connections: int) -> dict[str, float]:
        """One round; `busy` is the share of core 1 that load generator and facilitator took."""
        seller, orders = self._sellers[name], self.orders(name, count)
        helpers = (self._facilitator.pid, os.getpid())
        before = cpu_seconds(seller.pid), sum(map(cpu_seconds, helpers))
        found = await run_round(seller.port, orders, connections, keep=SAMPLE if name == "ours" else 0)
        after = cpu_seconds(seller.pid), sum(map(cpu_seconds, helpers))
        self._note(name, found)
        if name == "ours":
            await self._verify(seller.url, orders, found)
        return {
            "rps": found.per_second,
            "p50_ms": found.percentile(50),
            "p99_ms": found.percentile(99),
            "cpu_us": (after[0] - before[0]) / count * 1e6,
            "busy": (after[1] - before[1]) / found.seconds,
        }

    def _note(self, name: str, found: Round) -> None:
        self.failed += found.failed
        self.complaints += [f"{name}: {words}" for words in found.complaints]
        if not found.latencies:
            raise RuntimeError(f"{name} answered nothing: {found.complaints}")

    async def _verify(self, url: str, orders: list[Order], found: Round) -> None:
        for verdict in await verify_sample(url, orders, found.kept):
            wrong = [check for check in verdict.checks if check.status is Status.FAIL]
            if wrong or not verdict.acceptable:
                raise RuntimeError(f"an answer of ours does not hold: {wrong or verdict.result}")
            self.verified += 1


def _purse(seller: Server) -> Purse:
    """Signs payments of what this seller asks."""
    headers = {"content-type": "application/json"}
    unpaid = httpx.post(seller.url + PATH, content=new_body(), headers=headers, trust_env=False)
    if unpaid.status_code != httpx.codes.PAYMENT_REQUIRED:
        raise RuntimeError(f"a seller answers {unpaid.status_code} instead of 402: {unpaid.text[:300]}")
    return Purse(json.loads(base64.b64decode(unpaid.headers["payment-required"])))


async def measure(seconds: float, rounds: int) -> dict[str, Any]:
    """The document that is written; prints its table."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tollseal-bench-"))
        facilitator = stack.enter_context(server(_FACILITATOR))
        arguments = ("--facilitator", facilitator.url, "--directory", directory)
        sellers = {name: stack.enter_context(server("bench.sellers", name, *arguments)) for name in SELLERS}
        pinned = cores() > 1
        pin(1)  # now: what a process starts inherits its cores
        measuring = Measuring(sellers, facilitator)
        counts = {}
        for name in SELLERS:
            await measuring.round(name, PROBE_REQUESTS, 16)  # everything has been imported and compiled once
            probed = await measuring.round(name, PROBE_REQUESTS, 16)
            counts[name] = min(MAX_REQUESTS, max(PROBE_REQUESTS, int(probed["rps"] * seconds)))
        found: dict[str, Any] = {}
        for connections in CONNECTIONS:
            each: dict[str, list[dict[str, float]]] = {name: [] for name in SELLERS}
            for _ in range(rounds):
                for name in SELLERS:
                    each[name].append(await measuring.round(name, counts[name], connections))
            found[str(connections)] = _summary(each)
            _print_row(connections, found[str(connections)])
        print(f"failed requests: {measuring.failed}; answers of ours verified completely: {measuring.verified}")
        for words in measuring.complaints[:10]:
            print(f"  {words!r}")
        return {
            "peer": "x402 Python SDK's FastAPI middleware",
            "trust": "the facilitator's word, on both sides; no chain is asked",
            "rounds": rounds,
            "requests_per_round": counts,
            "cores": "sellers on all, load generator and facilitator on one" if pinned else "one for all",
            "failed": measuring.failed,
            "verified": measuring.verified,
            "connections": found,
        }


def _summary(each: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, measured in each.items():
        medians = {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        row[name] = {
            key: round(value, 3 if key.endswith("_ms") or key == "busy" else 1) for key, value in medians.items()
        }
    row["rps_ratio"] = round(row["ours"]["rps"] / row["sdk"]["rps"], 2)
    row["p99_ratio"] = round(row["ours"]["p99_ms"] / row["sdk"]["p99_ms"], 3)
    return row


def _print_head() -> None:
    print(
        f"{'connections':>11} {'seller':8}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU us/req':>12}{'core 1 busy':>13}"
    )


def _print_row(connections: int, row: Mapping[str, Any]) -> None:
    for name in SELLERS:
        one = row[name]
        print(
            f"{connections:>11} {name:8}{one['rps']:>9.0f}{one['p50_ms']:>9.2f}{one['p99_ms']:>9.2f}"
            f"{one['cpu_us']:>12.0f}{one['busy']:>13.0%}"
        )
    print(f"{'':11} ours/sdk: {row['rps_ratio']} times the throughput, {row['p99_ratio']} of the p99")


async def profile(seconds: float, dump: Path) -> None:
    """Ours alone under the profiler, at `PROFILED_CONNECTIONS`; what it shows is the thread of the event loop."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tollseal-bench-"))
        facilitator = stack.enter_context(server(_FACILITATOR))
        arguments = ("--facilitator", facilitator.url, "--directory", directory, "--profile", str(dump))
        ours = stack.enter_context(server("bench.sellers", "ours", *arguments))
        pin(1)
        measuring = Measuring({"ours": ours}, facilitator)
        probed = await measuring.round("ours", PROBE_REQUESTS, PROFILED_CONNECTIONS)
        count = max(PROBE_REQUESTS, int(probed["rps"] * seconds))
        _print_head()
        row = await measuring.round("ours", count, PROFILED_CONNECTIONS)
        print(f"{PROFILED_CONNECTIONS:>11} profiled{row['rps']:>9.0f}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}")
    stats = pstats.Stats(str(dump), stream=sys.stdout).strip_dirs()
    stats.sort_stats("tottime").print_stats(45)
    stats.sort_stats("cumulative").print_stats(70)
    print(f"profile of {count + PROBE_REQUESTS} paid requests (and the checks of a few): {dump}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What being paid costs.")
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long one round takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=Path, metavar="FILE", help="profile ours instead, and write the dump here")
    given = parser.parse_args()
    if given.profile is not None:
        uvloop.run(profile(given.seconds, given.profile))
        return
    print("same stub facilitator, same stub backend; both sellers take the facilitator's word, no chain is asked")
    _print_head()
    result = uvloop.run(measure(given.seconds, given.rounds))
    OUT.mkdir(exist_ok=True)
    path = OUT / "paid.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    charts = draw_paid(result["connections"], OUT)
    print(f"median of {given.rounds} rounds; written: {', '.join(str(one) for one in (path, *charts))}")


if __name__ == "__main__":
    main()
