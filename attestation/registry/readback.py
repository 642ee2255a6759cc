"""Reading back what was written: a mined transaction is believed when the chain shows what it should have done."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from web3.types import TxReceipt

from attestation.registry.errors import ReadBackError, RevertedError, UnknownAgentError

READ_BACK_SECONDS: Final = 10.0
_PAUSE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Sent:
    """A mined and checked transaction. `transaction` is its hash: 0x and 64 lower-case hex characters."""

    transaction: str
    gas_used: int
    block: int

    @classmethod
    def of(cls, receipt: TxReceipt) -> "Sent":
        """What a receipt says."""
        return cls(receipt["transactionHash"].to_0x_hex(), int(receipt["gasUsed"]), int(receipt["blockNumber"]))


async def read_back(
    what: str, expected: object, read: Callable[[], Awaitable[object]], *, seconds: float = READ_BACK_SECONDS
) -> None:
    """Reads until `expected` shows. A node behind a load balancer may be a block or two late.

    Raises:
        ReadBackError: it does not show in time; `what` names it.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    if await read() == expected:
                        return
                except (RevertedError, UnknownAgentError):  # an agent so new that this node does not know it yet
                    pass
                await asyncio.sleep(_PAUSE)
    except TimeoutError as error:
        raise ReadBackError(f"the transaction was mined, but {what} does not show what was written") from error
