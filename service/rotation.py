"""New keys for a running service, before the old ones expire: published first, then used.

A replica has two slots in the registry, and its keysets use them in turn. The record of the keyset before stays on the
chain until that keyset has expired: a third keyset, which takes its slot, is not made before half a lifetime is over.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from attestation.keyset import build_keyset
from attestation.registry.records import SECOND_SLOT, KeyRecord, key_name
from service.credentials import Credentials, Keyholder, expiry_margin

CHECK_SECONDS: Final = 30
"""How often the clock is looked at; also how soon a publication that failed is tried again."""

_log: Final = logging.getLogger(__name__)

PublishKey = Callable[[str, KeyRecord], Awaitable[object]]
"""Makes a slot (the part after ``tee.key.``) hold a record; returns when the registry shows it."""


def rotation_lead(lifetime: int, payment_timeout: int) -> int:
    """Seconds before a keyset's end from which it is to be replaced.

    Early enough that terms given under it can still be paid and that a failure can be made good before nothing may be
    sold under it; at most half of its life because of the two slots.
    """
    margin = expiry_margin(lifetime)
    return min(lifetime // 2, max(lifetime // 10, margin + max(payment_timeout, margin)))


class Rotation:
    """Replaces the keys of one service.

    Args:
        keyholder: holds them.
        publish: shows a new key to the world.
        replica: the name of this instance.
        lifetime_seconds: of a keyset.
        lead_seconds: see `rotation_lead`.
        clock: unix seconds.
    """

    def __init__(
        self,
        keyholder: Keyholder,
        publish: PublishKey,
        *,
        replica: str,
        lifetime_seconds: int,
        lead_seconds: int,
        clock: Callable[[], int],
    ) -> None:
        self._keyholder = keyholder
        self._publish = publish
        self._slots = (replica, replica + SECOND_SLOT)
        self._lifetime = lifetime_seconds
        self._lead = lead_seconds
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    async def rotate(self) -> Credentials:
        """Make new keys, publish them, and answer under them from then on.

        Raises:
            RegistryError: they could not be published, or the registry does not show them; the old ones serve on.
        """
        async with self._one_at_a_time:
            old = self._keyholder.current
            keys = old.keys.renew()
            keyset = build_keyset(
                subject=old.identity.keyset.subject,
                not_after=self._clock() + self._lifetime,
                keys=keys.public_keys(),
                tls_spki_sha256=old.identity.keyset.tls_spki_sha256,
            )
            first, second = self._slots
            slot = second if old.key_slot == key_name(first) else first
            await self._publish(slot, KeyRecord(keys.payment_address, keyset.digest, keyset.not_after))
            new = Credentials(keys, dataclasses.replace(old.identity, keyset=keyset), key_name(slot))
            self._keyholder.replace(new)
            return new

    async def rotate_when_due(self) -> bool:
        """Rotate when the current keyset is near its end; says whether it did. A failure is logged, not raised."""
        identity = self._keyholder.current.identity
        if identity.agent is None or identity.keyset.not_after - self._clock() > self._lead:
            return False
        try:
            await self.rotate()
        except Exception as error:
            # No message: it may quote the node's URL with an access key in it.
            _log.warning("the keyset could not be replaced (%s); the old one serves on", type(error).__name__)
            return False
        return True

    async def run(self) -> None:
        """Rotate whenever it is due, until cancelled."""
        while True:
            await self.rotate_when_due()
            await asyncio.sleep(CHECK_SECONDS)
