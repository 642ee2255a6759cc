"""What checks and executes payments, behind one Protocol.

There are three kinds of answer, and callers must keep them apart: yes, a definite no, and "it cannot be known now".
The last is never the buyer's fault. It becomes `FacilitatorUnavailableError` where nothing was sent to the chain
(`verify`), and `Unknown` where something may have been (`settle`); neither may be answered with a 402, for a buyer who
is told to pay again might pay twice.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from service.payment.authorization import Authorization


class FacilitatorUnavailableError(Exception):
    """The payment could not be checked: facilitator or chain did not answer usefully. Nothing was charged."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The payment would be executed if it were settled now. `payer` is in lower case."""

    payer: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """The payment cannot be accepted.

    Attributes:
        reason: an x402 error code such as `invalid_exact_evm_insufficient_balance`.
        message: the same for people.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The transfer happened. `block` is None when the facilitator did not say."""

    transaction: str
    payer: str
    block: int | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The transfer did not happen, and this authorization will not make it happen now: the payer has to pay anew."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The transfer may have happened, or may still happen. `outcome` tells, sooner or later.

    Attributes:
        transaction: hash of the transaction that was sent, when known.
    """

    reason: str
    transaction: str | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """The chain says that this authorization was executed and paid what it says, in `transaction`."""

    transaction: str
    block: int


@dataclass(frozen=True, slots=True)
class Void:
    """The chain says that the nonce is spent, but not on this payment: it was cancelled, or paid somebody else."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unused:
    """The chain says that the nonce was unspent in the block whose time is `chain_time` (unix seconds)."""

    chain_time: int


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The chain could not be asked, or its answer was not conclusive."""

    reason: str


VerifyResult: TypeAlias = Verified | Invalid
SettleResult: TypeAlias = Settled | Rejected | Unknown
Outcome: TypeAlias = Used | Void | Unused | Unavailable


class Facilitator(Protocol):
    """Checks and executes matched authorizations (`match_requirements`) on one network."""

    async def verify(self, authorization: Authorization) -> VerifyResult:
        """Check signature, validity, balance and nonce. Moves nothing.

        Raises:
            FacilitatorUnavailableError: it cannot be known now.
        """
        ...

    async def settle(self, authorization: Authorization) -> SettleResult:
        """Execute the transfer and wait until it is in a block. Never raises for what facilitator or chain do.

        A cancelled call may still transfer: callers shield it, or treat the payment as unknown.
        """
        ...

    async def outcome(self, authorization: Authorization) -> Outcome:
        """Ask the chain what became of the authorization, by payer and nonce. Never raises."""
        ...

    async def ready(self) -> list[str]:
        """What would make the next payment fail, one sentence each; empty when all is well."""
        ...

    async def close(self) -> None:
        """Release connections and threads."""
        ...
