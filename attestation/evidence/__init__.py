"""The verifier side: one file per evidence format, each a pure function, none importing a provider."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from attestation.errors import EvidenceError
from attestation.evidence import simulated
from attestation.evidence.claims import EvidenceClaims

FORMATS: Final[Mapping[str, Callable[[Any], EvidenceClaims]]] = MappingProxyType({simulated.TEE_TYPE: simulated.check})
"""Verifiers by the report's `tee_type`."""


def check_evidence(tee_type: str, evidence: Any) -> EvidenceClaims:
    """Check evidence of any known format.

    Returns:
        What the evidence proves. Whether that is enough is for a policy to say.

    Raises:
        EvidenceError: the format is unknown, or the evidence is not genuine.
        MalformedError: the evidence does not have its format's shape.
    """
    verify = FORMATS.get(tee_type)
    if verify is None:
        raise EvidenceError(f"evidence of type {tee_type!r} cannot be checked; known: {', '.join(FORMATS)}")
    return verify(evidence)
