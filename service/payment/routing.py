"""One facilitator for several networks: each payment goes to the one of its network."""

import asyncio
from collections.abc import Mapping

from service.payment.authorization import Authorization
from service.payment.facilitator import (
    Facilitator,
    FacilitatorUnavailableError,
    Outcome,
    SettleResult,
    Unavailable,
    Unknown,
    VerifyResult,
)


class Router:
    """The facilitators of all networks on which a service is paid.

    The ledger may hold payments of a network that has since been taken out of the settings. Nobody here can say what
    became of those, so they stay as they are until the network is named again.

    Args:
        facilitators: CAIP-2 network -> its facilitator.
    """

    def __init__(self, facilitators: Mapping[str, Facilitator]) -> None:
        self._by_network = {network.lower(): facilitator for network, facilitator in facilitators.items()}

    @property
    def all(self) -> tuple[Facilitator, ...]:
        """Every facilitator, one for each network."""
        return tuple(self._by_network.values())

    def on(self, network: str) -> Facilitator | None:
        """The facilitator of a network, if payments are taken there."""
        return self._by_network.get(network.lower())

    async def verify(self, authorization: Authorization) -> VerifyResult:
        """See `Facilitator.verify`."""
        facilitator = self.on(authorization.network)
        if facilitator is None:
            raise FacilitatorUnavailableError(_nobody(authorization))
        return await facilitator.verify(authorization)

    async def settle(self, authorization: Authorization) -> SettleResult:
        """See `Facilitator.settle`."""
        facilitator = self.on(authorization.network)
        return Unknown(_nobody(authorization)) if facilitator is None else await facilitator.settle(authorization)

    async def outcome(self, authorization: Authorization) -> Outcome:
        """See `Facilitator.outcome`."""
        facilitator = self.on(authorization.network)
        return Unavailable(_nobody(authorization)) if facilitator is None else await facilitator.outcome(authorization)

    async def ready(self) -> list[str]:
        """See `Facilitator.ready`; all networks must be ready, for all are offered."""
        found = await asyncio.gather(*(facilitator.ready() for facilitator in self._by_network.values()))
        return [problem for problems in found for problem in problems]

    async def close(self) -> None:
        """Close all of them, also when one cannot be closed."""
        closing = (facilitator.close() for facilitator in self._by_network.values())
        failures = [one for one in await asyncio.gather(*closing, return_exceptions=True) if one is not None]
        if failures:
            raise failures[0]


def _nobody(authorization: Authorization) -> str:
    return f"no facilitator is configured for {authorization.network}"
