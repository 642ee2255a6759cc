"""The `simulated` evidence format: a real signature chain that ends at nothing.

It exercises every step that hardware evidence goes through and proves nothing about hardware. The signed text says so,
the root is made anew at each boot, and no trust store holds it. Published in docs/formats.md.
"""

from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from attestation import encoding
from attestation.digest import jcs
from attestation.errors import EvidenceError, MalformedError
from attestation.evidence.claims import EvidenceClaims
from attestation.keyset import REPORT_DATA_BYTES

TEE_TYPE: Final = "simulated"
NOTICE: Final = "NO HARDWARE: simulated evidence, proves nothing about where the keys live"


def check(evidence: Any) -> EvidenceClaims:
    """Check simulated evidence: an Ed25519 signature by the root beside it, over the RFC 8785 form of `quote`.

    Raises:
        EvidenceError: the signature is wrong.
        MalformedError: a field is missing, unknown or of the wrong type, or the notice is not the exact text.
    """
    document = encoding.as_object(evidence, "evidence")
    encoding.only(document, "evidence", {"quote", "root_public_key", "signature"})
    quote = encoding.as_object(document["quote"], "evidence.quote")
    encoding.only(quote, "evidence.quote", {"format", "issued_at", "notice", "report_data"})
    if quote["format"] != TEE_TYPE:
        raise MalformedError("evidence.quote.format", f"must be {TEE_TYPE}")
    if quote["notice"] != NOTICE:
        raise MalformedError("evidence.quote.notice", "must be the exact notice that there is no hardware")
    root = encoding.hex_bytes(document["root_public_key"], "evidence.root_public_key", size=32)
    signature = encoding.hex_bytes(document["signature"], "evidence.signature", size=64)
    report_data = encoding.hex_bytes(quote["report_data"], "evidence.quote.report_data", size=REPORT_DATA_BYTES)
    try:
        Ed25519PublicKey.from_public_bytes(root).verify(signature, jcs(quote))
    except InvalidSignature as error:
        raise EvidenceError("the simulated root's signature does not match the quote") from error
    return EvidenceClaims(
        tee_type=TEE_TYPE,
        is_hardware=False,
        report_data=report_data,
        measurements={},
        issued_at=encoding.integer(quote["issued_at"], "evidence.quote.issued_at"),
    )
