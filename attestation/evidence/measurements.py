"""The allow-list of measurements, the same for every evidence format."""

from collections.abc import Mapping

from attestation.errors import EvidenceError
from attestation.evidence.appraisal import EvidencePolicy, NotVerified


def check_allowed(policy: EvidencePolicy, tee_type: str, found: Mapping[str, str], required: str) -> str:
    """One acceptable set of the policy must match in all its registers.

    Args:
        policy: its `measurements[tee_type]` is the list.
        tee_type: of the evidence.
        found: register -> lower-case hex, as the evidence has them.
        required: the register that every set must name; one without it would accept any software.

    Raises:
        NotVerified: the policy names no measurements at all.
        EvidenceError: no set matches, or one does not name the required register.
    """
    if policy.measurements is None:
        raise NotVerified("the policy names no measurements")
    acceptable = policy.measurements.get(tee_type, ())
    if not acceptable:
        raise EvidenceError(f"the policy accepts no {tee_type} measurements")
    if any(required not in accepted for accepted in acceptable):
        raise EvidenceError(f"every accepted set of the policy must name {required}")
    differing = [[name for name, value in accepted.items() if found.get(name) != value] for accepted in acceptable]
    nearest = min(differing, key=len)
    if nearest:
        raise EvidenceError(f"not on the allow-list; in the nearest set these differ: {', '.join(nearest)}")
    return f"on the allow-list: {', '.join(acceptable[differing.index(nearest)])}"
