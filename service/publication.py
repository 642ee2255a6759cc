"""The agent of a running service on the chain: found or made, its records published, watched, and cleared at the end.

Serving does not wait for it. Until the registry is seen to show this service's key, the service answers under a keyset
that names no agent, which no verifier takes for a registered one, and sells nothing: `/readyz` and the attestation
report say why. Whatever goes wrong is tried again, with growing pauses: an owner may still approve the operator, a node
may come back.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Literal

from eth_account.signers.local import LocalAccount

from attestation.errors import MalformedError, TollsealError
from attestation.keyset import Keyset, build_keyset
from attestation.onchain import AgentReference
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import RegistryError, RpcRefusedError, UnknownAgentError
from attestation.registry.publication import Desired, clear_keys, ensure_agent, publish, publish_key
from attestation.registry.records import (
    MANIFEST_KEY,
    SECOND_SLOT,
    KeyRecord,
    encode_key,
    encode_manifest,
    key_name,
    parse_key,
)
from attestation.registry.writer import IdentityWriter
from service.credentials import Credentials, Identity, Keyholder

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds between two tries to publish."""
WATCH_SECONDS: Final = 60.0
"""How often the registry is looked at once it shows the key."""
STOP_SECONDS: Final = 45.0
"""What clearing the keys may take of an orderly stop."""

NOT_YET: Final = "the agent is not registered yet"

OnStop = Literal["clear", "expire", "keep"]
"""What an orderly stop does with this replica's records: empties them, lets them end now, or leaves them."""

_log: Final = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the chain should say of this service.

    agent_uri: where the registration file is.
    owner: who shall own the agent.
    agent_id: the agent, when it is known.
    mint: whether one may be made.
    replica: this instance's name.
    manifest_digest: of the build.
    lifetime_seconds: of a keyset.
    on_stop: see `OnStop`.
    """

    agent_uri: str
    owner: str
    agent_id: int | None
    mint: bool
    replica: str
    manifest_digest: str
    lifetime_seconds: int
    on_stop: OnStop = "clear"


class AgentPublication:
    """Keeps the registry and one service's keys in agreement.

    Args:
        wanted: what the chain should say.
        keyholder: has credentials without an agent; gets those of the agent once the registry shows them.
        registry: opens the registry for one piece of work.
        operator: signs and pays for gas.
        exclusive: holds the operator's account for one piece of work, where somebody else in this process sends too.
        clock: unix seconds.
        report: is told each step in a few words.
    """

    def __init__(
        self,
        wanted: Wanted,
        keyholder: Keyholder,
        *,
        registry: Callable[[], IdentityReader],
        operator: LocalAccount,
        confirmations: int,
        exclusive: Callable[[], AbstractAsyncContextManager[None]],
        clock: Callable[[], int],
        report: Callable[[str], None],
    ) -> None:
        self._wanted = wanted
        self._keyholder = keyholder
        self._registry = registry
        self._operator = operator
        self._confirmations = confirmations
        self._exclusive = exclusive
        self._clock = clock
        self._report = report
        self._keysets: dict[str, Keyset] = {}
        self._ours: set[str] = set()
        self._tried = asyncio.Event()
        self._done = asyncio.Event()
        self._failure: Exception | None = None
        keyholder.hold_back(NOT_YET)

    async def run(self) -> None:
        """Publish, again and again until it is done; then watch, until cancelled."""
        pause = FIRST_PAUSE
        while not await self._try():
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self.watch()

    async def first_try(self) -> None:
        """Wait until the agent is registered, or a first try has failed.

        Raises:
            Exception: what the first try failed with.
        """
        await self._tried.wait()
        if self._failure is not None:
            raise self._failure

    async def registered(self) -> None:
        """Wait until the registry was seen to show this service's key."""
        await self._done.wait()

    async def publish_key(self, slot: str, record: KeyRecord) -> None:
        """Show a new key to the world, in a slot of this replica's.

        Raises:
            RegistryError: it could not be published, or the registry does not show it.
        """
        agent = self._keyholder.current.identity.registered_agent
        async with self._exclusive(), self._registry() as reader:
            self._ours.add(record.keyset_digest)
            await publish_key(self._writer(reader), agent.agent_id, slot, record)

    async def watch(self) -> None:
        """Look whether the registry still shows the current key, and stop or resume selling accordingly."""
        current = self._keyholder.current
        try:
            problem = await self._disagreement(current)
        except RegistryError as error:
            _log.warning("the registry could not be looked at (%s)", type(error).__name__)
            return
        if self._keyholder.current is current:  # else new keys were published meanwhile, which were read back
            self._keyholder.hold_back(problem)
            if problem is not None:
                _log.warning("nothing is sold: %s", problem)

    async def retire(self) -> None:
        """Leave no key of this process listed, as far as an orderly stop is to do that. A failure is logged."""
        if self._wanted.on_stop == "keep" or not self._ours:
            return
        agent = self._keyholder.current.identity.agent
        if agent is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS), self._exclusive(), self._registry() as reader:
                await self._retire(self._writer(reader), agent.agent_id)
        except (TollsealError, TimeoutError) as error:
            # No message: it may quote the node's URL with an access key in it.
            _log.warning("the keys of %s are still listed (%s)", self._wanted.replica, type(error).__name__)

    async def _retire(self, writer: IdentityWriter, agent_id: int) -> None:
        for slot in self._slots():
            record = _record(await writer.reader.get_metadata(agent_id, key_name(slot)))
            if record is None or record.keyset_digest not in self._ours:
                continue  # of another process under this name, which came after this one
            if self._wanted.on_stop == "clear":
                await clear_keys(writer, agent_id, [slot])
            elif record.expires_at > self._clock():
                await publish_key(writer, agent_id, slot, dataclasses.replace(record, expires_at=self._clock()))

    async def _try(self) -> bool:
        try:
            async with self._exclusive(), self._registry() as reader:
                await self._register(reader)
        except Exception as error:
            self._keyholder.hold_back(f"{NOT_YET}: {_problem(error)}")
            self._renew_provisional()
            _log.warning("%s", self._keyholder.problem)
            self._failure = self._failure or error
            return False
        else:
            self._failure = None
            self._done.set()
            return True
        finally:
            self._tried.set()

    async def _register(self, reader: IdentityReader) -> None:
        wanted, writer = self._wanted, self._writer(reader)
        manifest = {MANIFEST_KEY: encode_manifest(wanted.manifest_digest)}
        found = await ensure_agent(
            writer,
            agent_uri=wanted.agent_uri,
            owner=wanted.owner,
            agent_id=wanted.agent_id,
            mint=wanted.mint,
            metadata=manifest,
        )
        if found.withdrawn is not None:
            self._report(
                f"agent {found.agent_id} was registered at the same moment and is used; "
                f"agent {found.withdrawn} stays without a URI"
            )
        agent = AgentReference(reader.chain.chain_id, reader.address, found.agent_id)
        provisional = self._keyholder.current
        keyset = self._keysets.get(str(agent)) or self._keyset(provisional, str(agent))
        self._keysets[str(agent)] = keyset
        keys = provisional.keys
        record = KeyRecord(payment_key=keys.payment_address, keyset_digest=keyset.digest, expires_at=keyset.not_after)
        self._ours.add(keyset.digest)
        desired = Desired(wanted.agent_uri, wanted.manifest_digest, wanted.replica, record)
        await publish(writer, agent.agent_id, desired)
        _, second = self._slots()
        there = _record(await reader.get_metadata(agent.agent_id, key_name(second)))
        if there is not None and there.expires_at > self._clock():
            # Of a process that has ended: a restart leaves no other key listed than the one it starts with.
            await publish_key(writer, agent.agent_id, second, record)
        identity = Identity(keyset=keyset, manifest_digest=wanted.manifest_digest, agent=agent)
        self._keyholder.replace(Credentials(keys, identity, key_name(wanted.replica)))
        self._keyholder.hold_back(None)
        self._report(f"agent {agent}")

    async def _disagreement(self, current: Credentials) -> str | None:
        """What the registry says against the current key; None when it shows it."""
        agent, keyset = current.identity.registered_agent, current.identity.keyset
        async with self._registry() as reader:
            try:
                holder = await reader.owner_of(agent.agent_id)
            except UnknownAgentError:
                return f"the registry knows no agent {agent.agent_id} any more"
            there = await reader.get_metadata(agent.agent_id, current.key_slot)
        if holder != self._wanted.owner.lower():
            return f"agent {agent.agent_id} has passed to {holder}; its new owner has not confirmed this key"
        if there != encode_key(KeyRecord(current.keys.payment_address, keyset.digest, keyset.not_after)):
            return (
                f"the registry's {current.key_slot} is not this service's key any more: it was revoked, "
                "or another process runs under this replica's name"
            )
        return None

    def _keyset(self, credentials: Credentials, subject: str | None) -> Keyset:
        return build_keyset(
            subject=subject,
            not_after=self._clock() + self._wanted.lifetime_seconds,
            keys=credentials.keys.public_keys(),
            tls_spki_sha256=credentials.identity.keyset.tls_spki_sha256,
        )

    def _renew_provisional(self) -> None:
        """A keyset without an agent serves for as long as the chain stays away, and so must not expire."""
        current = self._keyholder.current
        if current.identity.keyset.not_after - self._clock() < self._wanted.lifetime_seconds // 2:
            identity = dataclasses.replace(current.identity, keyset=self._keyset(current, None))
            self._keyholder.replace(dataclasses.replace(current, identity=identity))
            self._keysets.clear()

    def _writer(self, reader: IdentityReader) -> IdentityWriter:
        return IdentityWriter(reader, self._operator, confirmations=self._confirmations)

    def _slots(self) -> tuple[str, str]:
        return self._wanted.replica, self._wanted.replica + SECOND_SLOT


def _problem(error: Exception) -> str:
    """What went wrong, for everybody: a node's own words may quote its URL with an access key in it."""
    if isinstance(error, RpcRefusedError):
        return "the registry's node answered with an error"
    return str(error) if isinstance(error, TollsealError) else f"an unexpected {type(error).__name__}"


def _record(data: bytes) -> KeyRecord | None:
    try:
        return parse_key(data)
    except MalformedError:
        return None
