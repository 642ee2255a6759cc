"""`python -m bench.torture [--size ci|full] [SCENARIO...]`: break everything, then count. Ends with 1 if a count is
wrong."""

import argparse
import asyncio
import dataclasses
import secrets
import sys
import time
from typing import Final

from bench.process import server
from bench.torture.scenarios import SCENARIOS
from bench.torture.stage import SIZES, Size, account, stage
from bench.torture.tally import Tally
from bench.torture.world import Zygote

SHOWN: Final = 5
"""So many wrong counts of a scenario are told in full."""


async def run(names: list[str], size: Size, seed: int) -> bool:
    """Whether every count is right; each is printed."""
    good = True
    zygote = Zygote()
    try:
        with server("bench.torture.model") as model:
            print(
                f"{'scenario':28}{'payments':>9}{'charged':>9}{'answered':>9}{'refused':>9}{'twice':>7}{'lost':>6}{'s':>7}"
            )
            for name in names:
                began = time.monotonic()
                async with stage(size, model, zygote, seed) as on:
                    await SCENARIOS[name](on)
                    if on.skipped is not None:
                        print(f"{name:28} skipped: {on.skipped}", flush=True)
                        continue
                    tally = await account(on)
                _print(name, tally, time.monotonic() - began)
                for note, value in on.notes.items():
                    print(f"    {note}: {value}")
                if on.crowd is not None:
                    print(f"    answers verified: {on.crowd.verified}; responses: {dict(on.crowd.seen.most_common())}")
                for words in tally.wrong[:SHOWN]:
                    print(f"    WRONG: {words}")
                if len(tally.wrong) > SHOWN:
                    print(f"    and {len(tally.wrong) - SHOWN} more")
                good = good and not tally.wrong
    finally:
        zygote.close()
    return good


def _print(name: str, tally: Tally, seconds: float) -> None:
    print(
        f"{name:28}{tally.payments:>9}{tally.charged:>9}{tally.answered:>9}{tally.refused:>9}"
        f"{tally.twice:>7}{tally.lost:>6}{seconds:>7.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Break everything while being paid, then count.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--replays", type=int, help="how many payments replayed-payments presents again")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    given = parser.parse_args()
    if unknown := set(given.scenarios) - SCENARIOS.keys():
        parser.error(f"no scenario is called {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    size = SIZES[given.size]
    if given.replays is not None:
        size = dataclasses.replace(size, replays=given.replays)
    print(f"size {given.size}, seed {given.seed}")
    if not asyncio.run(run(given.scenarios or list(SCENARIOS), size, given.seed)):
        print("a count is wrong")
        sys.exit(1)
    print("every charge has its answer, none was made twice, none was lost")


if __name__ == "__main__":
    main()
