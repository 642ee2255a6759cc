"""What genuine evidence proves, whatever its format."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EvidenceClaims:
    """Facts that a verifier established from evidence."""

    tee_type: str
    is_hardware: bool
    """True when the chain of signatures ends at a hardware vendor's root."""
    report_data: bytes
    """The 64-byte report-data slot."""
    measurements: Mapping[str, str]
    """Register or digest name -> lower-case hex."""
    issued_at: int | None
    """Unix seconds, where the format says when it was made."""
