"""What every evidence format shares: the inputs of an appraisal, and its outcome.

A format is a pure function of (evidence, inputs). It runs named checks, each of which passes, fails, or says why it
could not run, and returns what the evidence proves. Malformed evidence is a failed check, never an exception.
Source for the terms: RFC 9334 (RATS), sections 4 and 8.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from attestation.errors import TollsealError
from attestation.verdict import Check, Status

UP_TO_DATE: Final = "UpToDate"

POLICY_STEPS: Final = frozenset(
    {"tcb", "evaluation", "advisories", "debug", "attributes", "migration", "vmpl", "denied", "measurements"}
)
"""Last parts of the ids of checks that say whether genuine evidence is acceptable. All others say whether it is
genuine."""


class NotVerified(Exception):  # noqa: N818 - an outcome, not an error
    """A check that could not run, and why."""


OPTIONAL_STEPS: Final = frozenset({"evaluation", "revocation", "compose"})
"""Checks that need something the relying party may do without: a minimum of its own, a CRL, the text behind a hash that
is measured anyway. They are reported when they could not run, and demand nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePolicy:
    """What a relying party demands of hardware. The default accepts nothing but the newest, undebugged platform."""

    measurements: Mapping[str, tuple[Mapping[str, str], ...]] | None = None
    """tee_type -> acceptable sets of register -> lower-case hex; one set must match in all its registers. None: the
    measurement check is not verified."""
    tcb_statuses: frozenset[str] = frozenset({UP_TO_DATE})
    """TDX TCB statuses that are acceptable."""
    tolerated_advisories: frozenset[str] = frozenset()
    """Advisories that do not matter; any other one that is reported fails."""
    minimum_tcb_evaluation: int | None = None
    """Lowest acceptable `tcbEvaluationDataNumber` of TDX collateral."""
    maximum_vmpl: int = 0
    """Highest acceptable SEV-SNP privilege level number of the requester (0 is the most privileged)."""
    denied: frozenset[str] = frozenset()
    """Chip ids and PPIDs (lower-case hex) that are refused, whatever else holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What an appraisal rests on besides the evidence.

    Attributes:
        now: unix seconds as of which certificates and collateral are judged.
        roots: tee_type -> DER root certificates that replace the vendor's pinned ones, which hold without an entry.
        policy: what is demanded.
        collateral: for formats that need some from outside (TDX): the JSON document; None when there is none.
    """

    now: int
    roots: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    policy: EvidencePolicy = field(default_factory=EvidencePolicy)
    collateral: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """The outcome. Facts are only as good as the checks: read `genuine` first."""

    tee_type: str
    is_hardware: bool
    """Whether the format ends at a hardware vendor's root, or at a consensus that checked one."""
    checks: tuple[Check, ...]
    report_data: bytes | None = None
    """The 64-byte report-data slot, when the evidence could be read."""
    measurements: Mapping[str, str] = field(default_factory=dict)
    """Register or digest name -> lower-case hex."""
    issued_at: int | None = None
    """Unix seconds, where the format says when it was made."""
    tcb_status: str | None = None
    advisories: tuple[str, ...] = ()
    chip: str | None = None
    """Identifier of the chip or platform (chip id, PPID), lower-case hex, where the format has one."""

    @property
    def genuine(self) -> bool:
        """No check failed, of genuineness or of policy."""
        return self.failure() is None

    def failure(self, *, of_policy: bool | None = None) -> str | None:
        """The first failed check, in words; None when there is none.

        Args:
            of_policy: only checks of the policy (True) or of genuineness (False); None for both.
        """
        return next(self._told(Status.FAIL, of_policy), None)

    def missing(self, *, of_policy: bool | None = None) -> str | None:
        """The first check that had to run and could not, in words; see `failure`."""
        return next(self._told(Status.NOT_VERIFIED, of_policy), None)

    def _told(self, status: Status, of_policy: bool | None) -> Iterator[str]:
        for check in self.checks:
            step = check.id.rpartition(".")[2]
            if status is Status.NOT_VERIFIED and step in OPTIONAL_STEPS:
                continue
            if check.status is status and of_policy in (None, step in POLICY_STEPS):
                yield f"{check.id}: {check.detail}"


class Checks:
    """Collects the checks of one appraisal, in order."""

    def __init__(self) -> None:
        self._done: list[Check] = []

    def run(self, check_id: str, check: Callable[[], str]) -> bool:
        """Run one check; it returns what it established, or raises NotVerified or any error. True when it passed."""
        try:
            self.record(check_id, Status.PASS, check())
        except NotVerified as outcome:
            self.record(check_id, Status.NOT_VERIFIED, str(outcome))
        except TollsealError as error:
            self.record(check_id, Status.FAIL, str(error))
        except Exception as error:  # malformed input is a failed check, whatever it provokes
            self.record(check_id, Status.FAIL, f"malformed input ({type(error).__name__})")
        return self._done[-1].status is Status.PASS

    def record(self, check_id: str, status: Status, detail: str) -> None:
        self._done.append(Check(check_id, status, detail))

    @property
    def done(self) -> tuple[Check, ...]:
        return tuple(self._done)
