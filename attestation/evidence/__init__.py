"""The verifier side: one file per evidence format, each a pure function, none importing a provider."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from attestation.errors import EvidenceError
from attestation.evidence import dstack, nitro, rofl, sev_snp, simulated, tdx
from attestation.evidence.appraisal import Appraisal, Inputs

FORMATS: Final[Mapping[str, Callable[[Any, Inputs], Appraisal]]] = MappingProxyType(
    {
        nitro.TEE_TYPE: nitro.appraise,
        rofl.TEE_TYPE: rofl.appraise,
        sev_snp.TEE_TYPE: sev_snp.appraise,
        simulated.TEE_TYPE: simulated.appraise,
        tdx.TEE_TYPE: dstack.appraise_tdx_family,
    }
)
"""Verifiers by the report's `tee_type`."""


def appraise(tee_type: str, evidence: Any, inputs: Inputs) -> Appraisal:
    """Appraise evidence of any known format. Malformed evidence is a failed check of the appraisal.

    Raises:
        EvidenceError: the format is unknown.
    """
    verify = FORMATS.get(tee_type)
    if verify is None:
        raise EvidenceError(f"evidence of type {tee_type!r} cannot be checked; known: {', '.join(FORMATS)}")
    return verify(evidence, inputs)
