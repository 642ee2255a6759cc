"""One verification's transcript: what has been established, and one line for every check.

A check is a function that returns what it established, raises `NotVerified` when it could not run, or any error when it
failed. No input makes a verification raise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from attestation import payment_proof
from attestation.errors import TollsealError
from attestation.evidence.appraisal import Appraisal, Inputs, NotVerified
from attestation.keyset import Keyset
from attestation.onchain import AgentReference, ChainView
from attestation.policy import Policy
from attestation.purchase import Payment, Terms
from attestation.receipt import Receipt
from attestation.verdict import Check, Result, Status, Verdict

_T = TypeVar("_T")


@dataclass(slots=True)
class Established:
    """What the checks have proven so far. A later check that needs something absent could not run."""

    claims: Appraisal | None = None
    keyset: Keyset | None = None
    reported_at: int | None = None
    manifest: dict[str, Any] | None = None
    manifest_digest: str | None = None
    agent: AgentReference | None = None
    offer: payment_proof.Offer | None = None
    terms: Terms | None = None
    payment: Payment | None = None
    answered_at: int | None = None
    receipt: Receipt | None = None
    transaction: str | None = None


class Transcript:
    """The state of one verification; see `attestation.verifier.Verifier` for its arguments."""

    def __init__(
        self,
        policy: Policy,
        *,
        now: int,
        chain: ChainView | None = None,
        channel: str | None = None,
        collateral: Mapping[str, Any] | None = None,
        roots: Mapping[str, tuple[bytes, ...]] | None = None,
    ) -> None:
        self._policy = policy
        self._now = now
        self._chain = chain or ChainView()
        self._channel_key = channel
        self._inputs = Inputs(now=now, roots=roots or {}, policy=policy.evidence, collateral=collateral)
        self._checks: list[Check] = []
        self._have = Established()

    def _need(self, value: _T | None, check_id: str) -> _T:
        if value is None:
            raise NotVerified(f"needs {check_id}")
        return value

    def _run(self, check_id: str, check: Callable[[], str]) -> None:
        try:
            self._record(check_id, Status.PASS, check())
        except NotVerified as outcome:
            self._record(check_id, Status.NOT_VERIFIED, str(outcome))
        except TollsealError as error:
            self._record(check_id, Status.FAIL, str(error))
        except Exception as error:
            self._record(check_id, Status.FAIL, f"malformed input ({type(error).__name__})")

    def _record(self, check_id: str, status: Status, detail: str) -> None:
        self._checks.append(Check(check_id, status, detail))

    def _verdict(self) -> Verdict:
        missing = {check.id for check in self._checks if check.status is Status.NOT_VERIFIED} - self._policy.optional
        simulated = self._have.claims is not None and not self._have.claims.is_hardware
        if any(check.status is Status.FAIL for check in self._checks):
            result = Result.FAILED
        elif missing - ({"evidence.policy"} if simulated else set()):
            result = Result.INCOMPLETE
        elif simulated:
            result = Result.SIMULATED
        else:
            result = Result.VERIFIED
        return Verdict(result, tuple(self._checks), simulated_allowed=self._policy.allow_simulated)
