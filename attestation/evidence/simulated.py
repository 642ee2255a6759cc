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
from attestation.evidence.appraisal import Appraisal, Checks, Inputs
from attestation.keyset import REPORT_DATA_BYTES

TEE_TYPE: Final = "simulated"
NOTICE: Final = "NO HARDWARE: simulated evidence, proves nothing about where the keys live"


def appraise(evidence: Any, _: Inputs) -> Appraisal:
    """Check simulated evidence: an Ed25519 signature by the root beside it, over the RFC 8785 form of `quote`."""
    checks = Checks()
    found: dict[str, Any] = {}

    def shape() -> str:
        document = encoding.as_object(evidence, "evidence")
        encoding.only(document, "evidence", {"quote", "root_public_key", "signature"})
        quote = encoding.as_object(document["quote"], "evidence.quote")
        encoding.only(quote, "evidence.quote", {"format", "issued_at", "notice", "report_data"})
        if quote["format"] != TEE_TYPE:
            raise MalformedError("evidence.quote.format", f"must be {TEE_TYPE}")
        if quote["notice"] != NOTICE:
            raise MalformedError("evidence.quote.notice", "must be the exact notice that there is no hardware")
        found["report_data"] = encoding.hex_bytes(
            quote["report_data"], "evidence.quote.report_data", size=REPORT_DATA_BYTES
        )
        found["issued_at"] = encoding.integer(quote["issued_at"], "evidence.quote.issued_at")
        return "complete, and says that there is no hardware"

    def signature() -> str:
        root = encoding.hex_bytes(evidence["root_public_key"], "evidence.root_public_key", size=32)
        signed = encoding.hex_bytes(evidence["signature"], "evidence.signature", size=64)
        try:
            Ed25519PublicKey.from_public_bytes(root).verify(signed, jcs(evidence["quote"]))
        except InvalidSignature as error:
            raise EvidenceError("the simulated root's signature does not match the quote") from error
        return "signed by a root that nobody knows"

    if checks.run("simulated.shape", shape):
        checks.run("simulated.signature", signature)
    return Appraisal(tee_type=TEE_TYPE, is_hardware=False, checks=checks.done, **found)
