"""What AMD's key distribution service writes into VCEK and VLEK certificates.

Source: AMD 57230 "VCEK Certificate and KDS Interface Specification", chapter 3; extension ids are below
1.3.6.1.4.1.3704.1. TCB components stand in the byte order of the report's TCB_VERSION (AMD 56860 section 2.2), which
differs between product lines.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from cryptography.x509 import Certificate, UnrecognizedExtension

from attestation.errors import EvidenceError

Tcb: TypeAlias = bytes
"""A TCB_VERSION: 8 components of one byte."""

CHIP_ID_BYTES: Final = 64
_ARC: Final = "1.3.6.1.4.1.3704.1"
_PRODUCT, _HARDWARE_ID, _CSP_ID = "2", "4", "5"

_LINES: Final = MappingProxyType(
    {"Milan": "Milan", "Genoa": "Genoa", "Bergamo": "Genoa", "Siena": "Genoa", "Turin": "Turin"}
)
"""Product -> the line whose root endorses it."""

# boot loader 3.1, TEE 3.2, SNP firmware 3.3, reserved 3.4 to 3.7, microcode 3.8, FMC 3.9
_COMPONENTS: Final = MappingProxyType(
    {
        "Milan": ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"),
        "Genoa": ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"),
        "Turin": ("3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8"),
    }
)
_RESERVED: Final = frozenset({"3.4", "3.5", "3.6", "3.7"})  # zero where a certificate leaves them out
_SHORT_CHIP_ID_BYTES: Final = 8  # Turin

_INTEGER, _OCTET_STRING, _IA5_STRING = 0x02, 0x04, 0x16


@dataclass(frozen=True, slots=True)
class Endorsement:
    """What a VCEK or VLEK certificate says of the platform whose key it certifies."""

    line: str
    """Milan, Genoa or Turin."""
    tcb: Tcb
    chip_id: bytes | None
    """64 bytes; only a VCEK has it."""
    csp_id: str | None
    """The cloud provider that loaded the key; only a VLEK has it."""

    @property
    def kind(self) -> str:
        return "VLEK" if self.chip_id is None else "VCEK"


def endorsement(certificate: Certificate) -> Endorsement:
    """Read the extensions of a VCEK or VLEK certificate.

    Raises:
        EvidenceError: one is missing or malformed, the product is unknown, or it is neither kind of certificate.
    """
    values = {
        extension.oid.dotted_string.removeprefix(f"{_ARC}."): extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, UnrecognizedExtension)
    }
    product = _content(values.get(_PRODUCT, b""), _IA5_STRING, "product name").decode("ascii")
    line = _LINES.get(product.partition("-")[0])
    if line is None:
        raise EvidenceError(f"the certificate is for an unknown product: {product!r}")
    tcb = bytes(_component(values, name) for name in _COMPONENTS[line])
    chip_id, csp_id = values.get(_HARDWARE_ID), values.get(_CSP_ID)
    if (chip_id is None) == (csp_id is None):
        raise EvidenceError("the certificate must name either a chip (VCEK) or a cloud provider (VLEK)")
    return Endorsement(
        line,
        tcb,
        None if chip_id is None else _chip_id(chip_id),
        None if csp_id is None else _content(csp_id, _IA5_STRING, "cloud provider").decode("ascii"),
    )


def line_of_cpu(family: int, model: int) -> str | None:
    """The product line of a CPUID family and model, None when it is none that is known."""
    if family == 0x19:
        return "Milan" if model < 0x10 else "Genoa" if model < 0x20 or 0xA0 <= model < 0xB0 else None
    return "Turin" if family == 0x1A and model < 0x20 else None


def _component(values: dict[str, bytes], name: str) -> int:
    if name in _RESERVED and name not in values:
        return 0
    content = _content(values.get(name, b""), _INTEGER, f"TCB component {name}")
    number = int.from_bytes(content, "big", signed=True)
    if not content or not 0 <= number <= 0xFF:
        raise EvidenceError(f"the certificate's TCB component {name} is not one byte")
    return number


def _chip_id(value: bytes) -> bytes:
    """The bytes themselves, as AMD writes them, or in an OCTET STRING, as DER would have them."""
    sizes = (_SHORT_CHIP_ID_BYTES, CHIP_ID_BYTES)
    chip_id = value if len(value) in sizes else _content(value, _OCTET_STRING, "chip id")
    if len(chip_id) not in sizes:
        raise EvidenceError(f"the certificate's chip id has {len(chip_id)} bytes")
    return chip_id.ljust(CHIP_ID_BYTES, b"\0")


def _content(value: bytes, tag: int, what: str) -> bytes:
    """What a DER value of this tag holds; all that occur here are shorter than 128 bytes."""
    if len(value) < 2 or value[0] != tag or value[1] != len(value) - 2:
        raise EvidenceError(f"the certificate has no readable {what}")
    return value[2:]
