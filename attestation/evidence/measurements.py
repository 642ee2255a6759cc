"""The allow-list of measurements, the same for every evidence format."""

from collections.abc import Mapping

from attestation.errors import EvidenceError
from attestation.evidence.appraisal import EvidencePolicy, NotVerified


def check_allowed(policy: EvidencePolicy, tee_type: str, found: Mapping[str, str]) -> str:
    """One acceptable set must match in all its registers; a set without registers matches nothing.

    Raises:
        NotVerified: the policy names no measurements at all.
        EvidenceError: no set of this TEE type matches.
    """
    if policy.measurements is None:
        raise NotVerified("no measurement policy was given, so this may be any software")
    sets = [accepted for accepted in policy.measurements.get(tee_type, ()) if accepted]
    if not sets:
        raise EvidenceError(f"the policy accepts no {tee_type} measurements")
    differing = [[name for name, value in accepted.items() if found.get(name) != value] for accepted in sets]
    nearest = min(differing, key=len)
    if nearest:
        raise EvidenceError(f"not on the allow-list; in the nearest set these differ: {', '.join(nearest)}")
    return f"on the allow-list: {', '.join(sets[differing.index(nearest)])}"
