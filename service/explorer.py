"""What the chain says about this service's agent, read for whoever looks at its page."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from attestation.errors import TollsealError
from attestation.feedback import MAX_FEEDBACK_BYTES
from attestation.feedback_check import CheckedRating, FeedbackChecker
from attestation.fetch import FetchError, data_content
from attestation.onchain import AgentReference
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.payments import PaymentReader
from attestation.registry.profile import Profile, read_profile
from attestation.registry.reputation import ReputationReader
from attestation.registry.validation import Validation, ValidationReader
from service.settings import Settings

KEEP_SECONDS: Final = 15
"""How long one reading serves everybody who asks."""
READ_SECONDS: Final = 20.0

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OnChain:
    """One reading. `validations` and `ratings` are None where the chain has no such registry. Time in unix seconds."""

    profile: Profile
    validations: tuple[Validation, ...] | None
    ratings: tuple[CheckedRating, ...] | None
    read_at: int


@dataclass(frozen=True, slots=True)
class NotRead:
    """The chain could not be read."""

    reason: str
    read_at: int


class Explorer:
    """Reads an agent at most every KEEP_SECONDS, however many ask.

    Args:
        settings: name the chain, its registries, and where the agent is paid.
        clock: unix seconds.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], int]) -> None:
        self._settings = settings
        self._clock = clock
        self._kept: tuple[AgentReference, OnChain | NotRead] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def read(self, agent: AgentReference) -> OnChain | NotRead:
        """What the chain says. Never raises for what the chain or its node does."""
        async with self._one_at_a_time:
            now = self._clock()
            if self._kept is not None and self._kept[0] == agent and now < self._kept[1].read_at + KEEP_SECONDS:
                return self._kept[1]
            found = await self._guarded(lambda: self._read(agent.agent_id, now), now)
            self._kept = (agent, found)
            return found

    async def _guarded(self, read: Callable[[], Awaitable[OnChain]], now: int) -> OnChain | NotRead:
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await read()
        except TimeoutError:
            return NotRead(f"the chain did not answer within {READ_SECONDS:.0f} s", now)
        except TollsealError as error:
            # It may name the operator's node, which is nobody else's business.
            _log.warning("the chain could not be read for the agent's page: %s", error)
            return NotRead("the chain could not be asked", now)

    async def _read(self, agent_id: int, now: int) -> OnChain:
        settings = self._settings
        reputation, validation = settings.beside_registry
        rpc = settings.registry_rpc_url or settings.rpc_url
        first = settings.registry_from_block
        async with IdentityReader(
            rpc, settings.registry_chain_id, settings.registry_address, from_block=first
        ) as identity:
            profile = await read_profile(identity, agent_id)
            validations, ratings = None, None
            if validation is not None and await (answered := ValidationReader(identity, validation)).deployed():
                validations = await answered.of_agent(agent_id)
            if reputation is not None and await (rated := ReputationReader(identity, reputation)).deployed():
                ratings = await self._ratings(rated, agent_id)
        return OnChain(profile, validations, ratings, now)

    async def _ratings(self, reader: ReputationReader, agent_id: int) -> tuple[CheckedRating, ...]:
        options = self._settings.payment_options
        nodes = {_chain_id(option.network): option.rpc_url for option in options}
        async with AsyncExitStack() as resources:
            payments = {
                chain: await resources.enter_async_context(PaymentReader(url, chain)) for chain, url in nodes.items()
            }
            checker = FeedbackChecker(
                reader,
                payments,
                {(_chain_id(option.network), option.asset.lower()) for option in options},
                _inline_only,
                own={option.pay_to.lower() for option in options},
            )
            return await checker.check(agent_id)


def _chain_id(network: str) -> int:
    return int(network.removeprefix("eip155:"))


async def _inline_only(uri: str) -> bytes:
    """What a data: URI holds. A service connects to no host that whoever rates it has chosen."""
    if uri[:5].lower() != "data:":
        raise FetchError("it is kept elsewhere, and is not fetched for this page")
    return data_content(uri, max_bytes=MAX_FEEDBACK_BYTES)
