"""The three sellers that `bench.paid` compares, each in a process of its own: the same work, for nothing or for money.

``bare``: a FastAPI endpoint that summarises, without payment.
``sdk``: the same application behind the middleware of the official x402 SDK.
``ours``: the service itself: ledger on disk, a remote facilitator, receipts, x402 receipts and signed responses.

All three take the same requests, ask the same stub backend through the same summarizer, and run under uvicorn with
uvloop and httptools. `sdk` and `ours` ask the same stub facilitator and take its word: neither looks at a chain.

    python -m bench.sellers SELLER --facilitator URL --directory DIR [--profile FILE]
"""

import argparse
import asyncio
import cProfile
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp
from x402 import x402ResourceServer
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm.exact import register_exact_evm_server

from attestation.enclave.keyring import KeyRing
from attestation.enclave.simulated import SimulatedEnclave
from attestation.keyset import build_keyset
from attestation.manifest import manifest_digest
from attestation.onchain import AgentReference
from attestation.registry.records import KeyRecord, key_name
from bench.process import serve_until_terminated
from bench.stub_backend import StubBackend
from service.app import Service
from service.boot import registration_file, unix_now
from service.build import compute_manifest
from service.call import PaidCalls
from service.credentials import Credentials, Identity, Keyholder, expiry_margin
from service.http.answers import Usage
from service.http.summarize import SummarizeRequest, Summary
from service.inference.admission import Admission
from service.inference.summary import Summarizer, SummaryOptions
from service.payment.ledger import Ledger
from service.payment.remote import RemoteFacilitator
from service.readiness import Readiness
from service.rotation import Rotation, rotation_lead
from service.server import listening, serve, spare_what_stays
from service.settings import Settings

SELLERS: Final = ("bare", "sdk", "ours")
PATH: Final = "/v1/summarize"
PAY_TO: Final = "0x" + "22" * 20
SLOTS: Final = 64
"""As many calls at a time as there are connections at most: nothing waits for the model."""

_AGENT: Final = AgentReference(84532, "0x" + "8a" * 20, 0)


def bare() -> FastAPI:
    """What is sold, without anything that sells it."""
    app = FastAPI()
    backend = StubBackend()
    summarizer = Summarizer(backend)

    @app.post(PATH)
    async def summarize(wanted: SummarizeRequest) -> Summary:
        options = SummaryOptions(style=wanted.style, max_words=wanted.max_words, language=wanted.language)
        result = await summarizer.run(await summarizer.plan(wanted.document, options))
        return Summary(
            id=f"sum-{secrets.token_hex(16)}",
            created=int(time.time()),
            model=backend.identity.name,
            summary=result.text,
            finish_reason=result.finish_reason,
            usage=Usage(
                prompt_tokens=result.prompt_tokens,
                completion_tokens=result.completion_tokens,
                total_tokens=result.prompt_tokens + result.completion_tokens,
            ),
        )

    return app


def behind_the_sdk(facilitator: str) -> FastAPI:
    """The same application behind the SDK's middleware, set up as its documentation says."""
    app = bare()
    server = x402ResourceServer(HTTPFacilitatorClient(FacilitatorConfig(url=facilitator)))
    register_exact_evm_server(server, networks="eip155:84532")
    option = PaymentOption(scheme="exact", pay_to=PAY_TO, price="$0.01", network="eip155:84532")
    routes = {f"POST {PATH}": RouteConfig(accepts=option, description="A summary of one document.")}
    app.add_middleware(PaymentMiddlewareASGI, routes=routes, server=server)
    return app


@asynccontextmanager
async def ours(facilitator_url: str, directory: Path) -> AsyncIterator[Service]:
    """The service as `service.boot` makes it, but without a chain: no agent is registered, and no node is asked."""
    settings = Settings.model_validate(
        {
            "rpc_url": "http://127.0.0.1:1",
            "operator_key": "0x" + "77" * 32,
            "pay_to": PAY_TO,
            "agent_owner": "0x" + "44" * 20,
            "enclave": "simulated:",
            "facilitator": facilitator_url,
            "ledger_url": f"sqlite:///{directory / 'ledger.db'}",
            "slots": SLOTS,
            "queue": SLOTS,
        }
    )
    backend, enclave, keys = StubBackend(), SimulatedEnclave("simulated:"), KeyRing.generate()
    manifest = compute_manifest(settings, backend.identity, tee_type=enclave.tee_type)
    lifetime = settings.keyset_lifetime_seconds
    keyset = build_keyset(subject=str(_AGENT), not_after=unix_now() + lifetime, keys=keys.public_keys())
    identity = Identity(keyset=keyset, manifest_digest=manifest_digest(manifest), agent=_AGENT)
    keyholder = Keyholder(
        Credentials(keys, identity, key_name(settings.replica)), margin_seconds=expiry_margin(lifetime), clock=unix_now
    )
    async with AsyncExitStack() as stack:
        ledger = await Ledger.open(settings.ledger_url, owner=settings.replica)
        stack.push_async_callback(ledger.close)
        facilitator = RemoteFacilitator(url=facilitator_url, assets=[settings.payees[0].asset])
        stack.push_async_callback(facilitator.close)
        calls = PaidCalls(ledger=ledger, facilitator=facilitator, clock=unix_now, window_seconds=60)
        stack.push_async_callback(calls.drain)
        yield Service(
            settings=settings,
            enclave=enclave,
            keyholder=keyholder,
            rotation=Rotation(
                keyholder,
                _published,
                replica=settings.replica,
                lifetime_seconds=lifetime,
                lead_seconds=rotation_lead(lifetime, settings.payment_timeout_seconds),
                clock=unix_now,
            ),
            manifest=manifest,
            registration=partial(registration_file, settings, hardware_attested=False),
            backend=backend,
            summarizer=Summarizer(backend, max_document_bytes=settings.max_document_bytes),
            admission=Admission(settings.slots, settings.queue),
            facilitator=facilitator,
            readiness=Readiness(facilitator, backend),
            ledger=ledger,
            calls=calls,
            tls=None,
            clock=unix_now,
        )


async def _published(_slot: str, _record: KeyRecord) -> None:
    """Nobody is told: no key is replaced within a benchmark."""


@asynccontextmanager
async def _served_plainly(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """The application under uvicorn, with the same loop and parser as ours."""
    server = uvicorn.Server(
        uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_level="warning", access_log=False)
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    yield  # it listens already; who connects before it accepts waits a moment
    server.should_exit = True
    await task


@asynccontextmanager
async def _selling(name: str, facilitator: str, directory: Path, listener: socket.socket) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        serving: AbstractAsyncContextManager[None]
        if name == "ours":
            serving = serve(await stack.enter_async_context(ours(facilitator, directory)), [listener])
        else:
            serving = _served_plainly(bare() if name == "bare" else behind_the_sdk(facilitator), listener)
        await stack.enter_async_context(serving)
        yield


async def main(name: str, facilitator: str, directory: Path, profile: cProfile.Profile | None) -> None:
    with listening(0) as listener:
        async with _selling(name, facilitator, directory, listener):
            if name == "ours":
                spare_what_stays()  # as `tollseal serve` does
            print(f"listening {listener.getsockname()[1]}", flush=True)
            if profile is not None:
                profile.enable()
            await serve_until_terminated()
            if profile is not None:
                profile.disable()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seller", choices=SELLERS)
    parser.add_argument("--facilitator", required=True)
    parser.add_argument("--directory", required=True, type=Path)
    parser.add_argument("--profile", type=Path, help="write a cProfile dump of the event loop's thread here")
    given = parser.parse_args()
    recorder = None if given.profile is None else cProfile.Profile()
    uvloop.run(main(given.seller, given.facilitator, given.directory, recorder))
    if recorder is not None:
        recorder.dump_stats(given.profile)
