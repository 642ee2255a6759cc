"""The attester side: where keys are born, and how evidence over them is obtained.

One file per provider behind one Protocol, chosen by URI. There is no default provider and no fallback from one to
another: an enclave that is not there is a failed start.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from attestation.enclave.dstack import DstackEnclave
from attestation.enclave.nitro import NitroEnclave
from attestation.enclave.rofl import RoflEnclave
from attestation.enclave.simulated import SimulatedEnclave
from attestation.enclave.tsm import TsmEnclave
from attestation.errors import EnclaveError


class Enclave(Protocol):
    """A TEE that can vouch for 64 bytes of report data."""

    @property
    def uri(self) -> str:
        """How this provider was chosen, such as ``simulated:``."""
        ...

    @property
    def tee_type(self) -> str:
        """The report's `tee_type` (aci/1 section 4.2): selects the evidence format."""
        ...

    @property
    def is_hardware(self) -> bool:
        """False only for the simulated enclave, which must not meet a mainnet."""
        ...

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:
        """Fresh evidence over 64 bytes of report data, as the report's `evidence` object.

        Raises:
            EnclaveError: the TEE did not answer as it must.
        """
        ...


PROVIDERS: Final[Mapping[str, Callable[[str], Enclave]]] = MappingProxyType(
    {
        "dstack": DstackEnclave,
        "nitro": NitroEnclave,
        "rofl": RoflEnclave,
        "simulated": SimulatedEnclave,
        "tsm": TsmEnclave,
    }
)
"""Providers by URI scheme."""


def open_enclave(uri: str) -> Enclave:
    """The enclave that a URI names.

    Raises:
        EnclaveError: the scheme is unknown, or its device is not there.
    """
    scheme, colon, _ = uri.partition(":")
    provider = PROVIDERS.get(scheme)
    if provider is None or not colon:
        known = ", ".join(f"{name}:" for name in PROVIDERS)
        raise EnclaveError(f"{uri!r} names no known enclave", hint=f"Known: {known}")
    return provider(uri)
