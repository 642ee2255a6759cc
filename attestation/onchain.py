"""What the chain says, as plain values: read by `attestation.registry`, judged by `attestation.verifier`.

Keeping the two apart keeps the judgement pure: it neither waits for a network nor can be fed by one.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from attestation.errors import MalformedError

_AGENT: Final = re.compile(r"eip155:([1-9][0-9]{0,18}):(0x[0-9a-f]{40}):(0|[1-9][0-9]{0,77})")


REORG_MARGIN_SECONDS: Final = 60
"""How far beyond an authorization's end the chain's time must be before it counts as unused for good."""


@dataclass(frozen=True, slots=True)
class AgentReference:
    """An ERC-8004 agent: ``eip155:<chain id>:<identity registry>:<agent id>``, the address in lower case."""

    chain_id: int
    registry: str
    agent_id: int

    @classmethod
    def parse(cls, value: str | None) -> Self:
        """Raises MalformedError when the text is not such a reference."""
        match = _AGENT.fullmatch(value or "")
        if match is None:
            raise MalformedError("agent", "must be eip155:<chain id>:<registry address in lower case>:<agent id>")
        return cls(chain_id=int(match[1]), registry=match[2], agent_id=int(match[3]))

    @property
    def registry_id(self) -> str:
        """The registry as registration files write it (ERC-8004, `agentRegistry`)."""
        return f"eip155:{self.chain_id}:{self.registry}"

    def __str__(self) -> str:
        return f"{self.registry_id}:{self.agent_id}"


@dataclass(frozen=True, slots=True)
class Record:
    """One value that an agent's metadata had."""

    value: bytes
    """Empty when it was cleared."""
    by_owner: bool
    """False when the agent changed hands after this was written: a sold agent keeps its old metadata."""
    block_number: int
    """The block in which it was written."""


@dataclass(frozen=True, slots=True)
class AgentOnChain:
    """What the identity registry holds for an agent, the newest first.

    For a purchase these are the values that held in the payment's block or later: keys are replaced at every start of a
    service, and an answer that was lost then is made again, under the new ones. Otherwise only the present value.
    """

    owner: str
    manifests: tuple[Record, ...]
    """Values of `tee.manifest`; none when it was never set."""
    keys: tuple[Record, ...]
    """Values of the replica's `tee.key.<replica>`; none when it was never set."""
    block_number: int
    """The block as of which this holds."""


@dataclass(frozen=True, slots=True)
class PaymentOnChain:
    """Whether a transaction is exactly the transfer that it is said to be."""

    confirmed: bool
    detail: str
    block_number: int | None = None
    """The block that it is in."""


@dataclass(frozen=True, slots=True)
class AuthorizationOnChain:
    """Whether a signed transfer authorization has been used up, by a transfer or by a cancellation (EIP-3009)."""

    used: bool
    at: int
    """The chain's own time of which this holds, in unix seconds."""

    def ended_unused(self, valid_before: int) -> bool:
        """Whether it can no longer be executed and never was, also if the newest blocks are replaced."""
        return not self.used and self.at >= valid_before + REORG_MARGIN_SECONDS


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The chain could not be asked; `reason` is for a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class ChainView:
    """Everything a verification asks of the chain. None where it was not asked."""

    agent: AgentOnChain | Unreadable | None = None
    payment: PaymentOnChain | Unreadable | None = None
