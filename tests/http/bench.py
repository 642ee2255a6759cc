"""A whole service without a chain: everything is the product's own but facilitator, model and clock."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from attestation.enclave.keyring import KeyRing
from attestation.enclave.simulated import SimulatedEnclave
from attestation.keyset import build_keyset
from attestation.manifest import manifest_digest
from attestation.onchain import AgentReference
from attestation.registry.records import KeyRecord, key_name
from service.app import Service, create_app
from service.boot import registration_file
from service.build import compute_manifest
from service.call import PaidCalls
from service.credentials import Credentials, Identity, Keyholder, expiry_margin
from service.inference.admission import Admission
from service.inference.backend import Backend
from service.inference.summary import Summarizer
from service.payment.facilitator import Facilitator
from service.payment.ledger import Ledger
from service.readiness import Readiness
from service.rotation import PublishKey, Rotation, rotation_lead
from service.settings import Settings
from tests.http.fakes import Clock, ScriptedFacilitator, StubBackend
from tests.http.world import NOW, Caller, LedgerFile

AGENT: Final = AgentReference(84532, "0x" + "8a" * 20, 0)


def identity_of(keys: KeyRing, *, manifest: str = "sha256:" + "5e" * 32, not_after: int = NOW + 86_400) -> Identity:
    """Who answers, under these keys."""
    keyset = build_keyset(subject=str(AGENT), not_after=not_after, keys=keys.public_keys())
    return Identity(keyset=keyset, manifest_digest=manifest, agent=AGENT)


async def published(slot: str, record: KeyRecord) -> None:
    """A registry that takes every key."""


@dataclass
class Bench:
    """A service in this process whose chain and model do as told."""

    service: Service
    facilitator: ScriptedFacilitator
    backend: StubBackend
    clock: Clock
    ledger: LedgerFile
    caller: Caller


def bench_settings(ledger: Path, **more: object) -> Settings:
    return Settings.model_validate(
        {
            "rpc_url": "http://127.0.0.1:1",
            "operator_key": "0x" + "77" * 32,
            "pay_to": "0x" + "22" * 20,
            "agent_owner": "0x" + "44" * 20,
            "enclave": "simulated:",
            "ledger_url": f"sqlite:///{ledger}",
            **more,
        }
    )


@asynccontextmanager
async def bench(
    ledger: Path,
    *,
    keys: KeyRing | None = None,
    facilitator: ScriptedFacilitator | None = None,
    wrap: Callable[[Service], Service] = lambda service: service,
    not_after: int = NOW + 86_400,
    base_url: str = "http://summaries.test",
    publish: PublishKey = published,
    **more: object,
) -> AsyncIterator[Bench]:
    """A service without a chain, and somebody to call it. `wrap` may exchange its parts; `more` are settings."""
    settings, clock = bench_settings(ledger, **more), Clock()
    keys, backend, facilitator = keys or KeyRing.generate(), StubBackend(), facilitator or ScriptedFacilitator()
    enclave = SimulatedEnclave("simulated:")
    manifest = compute_manifest(settings, backend.identity, tee_type=enclave.tee_type)
    identity = identity_of(keys, manifest=manifest_digest(manifest), not_after=not_after)
    lifetime = settings.keyset_lifetime_seconds
    keyholder = Keyholder(
        Credentials(keys, identity, key_name(settings.replica)), margin_seconds=expiry_margin(lifetime), clock=clock
    )
    book = await Ledger.open(settings.ledger_url, owner=settings.replica)
    service = wrap(
        Service(
            settings=settings,
            enclave=enclave,
            keyholder=keyholder,
            rotation=Rotation(
                keyholder,
                publish,
                replica=settings.replica,
                lifetime_seconds=lifetime,
                lead_seconds=rotation_lead(lifetime, settings.payment_timeout_seconds),
                clock=clock,
            ),
            manifest=manifest,
            registration=partial(registration_file, settings, hardware_attested=False),
            backend=backend,
            summarizer=Summarizer(backend, max_document_bytes=settings.max_document_bytes),
            admission=Admission(settings.slots, settings.queue),
            facilitator=facilitator,
            readiness=asked_every_time(facilitator, backend),
            ledger=book,
            calls=paid_calls(book, facilitator, clock),
            tls=None,
            clock=clock,
        )
    )
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as http:
        caller = Caller(http, service.identity.keyset, "0x" + "11" * 32, clock)
        yield Bench(service, facilitator, backend, clock, LedgerFile(ledger), caller)
        await service.calls.drain()
    await book.close()


def paid_calls(ledger: Ledger, facilitator: Facilitator, clock: Callable[[], int]) -> PaidCalls:
    return PaidCalls(ledger=ledger, facilitator=facilitator, clock=clock, window_seconds=60)


def with_facilitator(service: Service, facilitator: Facilitator) -> Service:
    """The same service over another facilitator."""
    calls = paid_calls(service.ledger, facilitator, service.clock)
    readiness = asked_every_time(facilitator, service.backend)
    return replace(service, facilitator=facilitator, readiness=readiness, calls=calls)


def asked_every_time(facilitator: Facilitator, backend: Backend) -> Readiness:
    """Readiness without a memory, for tests that change what it depends on."""
    return Readiness(facilitator, backend, fresh_seconds=0, stale_seconds=0)
