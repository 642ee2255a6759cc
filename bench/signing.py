"""What a signature on every response costs, against the same FastAPI application without one.

Rounds of both alternate, so that whatever else the machine does hits both; the median round counts. Writes
bench/out/signing.json: {"peer", "rounds", "requests_per_round", "peer_us", "ours_us", "ratio", "verify_us"}.
"""

import asyncio
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx
from fastapi import FastAPI

from attestation.enclave.keyring import KeyRing
from attestation.http_signature import Exchange, sign_response, verify_response
from attestation.keyset import ALGO_HTTP, build_keyset
from attestation.onchain import AgentReference
from service.boot import unix_now
from service.credentials import Credentials, Identity, Keyholder
from service.http.signing import SigningMiddleware

ROUNDS: Final = 7
REQUESTS: Final = 300
OUT: Final = Path(__file__).parent / "out" / "signing.json"


async def main() -> None:
    bare = FastAPI()

    @bare.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    keys = KeyRing.generate()
    keyset = build_keyset(subject=None, not_after=1 << 40, keys=keys.public_keys())
    identity = Identity(keyset, "sha256:" + "0" * 64, AgentReference(1, "0x" + "0" * 40, 0))
    keyholder = Keyholder(Credentials(keys, identity, "tee.key.bench"), margin_seconds=0, clock=unix_now)
    signed = SigningMiddleware(bare, keyholder=keyholder, public_origin=None, clock=unix_now)
    rounds: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(ROUNDS):
        for name, app in (("peer", bare), ("ours", signed)):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://bench") as client:
                started = time.perf_counter()
                for _ in range(REQUESTS):
                    (await client.get("/healthz")).raise_for_status()
                rounds[name].append((time.perf_counter() - started) / REQUESTS * 1e6)
    peer, ours = (statistics.median(rounds[name]) for name in ("peer", "ours"))
    result = {
        "peer": "the same FastAPI application, unsigned",
        "rounds": ROUNDS,
        "requests_per_round": REQUESTS,
        "peer_us": round(peer),
        "ours_us": round(ours),
        "ratio": round(ours / peer, 2),
        "verify_us": round(verifying(keys)),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{'response, unsigned':24}{result['peer_us']:>8} us")
    print(f"{'response, signed':24}{result['ours_us']:>8} us   {result['ratio']} x")
    print(f"{'checking a signature':24}{result['verify_us']:>8} us")
    print(f"median of {ROUNDS} rounds of {REQUESTS} requests, in process; {OUT.relative_to(Path.cwd())}")


def verifying(keys: KeyRing) -> float:
    """Microseconds to verify one response; median over the rounds."""
    key = next(key for key in keys.public_keys() if key.algo == ALGO_HTTP)
    exchange = Exchange("GET", "http://bench/healthz", 200, {"content-type": "application/json"}, b"{}")
    exchange = replace(exchange, headers={**exchange.headers, **sign_response(exchange, keys, created=1)})
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(REQUESTS):
            verify_response(exchange, key, now=1)
        rounds.append((time.perf_counter() - started) / REQUESTS * 1e6)
    return statistics.median(rounds)


if __name__ == "__main__":
    asyncio.run(main())
