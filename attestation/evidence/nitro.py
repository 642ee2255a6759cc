"""The `nitro` evidence format: an attestation document of the AWS Nitro Secure Module.

    {"document": lower-case hex of the COSE_Sign1}

A provider binds its 64 bytes of report data by asking the NSM for a document with exactly them as `user_data`.

Sources: AWS "Nitro Enclaves Attestation Process" (aws-nitro-enclaves-nsm-api, docs/attestation_process.md) sections 2.2
and 3; RFC 9052 sections 4.2 and 4.4 (COSE_Sign1, Sig_structure). Signing certificates live three hours and are judged
as of `Inputs.now`, as every certificate is: who checks an older document pins that time. AWS revokes nothing.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import cbor2
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509 import Certificate

from attestation import encoding
from attestation.errors import EvidenceError, MalformedError
from attestation.evidence import x509
from attestation.evidence.appraisal import Appraisal, Checks, Inputs, NotVerified
from attestation.evidence.measurements import check_allowed
from attestation.evidence.roots import AWS_NITRO
from attestation.keyset import REPORT_DATA_BYTES

TEE_TYPE: Final = "nitro"
REQUIRED_REGISTER: Final = "pcr0"
"""What a measurement allow-list must name: the hash of the whole enclave image."""

_COSE_SIGN1: Final = b"\xd2"  # tag 18, which may be left out
_ES384: Final = {1: -35}
_SIGNATURE_BYTES: Final = 96
_MAX_PAYLOAD_BYTES: Final = 16_384
_ENVELOPE_BYTES: Final = 128  # protected header, signature and lengths need less
_MAX_DEPTH: Final = 3
_MAX_CERTIFICATE_BYTES: Final = 1024
_PCRS: Final = range(32)
_PCR_BYTES: Final = 48  # SHA-384
_IMAGE_PCRS: Final = range(3)
_OPTIONAL: Final = (("public_key", 1, 1024), ("user_data", 0, 512), ("nonce", 0, 512))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """The payload. `timestamp` is in milliseconds of unix time."""

    module_id: str
    timestamp: int
    pcrs: dict[int, bytes]
    certificates: list[bytes]
    """DER, the signing certificate first, the root last."""
    user_data: bytes | None


@dataclass(frozen=True, slots=True)
class _Envelope:
    protected: bytes
    payload: bytes
    signature: bytes


def appraise(evidence: Any, inputs: Inputs) -> Appraisal:
    """Check a Nitro attestation document up to AWS's root, or up to one of `inputs.roots["nitro"]`.

    `report_data` is the document's `user_data` when that has 64 bytes, else None. Measurements are pcr0, pcr1, ... as
    far as the document has them. `issued_at` is the document's timestamp. The format names no chip.
    """
    return _Appraiser(inputs).run(evidence)


class _Appraiser:
    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._certificates: list[Certificate] = []

    def run(self, evidence: Any) -> Appraisal:
        checks = Checks()
        readable = checks.run("nitro.shape", lambda: self._shape(evidence)) and checks.run(
            "nitro.document", self._parse
        )
        if not readable:
            return Appraisal(tee_type=TEE_TYPE, is_hardware=True, checks=checks.done)
        document = self._document
        measured = {f"pcr{index}": value.hex() for index, value in sorted(document.pcrs.items())}
        steps: dict[str, Callable[[], str]] = {
            "certificates": self._parse_certificates,
            "root": self._root,
            "chain": self._check_chain,
            "validity": self._validity,
            "signature": self._signature,
            "debug": self._debug,
            "measurements": lambda: check_allowed(self._inputs.policy, TEE_TYPE, measured, REQUIRED_REGISTER),
        }
        for name, step in steps.items():
            checks.run(f"nitro.{name}", step)
        bound = document.user_data is not None and len(document.user_data) == REPORT_DATA_BYTES
        return Appraisal(
            tee_type=TEE_TYPE,
            is_hardware=True,
            checks=checks.done,
            report_data=document.user_data if bound else None,
            measurements=measured,
            issued_at=document.timestamp // 1000,
        )

    def _shape(self, evidence: Any) -> str:
        encoding.only(encoding.as_object(evidence, "evidence"), "evidence", {"document"})
        message = encoding.hex_bytes(evidence["document"], "evidence.document").removeprefix(_COSE_SIGN1)
        if len(message) > _MAX_PAYLOAD_BYTES + _ENVELOPE_BYTES:
            raise MalformedError("evidence.document", f"is longer than {_MAX_PAYLOAD_BYTES + _ENVELOPE_BYTES} bytes")
        parts = _decode(message, "evidence.document")
        if not isinstance(parts, list) or len(parts) != 4:
            raise MalformedError("evidence.document", "must be a COSE_Sign1, an array of four")
        protected = _bytes(parts[0], "evidence.document.protected", 0, _MAX_PAYLOAD_BYTES)
        if parts[1] != {}:
            raise MalformedError("evidence.document.unprotected", "must be an empty map")
        payload = _bytes(parts[2], "evidence.document.payload", 1, _MAX_PAYLOAD_BYTES)
        signature = _bytes(parts[3], "evidence.document.signature", _SIGNATURE_BYTES, _SIGNATURE_BYTES)
        if cbor2.dumps([protected, {}, payload, signature]) != message:
            raise MalformedError("evidence.document", "must be encoded in the shortest way, with nothing behind it")
        self._envelope = _Envelope(protected, payload, signature)
        return "a COSE_Sign1"

    def _parse(self) -> str:
        where = "evidence.document.payload"
        payload = encoding.as_object(_decode(self._envelope.payload, where), where)
        if payload.get("digest") != "SHA384":
            raise MalformedError(f"{where}.digest", "must be SHA384")
        for name, shortest, longest in _OPTIONAL:
            if payload.get(name) is not None:
                _bytes(payload[name], f"{where}.{name}", shortest, longest)
        bundle = payload.get("cabundle")
        if not isinstance(bundle, list) or not bundle:
            raise MalformedError(f"{where}.cabundle", "must be certificates, the root first")
        module_id = encoding.text(payload.get("module_id"), f"{where}.module_id")
        if not module_id:
            raise MalformedError(f"{where}.module_id", "must not be empty")
        self._document = _Document(
            module_id=module_id,
            timestamp=encoding.integer(payload.get("timestamp"), f"{where}.timestamp", minimum=1),
            pcrs=_pcrs(payload.get("pcrs"), f"{where}.pcrs"),
            certificates=[
                _bytes(payload.get("certificate"), f"{where}.certificate", 1, _MAX_CERTIFICATE_BYTES),
                *(_bytes(one, f"{where}.cabundle", 1, _MAX_CERTIFICATE_BYTES) for one in reversed(bundle)),
            ],
            user_data=payload.get("user_data"),
        )
        return f"made by {module_id}"

    def _parse_certificates(self) -> str:
        where = "evidence.document.payload.cabundle"
        self._certificates = [x509.certificate(der, where) for der in self._document.certificates]
        return f"{len(self._certificates)} certificates"

    @property
    def _chain(self) -> list[Certificate]:
        if not self._certificates:
            raise NotVerified("needs nitro.certificates")
        return self._certificates

    def _root(self) -> str:
        given = self._inputs.roots.get(TEE_TYPE)
        name = x509.check_root(self._chain[-1], AWS_NITRO, given)
        return name if given is None else "a root that was given in place of AWS's"

    def _check_chain(self) -> str:
        x509.check_chain(self._chain, x509.Scheme.ECDSA_P384_SHA384, leaf_states_usage=True)
        return " > ".join(x509.common_name(one) for one in reversed(self._chain))

    def _validity(self) -> str:
        until = x509.check_validity(self._chain, self._inputs.now)
        leaf = self._chain[0]
        first, last = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        if not first * 1000 <= self._document.timestamp <= last * 1000:
            raise EvidenceError("the document was made when its certificate was not valid")
        return until

    def _signature(self) -> str:
        envelope = self._envelope
        if _decode(envelope.protected, "evidence.document.protected") != _ES384:
            raise EvidenceError("the document is not signed with ES384")
        middle = _SIGNATURE_BYTES // 2
        r, s = (int.from_bytes(half, "big") for half in (envelope.signature[:middle], envelope.signature[middle:]))
        signed = cbor2.dumps(["Signature1", envelope.protected, b"", envelope.payload])
        leaf = self._chain[0]
        if not x509.verifies(leaf, x509.Scheme.ECDSA_P384_SHA384, encode_dss_signature(r, s), signed):
            raise EvidenceError(f"{x509.common_name(leaf)} did not sign this document")
        return f"signed by {x509.common_name(leaf)}"

    def _debug(self) -> str:
        for index in _IMAGE_PCRS:
            if not any(self._document.pcrs.get(index, b"")):
                raise EvidenceError(f"PCR{index} is zero or missing: the enclave runs in debug mode")
        return "not in debug mode"


def _decode(data: bytes, where: str) -> Any:
    """One CBOR value without tags, names that occur twice, or deep nesting."""
    try:
        return cbor2.loads(
            data,
            max_depth=_MAX_DEPTH,
            allow_duplicate_keys=False,
            tag_hook=_refuse,
            # Tags that the library knows would build references, big numbers, patterns or dates.
            semantic_decoders=defaultdict(lambda: _refuse),
        )
    except cbor2.CBORError as error:
        raise MalformedError(where, f"must be CBOR ({error})") from error


def _refuse(*_: Any) -> NoReturn:
    raise ValueError("tags do not occur here")


def _bytes(value: Any, where: str, shortest: int, longest: int) -> bytes:
    if not isinstance(value, bytes) or not shortest <= len(value) <= longest:
        raise MalformedError(where, f"must be a byte string of {shortest} to {longest} bytes")
    return value


def _pcrs(value: Any, where: str) -> dict[int, bytes]:
    if not isinstance(value, dict) or not value:
        raise MalformedError(where, "must be a map of registers")
    for index in value:
        if type(index) is not int or index not in _PCRS:
            raise MalformedError(where, "has a register that is not numbered 0 to 31")
    return {index: _bytes(content, where, _PCR_BYTES, _PCR_BYTES) for index, content in value.items()}
