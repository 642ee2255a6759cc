"""What a relying party demands of evidence before it believes it.

A policy is a value: change it with `dataclasses.replace`, read it from a file with `attestation.policy_file`, or
combine several with `AnyOf` and `AllOf`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, Self

from attestation.evidence.appraisal import EvidencePolicy
from attestation.onchain import AgentReference
from attestation.verdict import Verdict

DAY: Final = 86_400

CHAIN_CHECKS: Final = frozenset({"registry.key", "registry.manifest", "payment.onchain"})
"""The checks that ask the chain. They can only run when the relying party names an RPC endpoint of its own."""


class Judge(Protocol):
    """A policy or a combination of policies."""

    def judge(self, verify: Callable[["Policy"], Verdict]) -> Verdict:
        """The verdict, where `verify` is what one policy comes to."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The default refuses whatever is not proven by hardware.

    A check that is not in `optional` must pass for a good verdict: one that could not run makes it INCOMPLETE.
    """

    allow_simulated: bool = False
    """Take simulated evidence as far as a SIMULATED verdict. It never becomes VERIFIED."""
    tee_types: frozenset[str] | None = None
    """Kinds of hardware that are acceptable; None accepts every kind that can be checked."""
    evidence: EvidencePolicy = field(default_factory=EvidencePolicy)
    """What is demanded of the hardware."""
    manifest_digests: frozenset[str] | None = None
    """Builds that are acceptable, as ``sha256:<hex>``; None accepts any build, and says so."""
    denied: frozenset[str] = frozenset()
    """Keyset and manifest digests that are refused, whatever else holds."""
    agent: AgentReference | None = None
    """The only acceptable agent; None accepts any."""
    owner: str | None = None
    """The only acceptable owner of the agent, in lower case; None accepts any. Needs the chain."""
    max_keyset_lifetime_seconds: int = 31 * DAY
    """Refuse keysets that live implausibly long after their report (aci/1 section 3.1)."""
    max_report_age_seconds: int = 600
    """Oldest report on which a purchase may rest: the time between report and answer."""
    optional: frozenset[str] = frozenset({"channel.tls", *CHAIN_CHECKS})
    """Checks whose absence leaves the verdict as it is; they are still reported as not verified."""
    collateral_url: str | None = None
    """Where TDX collateral is fetched from (a PCCS); None takes what comes with the evidence."""

    def requiring(self, *check_ids: str) -> Self:
        """The same policy, in which these checks must pass."""
        return replace(self, optional=self.optional - set(check_ids))

    def requiring_chain(self) -> Self:
        """The same policy for a relying party that does have an RPC endpoint: the chain must confirm."""
        return self.requiring(*CHAIN_CHECKS)

    def judge(self, verify: Callable[["Policy"], Verdict]) -> Verdict:
        return verify(self)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Satisfied by the first policy that is; otherwise the last one's verdict stands."""

    policies: tuple[Judge, ...]

    def judge(self, verify: Callable[[Policy], Verdict]) -> Verdict:
        verdicts = [policy.judge(verify) for policy in self.policies]
        return next((verdict for verdict in verdicts if verdict.acceptable), verdicts[-1])


@dataclass(frozen=True, slots=True)
class AllOf:
    """Satisfied when every policy is; otherwise the first verdict that is not good stands."""

    policies: tuple[Judge, ...]

    def judge(self, verify: Callable[[Policy], Verdict]) -> Verdict:
        verdicts = [policy.judge(verify) for policy in self.policies]
        return next((verdict for verdict in verdicts if not verdict.acceptable), verdicts[-1])
