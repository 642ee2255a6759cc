"""The `sev_snp` evidence format: an AMD SEV-SNP attestation report and the certificates of the key that signed it.

    {"report": lower-case hex of the 1184-byte report,
     "certificates": [base64 DER of VCEK or VLEK, of ASK or ASVK, of ARK],
     "crl": base64 DER of AMD's revocation list, optional}

Sources: AMD 56860 "SEV Secure Nested Paging Firmware ABI" (ATTESTATION_REPORT, TCB_VERSION, guest policy) and AMD 57230
"VCEK Certificate and KDS Interface" (certificate extensions). The report's first 0x2A0 bytes are signed; the signature
and zeros follow. The keys of an ID block are facts here, not authorities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509 import Certificate

from attestation import encoding
from attestation.errors import EvidenceError, MalformedError
from attestation.evidence import x509
from attestation.evidence.amd import Endorsement, Tcb, endorsement, line_of_cpu
from attestation.evidence.appraisal import Appraisal, Checks, Inputs, NotVerified
from attestation.evidence.measurements import check_allowed
from attestation.evidence.roots import AMD_ARK

TEE_TYPE: Final = "sev_snp"
REPORT_BYTES: Final = 0x4A0
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = range(2, 6)
REQUIRED_REGISTER: Final = "measurement"
"""What a measurement allow-list must name: everything that was in the guest's memory at launch."""

_T = TypeVar("_T")
_CERTIFICATES: Final = 3
_INTEGER_BYTES: Final = 72  # of r and of s, little-endian; the rest of the signature field is reserved
_ECDSA_P384_SHA384: Final = 1
_VCEK, _VLEK, _UNSIGNED = 0, 1, 7  # SIGNING_KEY
_MIGRATION_AGENT, _DEBUG = 1 << 18, 1 << 19
_POLICY_ONE: Final = 1 << 17  # reserved, must be one
_POLICY_ZERO: Final = -1 << 26  # reserved, must be zero, also in the newest ABI that is known here
_FLAGS_ZERO: Final = -1 << 5


@dataclass(frozen=True, slots=True)
class Report:
    """An attestation report by its fields; offsets are those of the ABI's ATTESTATION_REPORT table."""

    raw: bytes

    def number(self, start: int, size: int) -> int:
        return int.from_bytes(self.raw[start : start + size], "little")

    @property
    def version(self) -> int:
        return self.number(0x000, 4)

    @property
    def policy(self) -> int:
        return self.number(0x008, 8)

    @property
    def vmpl(self) -> int:
        return self.number(0x030, 4)

    @property
    def current_tcb(self) -> Tcb:
        return self.raw[0x038:0x040]

    @property
    def flags(self) -> int:
        return self.number(0x048, 4)

    @property
    def signing_key(self) -> int:
        return self.flags >> 2 & 7

    @property
    def report_data(self) -> bytes:
        return self.raw[0x050:0x090]

    @property
    def reported_tcb(self) -> Tcb:
        return self.raw[0x180:0x188]

    @property
    def cpu(self) -> tuple[int, int] | None:
        """CPUID family and model; reports have them from version 3 on."""
        return (self.raw[0x188], self.raw[0x189]) if self.version >= 3 else None

    @property
    def chip_id(self) -> bytes:
        """64 bytes; all zero where the host masks it."""
        return self.raw[0x1A0:0x1E0]

    @property
    def committed_tcb(self) -> Tcb:
        return self.raw[0x1E0:0x1E8]

    @property
    def signature(self) -> tuple[int, int]:
        return self.number(SIGNED_BYTES, _INTEGER_BYTES), self.number(SIGNED_BYTES + _INTEGER_BYTES, _INTEGER_BYTES)

    def measurements(self) -> dict[str, str]:
        fields = {
            "measurement": (0x090, 48),
            "host_data": (0x0C0, 32),
            "family_id": (0x010, 16),
            "image_id": (0x020, 16),
            "id_key_digest": (0x0E0, 48),
            "author_key_digest": (0x110, 48),
        }
        return {name: self.raw[start : start + size].hex() for name, (start, size) in fields.items()}

    def reserved(self) -> list[tuple[int, int]]:
        """[start, end) of what must be zero in this version."""
        cpu = (0x18B if self.version >= 3 else 0x188, 0x1A0)
        tail = (0x208 if self.version >= 5 else 0x1F8, SIGNED_BYTES)  # mitigation vectors since version 5
        after_signature = (SIGNED_BYTES + 2 * _INTEGER_BYTES, REPORT_BYTES)
        return [(0x04C, 0x050), cpu, (0x1EB, 0x1EC), (0x1EF, 0x1F0), tail, after_signature]


def make_evidence(report: bytes, certificates: Sequence[bytes], crl: bytes | None = None) -> dict[str, Any]:
    """The evidence object for a report and the DER certificates [VCEK or VLEK, ASK or ASVK, ARK]."""
    evidence: dict[str, Any] = {
        "report": report.hex(),
        "certificates": [encoding.b64(certificate) for certificate in certificates],
    }
    return evidence if crl is None else {**evidence, "crl": encoding.b64(crl)}


def appraise(evidence: Any, inputs: Inputs) -> Appraisal:
    """Check an SEV-SNP report up to AMD's root, or up to one of `inputs.roots["sev_snp"]`.

    Without a revocation list in the evidence, `sev_snp.revocation` is not verified. `chip` is the report's 64-byte chip
    id; where the host masks it, the one that the VCEK certificate names. The format has no time of its own.
    """
    return _Appraiser(inputs).run(evidence)


class _Appraiser:
    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._certificates: list[Certificate] | None = None
        self._line_of_root: str | None = None
        self._endorsed: Endorsement | None = None
        self._chip: str | None = None

    def run(self, evidence: Any) -> Appraisal:
        checks = Checks()
        if not checks.run("sev_snp.shape", lambda: self._shape(evidence)):
            return Appraisal(tee_type=TEE_TYPE, is_hardware=True, checks=checks.done)
        steps: dict[str, Callable[[], str]] = {
            "format": self._format,
            "certificates": lambda: self._parse_certificates(evidence),
            "root": self._root,
            "chain": self._check_chain,
            "validity": lambda: x509.check_validity(self._chain, self._inputs.now),
            "revocation": lambda: self._revocation(evidence),
            "signature": self._signature,
            "endorsement": self._endorsement,
            "chip": self._check_chip,
            "tcb": self._tcb,
            "debug": self._debug,
            "migration": self._migration,
            "vmpl": self._vmpl,
            "denied": self._denied,
            "measurements": lambda: check_allowed(
                self._inputs.policy, TEE_TYPE, self._report.measurements(), REQUIRED_REGISTER
            ),
        }
        for name, step in steps.items():
            checks.run(f"sev_snp.{name}", step)
        return Appraisal(
            tee_type=TEE_TYPE,
            is_hardware=True,
            checks=checks.done,
            report_data=self._report.report_data,
            measurements=self._report.measurements(),
            chip=self._chip,
        )

    def _shape(self, evidence: Any) -> str:
        document = encoding.as_object(evidence, "evidence")
        encoding.only(document, "evidence", {"report", "certificates"}, frozenset({"crl"}))
        self._report = Report(encoding.hex_bytes(document["report"], "evidence.report", size=REPORT_BYTES))
        if self._report.version not in VERSIONS:
            raise MalformedError("evidence.report", f"is of version {self._report.version}; known are 2 to 5")
        return f"a report of version {self._report.version}"

    def _parse_certificates(self, evidence: Any) -> str:
        texts = evidence["certificates"]
        if not isinstance(texts, list) or len(texts) != _CERTIFICATES:
            raise MalformedError("evidence.certificates", "must be three: VCEK or VLEK, ASK or ASVK, ARK")
        places = [f"evidence.certificates[{index}]" for index in range(_CERTIFICATES)]
        self._certificates = [
            x509.certificate(encoding.b64_bytes(text, place), place) for text, place in zip(texts, places, strict=True)
        ]
        return "three certificates"

    @property
    def _chain(self) -> list[Certificate]:
        return _need(self._certificates, "sev_snp.certificates")

    @property
    def _endorsement_found(self) -> Endorsement:
        return _need(self._endorsed, "sev_snp.endorsement")

    @property
    def _kind(self) -> str:
        return "VLEK" if self._report.signing_key == _VLEK else "VCEK"

    def _format(self) -> str:
        report = self._report
        algorithm = report.number(0x034, 4)
        if algorithm != _ECDSA_P384_SHA384:
            raise EvidenceError(f"the report's signature algorithm is {algorithm}, not 1 (ECDSA P-384 with SHA-384)")
        if report.signing_key == _UNSIGNED:
            raise EvidenceError("the platform does not sign its reports")
        if report.signing_key not in (_VCEK, _VLEK) or report.flags & _FLAGS_ZERO:
            raise EvidenceError(f"the report's flags {report.flags:#x} are not understood")
        if not report.policy & _POLICY_ONE or report.policy & _POLICY_ZERO:
            raise EvidenceError(f"the guest policy {report.policy:#x} is not understood")
        for start, end in report.reserved():
            if any(report.raw[start:end]):
                raise EvidenceError(f"reserved bytes {start:#x} to {end:#x} of the report are not zero")
        return f"as the ABI lays it out, signed by a {self._kind}"

    def _root(self) -> str:
        given = self._inputs.roots.get(TEE_TYPE)
        name = x509.check_root(self._chain[-1], AMD_ARK, given)
        if given is not None:
            return "a root that was given in place of AMD's"
        self._line_of_root = name
        return f"AMD's root for {name}"

    def _check_chain(self) -> str:
        # AMD's VCEK certificates have no keyUsage.
        x509.check_chain(self._chain, x509.Scheme.RSA_PSS_SHA384, leaf_states_usage=False)
        return " > ".join(x509.common_name(one) for one in reversed(self._chain))

    def _revocation(self, evidence: Any) -> str:
        if "crl" not in evidence:
            raise NotVerified("the evidence has no revocation list")
        crl = encoding.b64_bytes(evidence["crl"], "evidence.crl")
        scheme = x509.Scheme.RSA_PSS_SHA384
        return x509.check_revocation(crl, self._chain, scheme, self._inputs.now, "evidence.crl")

    def _signature(self) -> str:
        signature = encode_dss_signature(*self._report.signature)
        signed = self._report.raw[:SIGNED_BYTES]
        if not x509.verifies(self._chain[0], x509.Scheme.ECDSA_P384_SHA384, signature, signed):
            raise EvidenceError(f"the {self._kind} did not sign this report")
        return f"the {self._kind} signed this report"

    def _endorsement(self) -> str:
        found = endorsement(self._chain[0])
        if found.kind != self._kind:
            raise EvidenceError(f"the report is signed by a {self._kind}, the certificate is of a {found.kind}")
        authority = f"SEV-VLEK-{found.line}" if found.kind == "VLEK" else f"SEV-{found.line}"
        if x509.common_name(self._chain[1]) != authority:
            raise EvidenceError(f"a {found.kind} for {found.line} comes from {authority}")
        if self._line_of_root not in (None, found.line):
            raise EvidenceError(f"the certificate is for {found.line}, the root for {self._line_of_root}")
        if self._report.cpu is not None and line_of_cpu(*self._report.cpu) != found.line:
            family, model = self._report.cpu
            raise EvidenceError(f"CPU family {family:#x} model {model:#x} of the report is not a {found.line}")
        self._endorsed = found
        return f"a {found.kind} for {found.line}"

    def _check_chip(self) -> str:
        masked = not any(self._report.chip_id)
        if not masked:
            self._chip = self._report.chip_id.hex()
        endorsed = self._endorsement_found
        if endorsed.chip_id is None:
            return f"the VLEK is of the provider {endorsed.csp_id} and names no chip"
        if masked:
            self._chip = endorsed.chip_id.hex()
            return "the host masks the chip id in reports; the VCEK that signed names it"
        if endorsed.chip_id != self._report.chip_id:
            raise EvidenceError("the report is of another chip than the VCEK")
        return "the report and the VCEK name the same chip"

    def _tcb(self) -> str:
        report, endorsed = self._report, self._endorsement_found.tcb
        if report.reported_tcb != endorsed:
            raise EvidenceError(f"TCB {report.reported_tcb.hex()} of the report is not {endorsed.hex()}, as certified")
        if not _at_most(report.reported_tcb, report.committed_tcb):
            raise EvidenceError("the reported TCB is above the committed one, so the platform can fall below it")
        if not _at_most(report.committed_tcb, report.current_tcb):
            raise EvidenceError("the committed TCB is above the current one")
        return f"TCB {endorsed.hex()} is certified, committed and running"

    def _debug(self) -> str:
        if self._report.policy & _DEBUG:
            raise EvidenceError("the guest policy allows debugging: the host can read its memory")
        return "the host cannot debug the guest"

    def _migration(self) -> str:
        if self._report.policy & _MIGRATION_AGENT:
            raise EvidenceError("the guest policy allows a migration agent, which can move the guest elsewhere")
        return "no migration agent"

    def _vmpl(self) -> str:
        highest = self._inputs.policy.maximum_vmpl
        if self._report.vmpl > highest:
            raise EvidenceError(
                f"the report was asked for at VMPL {self._report.vmpl}; at most {highest} is acceptable"
            )
        return f"asked for at VMPL {self._report.vmpl}"

    def _denied(self) -> str:
        if not self._inputs.policy.denied:
            return "the policy denies no chip"
        if self._chip is None:
            raise NotVerified("the evidence names no chip")
        # Turin names chips by 8 bytes, which fill the report's field with zeros behind them.
        if any(entry.ljust(len(self._chip), "0") == self._chip for entry in self._inputs.policy.denied):
            raise EvidenceError(f"the chip {self._chip} is on the deny-list")
        return "the chip is not on the deny-list"


def _need(value: _T | None, check_id: str) -> _T:
    if value is None:
        raise NotVerified(f"needs {check_id}")
    return value


def _at_most(lower: Tcb, higher: Tcb) -> bool:
    """Whether no component of a TCB is above its counterpart; every component is one byte."""
    return all(low <= high for low, high in zip(lower, higher, strict=True))
