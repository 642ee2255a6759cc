"""The outcome of a verification: one line per check, and one word for all of them."""

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Status(Enum):
    """What became of one check."""

    PASS = "pass"  # noqa: S105
    FAIL = "FAIL"
    NOT_VERIFIED = "not verified"


class Result(Enum):
    """What a verification came to."""

    VERIFIED = "VERIFIED"
    FAILED = "FAILED"
    SIMULATED = "SIMULATED"
    INCOMPLETE = "INCOMPLETE"


@dataclass(frozen=True, slots=True)
class Check:
    """One check, under an id that stays the same between releases."""

    id: str
    status: Status
    detail: str
    """What was established, or why not, in words for a person."""

    def to_json(self) -> dict[str, str]:
        return {"id": self.id, "status": self.status.value, "detail": self.detail}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The checks in the order they ran, and what they come to."""

    result: Result
    checks: tuple[Check, ...]
    simulated_allowed: bool = False

    @property
    def exit_code(self) -> int:
        """VERIFIED 0, FAILED 1, SIMULATED 3 (0 where it was allowed), INCOMPLETE 4."""
        codes = {
            Result.VERIFIED: 0,
            Result.FAILED: 1,
            Result.SIMULATED: 0 if self.simulated_allowed else 3,
            Result.INCOMPLETE: 4,
        }
        return codes[self.result]

    @property
    def acceptable(self) -> bool:
        """Whether a relying party with this policy goes on."""
        return self.exit_code == 0

    def check(self, check_id: str) -> Check:
        """The check with this id. Raises KeyError when it did not run."""
        for check in self.checks:
            if check.id == check_id:
                return check
        raise KeyError(check_id)

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.result.value,
            "exit_code": self.exit_code,
            "checks": [check.to_json() for check in self.checks],
        }
