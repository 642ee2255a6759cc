"""From settings to a service: weights, manifest, payments, ledger, keys, agent, in that order.

Anything that is not as it must be ends the start with a sentence that says what and why. Nothing is sold by halves:
what the chain says of the agent may take its time, and until it is right the service answers and sells nothing.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from eth_account import Account
from eth_account.signers.local import LocalAccount

from attestation.enclave import Enclave, open_enclave
from attestation.enclave.keyring import KeyRing
from attestation.errors import EnclaveError, TollsealError
from attestation.keyset import build_keyset
from attestation.manifest import check_pinned, manifest_digest
from attestation.onchain import AgentReference
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.records import key_name
from attestation.registry.registration import AgentReference as RegistrationEntry
from attestation.registry.registration import Description, build_registration, services_at
from service.app import Service
from service.build import compute_manifest
from service.call import LEASE_SECONDS, PaidCalls
from service.credentials import Credentials, Identity, Keyholder, expiry_margin
from service.facilitators import open_facilitator
from service.http import paths
from service.inference.admission import Admission
from service.inference.backend import Timeouts
from service.inference.backends import BackendOptions, open_backend
from service.inference.summary import Summarizer
from service.inference.weights import Progress, silent
from service.payment.ledger import Ledger
from service.payment.local import LocalFacilitator
from service.payment.networks import is_mainnet_network
from service.payment.reconcile import Reconciler
from service.payment.routing import Router
from service.publication import AgentPublication, Wanted
from service.readiness import Readiness
from service.rotation import Rotation, rotation_lead
from service.settings import Settings
from service.validation import ValidationRequests

SETTLEMENT_SECONDS: Final = 60
"""What an authorization must leave for its settlement, on top of the time the answer may take."""


KEEP_ALIVE_SECONDS: Final = LEASE_SECONDS / 4
"""How often the leases of running calls are renewed."""


class BootError(TollsealError):
    """The service must not start."""


def _silent(_: str) -> None:
    pass


def unix_now() -> int:
    """The clock of a running service, in unix seconds."""
    return int(time.time())


@asynccontextmanager
async def boot(
    settings: Settings,
    *,
    wait_for_agent: bool = True,
    clock: Callable[[], int] = unix_now,
    report: Callable[[str], None] = _silent,
    progress: Progress = silent,
) -> AsyncIterator[Service]:
    """A service that is ready to serve; on leaving, running calls are finished and everything is closed.

    Args:
        wait_for_agent: return only when the agent is registered, and fail when a first try fails. Without, the service
            serves meanwhile, sells nothing, and goes on trying.
        settings: the service's settings.
        clock: unix seconds.
        report: is told each step in a few words.
        progress: is told how far a download of weights is.

    Raises:
        BootError: the settings do not belong together, or the chain is not as they say.
        TollsealError: enclave, manifest or registry are not as they must be.
        BackendError, BackendURIError, WeightsError, UnknownModel: the model cannot serve.
        LedgerError: the ledger cannot be used.
    """
    enclave = open_enclave(settings.enclave)
    refuse_mainnet(enclave, settings)
    operator = _account(settings)
    async with AsyncExitStack() as stack:
        report("loading the model and hashing its weights")
        backend = await open_backend(settings.backend, _backend_options(settings, progress))
        stack.push_async_callback(backend.close)
        manifest = compute_manifest(settings, backend.identity, tee_type=enclave.tee_type)
        digest = manifest_digest(manifest)
        check_pinned(digest, settings.pinned_manifest)
        report(f"build {digest}")

        facilitator = open_facilitator(settings)
        stack.push_async_callback(facilitator.close)
        local = [one for one in facilitator.all if isinstance(one, LocalFacilitator)]
        served = _served(settings, local)
        if problems := await facilitator.ready():
            raise BootError("payments could not be settled: " + "; ".join(problems))
        for one in local:
            if not await one.batches():
                report(f"{one.network} has no Multicall3: each payment is settled in a transaction of its own")

        # Before the chain is told of keys: without a ledger they would never serve anybody.
        ledger = await Ledger.open(settings.ledger_url, owner=settings.replica, retention=settings.retention)
        stack.push_async_callback(ledger.close)

        keys = KeyRing.generate()
        stack.callback(keys.forget)
        tls = _tls(settings, keys, now=clock())
        lifetime = settings.keyset_lifetime_seconds
        # Of no agent yet: which one it is, the chain will say.
        keyset = build_keyset(
            subject=None,
            not_after=clock() + lifetime,
            keys=keys.public_keys(),
            tls_spki_sha256=() if tls is None else (tls[0],),
        )
        identity = Identity(keyset=keyset, manifest_digest=digest, agent=None)
        keyholder = Keyholder(
            Credentials(keys, identity, key_name(settings.replica)),
            margin_seconds=expiry_margin(lifetime),
            clock=clock,
        )
        stack.callback(keyholder.forget)
        reconciler = Reconciler(ledger, facilitator, clock, interval_seconds=settings.reconcile_seconds)
        await reconciler.once(owner=settings.replica)
        report("registering the agent")
        publication = _publication(settings, keyholder, facilitator, operator, clock=clock, report=report)
        stack.push_async_callback(publication.retire)
        await stack.enter_async_context(_meanwhile(publication.run()))
        if wait_for_agent:
            await publication.first_try()
        rotation = Rotation(
            keyholder,
            publication.publish_key,
            replica=settings.replica,
            lifetime_seconds=lifetime,
            lead_seconds=rotation_lead(lifetime, settings.payment_timeout_seconds),
            clock=clock,
        )
        calls = PaidCalls(
            ledger=ledger,
            facilitator=facilitator,
            clock=clock,
            window_seconds=min(SETTLEMENT_SECONDS, settings.payment_timeout_seconds // 2),
            settle=settings.settle,
        )
        stack.push_async_callback(calls.drain)
        for work in (rotation.run(), reconciler.run(), _kept_alive(calls)):
            await stack.enter_async_context(_meanwhile(work))
        if (asking := _validation_requests(settings, keyholder, facilitator, operator)) is not None:
            await stack.enter_async_context(_meanwhile(asking.run()))
        readiness = Readiness(facilitator, backend)
        stack.push_async_callback(readiness.close)
        yield Service(
            settings=settings,
            enclave=enclave,
            keyholder=keyholder,
            rotation=rotation,
            publication=publication,
            manifest=manifest,
            registration=partial(registration_file, settings, hardware_attested=enclave.is_hardware),
            backend=backend,
            summarizer=Summarizer(backend, max_document_bytes=settings.max_document_bytes),
            admission=Admission(settings.slots, settings.queue),
            facilitator=facilitator,
            served=served,
            readiness=readiness,
            ledger=ledger,
            calls=calls,
            tls=None if tls is None else tls[1],
            clock=clock,
        )


def refuse_mainnet(enclave: Enclave, settings: Settings) -> None:
    """A simulated enclave never meets real money or a real registry; there is no override.

    Raises:
        EnclaveError: it would.
    """
    if enclave.is_hardware:
        return
    payments = {option.network for option in settings.payment_options}
    named = [("payment network", network) for network in sorted(payments)]
    for name, network in (*named, ("registry", settings.registry_network)):
        if is_mainnet_network(network):
            raise EnclaveError(
                f"a simulated enclave does not start with the {name} {network}: its evidence proves nothing",
                hint="Use a testnet or a local chain, or run inside a TEE.",
            )


def registration_file(settings: Settings, agent: AgentReference | None, *, hardware_attested: bool) -> dict[str, Any]:
    """The agent's ERC-8004 registration file, as served and as its URI points at. Without an agent it names none."""
    return build_registration(
        Description(settings.agent_name, settings.agent_description, settings.origin + paths.AGENT_ICON),
        services=services_at(
            settings.origin,
            paid=[paths.SUMMARIZE, *([paths.CHAT] if settings.chat else [])],
            page=paths.AGENT_PAGE,
        ),
        registrations=[]
        if agent is None
        else [RegistrationEntry(agent_id=agent.agent_id, agent_registry=agent.registry_id)],
        hardware_attested=hardware_attested,
    )


def _registry(settings: Settings) -> IdentityReader:
    return IdentityReader(
        settings.registry_rpc_url or settings.rpc_url,
        settings.registry_chain_id,
        settings.registry_address,
        from_block=settings.registry_from_block,
    )


def _publication(
    settings: Settings,
    keyholder: Keyholder,
    facilitator: Router,
    operator: LocalAccount,
    *,
    clock: Callable[[], int],
    report: Callable[[str], None],
) -> AgentPublication:
    """Keeps the agent's records."""
    wanted = Wanted(
        agent_uri=settings.origin + paths.REGISTRATION,
        owner=settings.agent_owner,
        agent_id=settings.agent_id,
        mint=settings.mint_agent,
        replica=settings.replica,
        manifest_digest=keyholder.current.identity.manifest_digest,
        lifetime_seconds=settings.keyset_lifetime_seconds,
        on_stop=settings.keys_on_stop,
    )
    return AgentPublication(
        wanted,
        keyholder,
        registry=partial(_registry, settings),
        operator=operator,
        confirmations=settings.registry_confirmations,
        exclusive=_alone(settings, facilitator),
        clock=clock,
        report=report,
    )


def _validation_requests(
    settings: Settings, keyholder: Keyholder, facilitator: Router, operator: LocalAccount
) -> ValidationRequests | None:
    """Asks for validations, where that is wanted and the chain has where to ask."""
    _, address = settings.beside_registry
    if not settings.ask_validators or address is None:
        return None
    return ValidationRequests(
        [validator.lower() for validator in settings.ask_validators],
        keyholder,
        endpoint=settings.origin,
        address=address,
        registry=partial(_registry, settings),
        operator=operator,
        exclusive=_alone(settings, facilitator),
    )


def _alone(settings: Settings, facilitator: Router) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Holds the operator's account: the facilitator may send from the same one at the same time."""
    settling = facilitator.on(settings.registry_network)
    return settling.exclusive if isinstance(settling, LocalFacilitator) else nullcontext


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Work that goes on beside the service, and ends before it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _kept_alive(calls: PaidCalls) -> None:
    while True:
        await asyncio.sleep(KEEP_ALIVE_SECONDS)
        await calls.keep_alive()


def _tls(settings: Settings, keys: KeyRing, *, now: int) -> tuple[str, ssl.SSLContext] | None:
    """The TLS key's hash and what serves with it, when TLS ends in the enclave."""
    if settings.tls == "none":
        return None
    return keys.tls_server(host=urlsplit(settings.origin).hostname or settings.host, now=now)


def _backend_options(settings: Settings, progress: Progress) -> BackendOptions:
    key = settings.backend_api_key
    return BackendOptions(
        cache_dir=settings.cache_dir / "models",
        threads=settings.threads,
        timeouts=Timeouts(
            settings.inference_timeout_seconds,
            first_token=settings.first_token_timeout_seconds,
            between_tokens=settings.next_token_timeout_seconds,
        ),
        context_size=settings.context_size,
        progress=progress,
        ollama_models_dir=settings.ollama_models_dir,
        api_key=None if key is None else key.get_secret_value(),
    )


def _served(settings: Settings, local: Sequence[LocalFacilitator]) -> tuple[LocalFacilitator, ...]:
    """The facilitators that others may use too."""
    if settings.serve_facilitator and not local:
        raise BootError("serve_facilitator is set, but no facilitator is local; only our own can be served")
    return tuple(local) if settings.serve_facilitator else ()


def _account(settings: Settings) -> LocalAccount:
    try:
        account: LocalAccount = Account.from_key(settings.operator_key.get_secret_value())
    except Exception:
        # The library's message may quote the key.
        raise BootError("operator_key is not a private key (0x and 64 hex digits)") from None
    return account
