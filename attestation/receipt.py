"""The per-request receipt: a signed event log from request bytes to response bytes.

Source: aci/1 section 7; the additional event types are published in docs/formats.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from attestation import encoding
from attestation.digest import jcs
from attestation.errors import EvidenceError, MalformedError
from attestation.keyset import ALGO_RECEIPT, Keyset

API_VERSION: Final = "aci/1"
PATH: Final = "/v1/aci/receipts/"
"""Where receipts are served, by their ids (aci/1 section 7.1)."""

REQUEST_RECEIVED: Final = "request.received"
AGENT_IDENTIFIED: Final = "agent.identified"
BUILD_IDENTIFIED: Final = "build.identified"
REQUEST_FORWARDED: Final = "request.forwarded"
INFERENCE_COMPLETED: Final = "inference.completed"
PAYMENT_SETTLED: Final = "payment.settled"
RESPONSE_RETURNED: Final = "response.returned"

EVENT_ORDER: Final = (
    REQUEST_RECEIVED,
    AGENT_IDENTIFIED,
    BUILD_IDENTIFIED,
    REQUEST_FORWARDED,
    INFERENCE_COMPLETED,
    PAYMENT_SETTLED,
    RESPONSE_RETURNED,
)
"""Every event of a paid answer, in this order; `request.forwarded` occurs once per call to the model."""

_FIELDS: Final = {
    "api_version",
    "receipt_id",
    "chat_id",
    "model",
    "workload_keyset_digest",
    "endpoint",
    "method",
    "served_at",
    "event_log",
    "key_id",
    "signature",
}


class ReceiptSigner(Protocol):
    """Holds the receipt key of a keyset."""

    @property
    def receipt_key_id(self) -> str: ...

    def sign_receipt(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature over `message`."""
        ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """A parsed receipt and the exact JSON document it came from."""

    document: Mapping[str, Any]
    receipt_id: str
    chat_id: str | None
    model: str | None
    keyset_digest: str
    endpoint: str
    method: str
    served_at: int
    """Unix seconds, by the service's own clock."""
    events: tuple[Mapping[str, Any], ...]
    key_id: str
    signature: bytes

    def event(self, event_type: str) -> Mapping[str, Any]:
        """The only event of a type.

        Raises:
            MalformedError: there is none, or more than one.
        """
        found = [event for event in self.events if event["type"] == event_type]
        if len(found) != 1:
            raise MalformedError("receipt.event_log", f"must hold exactly one {event_type}, holds {len(found)}")
        return found[0]


def sign_receipt(
    *,
    receipt_id: str,
    chat_id: str | None,
    model: str | None,
    keyset_digest: str,
    endpoint: str,
    method: str,
    served_at: int,
    events: Sequence[Mapping[str, Any]],
    signer: ReceiptSigner,
) -> bytes:
    """A signed receipt document (aci/1 sections 7.2 and 7.3) in its RFC 8785 form. `served_at` is in unix seconds."""
    document: dict[str, Any] = {
        "api_version": API_VERSION,
        "receipt_id": receipt_id,
        "chat_id": chat_id,
        "model": model,
        "workload_keyset_digest": keyset_digest,
        "endpoint": endpoint,
        "method": method,
        "served_at": served_at,
        "event_log": [dict(event) for event in events],
        "key_id": signer.receipt_key_id,
    }
    unsigned = jcs(document)
    signature = signer.sign_receipt(unsigned).hex()
    # "signature" sorts right before the last member, so the signed form need not be made from the beginning.
    before, last, after = unsigned.rpartition(b',"workload_keyset_digest":')
    return before + f',"signature":"{signature}"'.encode() + last + after


def parse_receipt(value: Any) -> Receipt:
    """A receipt from its JSON document (aci/1 section 7.3). This checks its shape, not its signature.

    Raises:
        MalformedError: a field is missing, unknown or of the wrong type, or the first event is not `request.received`.
    """
    document = encoding.as_object(value, "receipt")
    encoding.only(document, "receipt", _FIELDS)
    if document["api_version"] != API_VERSION:
        raise MalformedError("receipt.api_version", f"must be {API_VERSION}")
    log = document["event_log"]
    if not isinstance(log, list) or not log:
        raise MalformedError("receipt.event_log", "must be a list that is not empty")
    events = tuple(encoding.as_object(event, "receipt.event_log") for event in log)
    for event in events:
        encoding.text(event.get("type"), "receipt.event_log.type")
    if events[0]["type"] != REQUEST_RECEIVED:
        raise MalformedError("receipt.event_log", f"must begin with {REQUEST_RECEIVED}")
    return Receipt(
        document=document,
        receipt_id=encoding.text(document["receipt_id"], "receipt.receipt_id"),
        chat_id=encoding.text(document["chat_id"], "receipt.chat_id", nullable=True),
        model=encoding.text(document["model"], "receipt.model", nullable=True),
        keyset_digest=encoding.text(document["workload_keyset_digest"], "receipt.workload_keyset_digest"),
        endpoint=encoding.text(document["endpoint"], "receipt.endpoint"),
        method=encoding.text(document["method"], "receipt.method"),
        served_at=encoding.integer(document["served_at"], "receipt.served_at"),
        events=events,
        key_id=encoding.text(document["key_id"], "receipt.key_id"),
        signature=encoding.hex_bytes(document["signature"], "receipt.signature", size=64),
    )


def check_signature(receipt: Receipt, keyset: Keyset) -> None:
    """Check a receipt against an established keyset (aci/1 section 9.3, checks 1 and 2).

    Raises:
        EvidenceError: it names another keyset or an unknown key, or the signature is wrong.
    """
    if receipt.keyset_digest != keyset.digest:
        raise EvidenceError(f"the receipt names keyset {receipt.keyset_digest}, the attested one is {keyset.digest}")
    key = next((key for key in keyset.receipt_signing_keys if key.key_id == receipt.key_id), None)
    if key is None or key.algo != ALGO_RECEIPT:
        raise EvidenceError(f"the attested keyset has no {ALGO_RECEIPT} key with the id {receipt.key_id!r}")
    unsigned = {name: value for name, value in receipt.document.items() if name != "signature"}
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public_key)).verify(receipt.signature, jcs(unsigned))
    except InvalidSignature as error:
        raise EvidenceError("the receipt's signature does not match its content") from error
