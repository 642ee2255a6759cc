"""What a relying party demands of evidence before it believes it."""

from dataclasses import dataclass, field, replace
from typing import Final, Self

DAY: Final = 86_400

CHAIN_CHECKS: Final = frozenset({"registry.key", "registry.manifest", "payment.onchain"})
"""The checks that ask the chain. They can only run when the relying party names an RPC endpoint of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The default refuses whatever is not proven by hardware.

    A check that is not in `optional` must pass for a good verdict: one that could not run makes it INCOMPLETE.
    """

    allow_simulated: bool = False
    """Take simulated evidence as far as a SIMULATED verdict. It never becomes VERIFIED."""
    manifest_digests: frozenset[str] | None = None
    """Builds that are acceptable, as ``sha256:<hex>``; None accepts any build, and says so."""
    max_keyset_lifetime_seconds: int = 31 * DAY
    """Refuse keysets that live implausibly long after their report (aci/1 section 3.1)."""
    max_report_age_seconds: int = 600
    """Oldest report on which a purchase may rest: the time between report and answer."""
    optional: frozenset[str] = field(default=frozenset({"channel.tls", *CHAIN_CHECKS}))
    """Checks whose absence leaves the verdict as it is; they are still reported as not verified."""

    def requiring_chain(self) -> Self:
        """The same policy for a relying party that does have an RPC endpoint: the chain must confirm."""
        return replace(self, optional=self.optional - CHAIN_CHECKS)
