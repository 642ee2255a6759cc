"""`python -m bench` runs all measurements in turn, `python -m bench NAME...` those that are named."""

import subprocess
import sys
from typing import Final

BENCHES: Final = ("signing", "ledger", "paid", "settlement")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    for name in names or BENCHES:
        print(f"\n== {name}", flush=True)
        # A process of its own: what one has warmed up or pinned must not help or hurt the next.
        done = subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False)  # noqa: S603 - the words are ours
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
