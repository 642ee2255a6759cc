"""The simulated enclave: for machines without a TEE, and impossible to mistake for one."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.digest import jcs
from attestation.errors import EnclaveError
from attestation.evidence.simulated import NOTICE, TEE_TYPE
from attestation.keyset import REPORT_DATA_BYTES


class SimulatedEnclave:
    """Signs quotes with a root that lives as long as this object. Chosen by the URI ``simulated:``."""

    tee_type = TEE_TYPE
    is_hardware = False

    def __init__(self, uri: str) -> None:
        if uri != "simulated:":
            raise EnclaveError(f"{uri!r}: the simulated enclave takes no options", hint="Use exactly simulated:")
        self.uri = uri
        self._root = Ed25519PrivateKey.generate()

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:
        """A signed quote over 64 bytes of report data; see `attestation.evidence.simulated` for its shape."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise EnclaveError(f"report data must be {REPORT_DATA_BYTES} bytes, is {len(report_data)}")
        quote = {"format": TEE_TYPE, "issued_at": now, "notice": NOTICE, "report_data": report_data.hex()}
        return {
            "quote": quote,
            "root_public_key": self._root.public_key().public_bytes_raw().hex(),
            "signature": self._root.sign(jcs(quote)).hex(),
        }
