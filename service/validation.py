"""Asks validators to check this service's keys: each key once, after the registry shows it.

Serving does not wait for it, and nothing depends on the answer here: it is for those who look at the agent.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from eth_account.signers.local import LocalAccount

from attestation.errors import TollsealError
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import RevertedError
from attestation.registry.sender import Sender
from attestation.registry.validation import ValidationReader, ValidationWriter
from attestation.validation import KeyInQuestion, request_validation
from service.credentials import Credentials, Keyholder

LOOK_SECONDS: Final = 5.0
"""How often it is looked whether there are new keys. That costs nothing."""
LONGEST_PAUSE: Final = 600.0
"""Seconds between two tries, when asking fails again and again."""

_log: Final = logging.getLogger(__name__)


class ValidationRequests:
    """Asks about every key of one service.

    Args:
        validators: whom to ask; lower-case addresses.
        keyholder: has the keys.
        endpoint: the service's origin, where validators ask for evidence.
        address: the validation registry.
        registry: opens the identity registry beside it for one piece of work.
        operator: signs and pays for gas; it must own or operate the agent.
        exclusive: holds the operator's account for one piece of work, where somebody else in this process sends too.
    """

    def __init__(
        self,
        validators: Sequence[str],
        keyholder: Keyholder,
        *,
        endpoint: str,
        address: str,
        registry: Callable[[], IdentityReader],
        operator: LocalAccount,
        exclusive: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._validators = tuple(validators)
        self._keyholder = keyholder
        self._endpoint = endpoint
        self._address = address
        self._registry = registry
        self._operator = operator
        self._exclusive = exclusive
        self._asked: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Ask about each new key, until cancelled."""
        pause = LOOK_SECONDS
        while True:
            pause = LOOK_SECONDS if await self.once() else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def once(self) -> bool:
        """Ask about the current key, where that was not done. False when it failed, which is logged."""
        current = self._keyholder.current
        open_ = [one for one in self._validators if (one, current.identity.keyset.digest) not in self._asked]
        if not open_ or not self._keyholder.registered:
            return True
        try:
            async with self._exclusive(), self._registry() as identity:
                reader = ValidationReader(identity, self._address)
                if not await reader.deployed():
                    _log.info("nobody is asked for a validation: this chain has no validation registry")
                    self._asked |= {(one, current.identity.keyset.digest) for one in open_}
                    return True
                writer = ValidationWriter(reader, Sender(identity.chain, self._operator))
                for validator in open_:
                    await request_validation(writer, validator, self._question(current))
                    self._asked.add((validator, current.identity.keyset.digest))
        except TollsealError as error:
            # A node's own words may quote its URL with an access key in it.
            told = str(error) if isinstance(error, RevertedError) else type(error).__name__
            _log.warning("a validation could not be asked for: %s", told)
            return False
        return True

    def _question(self, current: Credentials) -> KeyInQuestion:
        return KeyInQuestion(
            agent=current.identity.registered_agent,
            keyset_digest=current.identity.keyset.digest,
            payment_key=current.keys.payment_address,
            key_slot=current.key_slot,
            endpoint=self._endpoint,
        )
