"""TDX evidence made under a PKI of our own: genuine in every byte, except that Intel has not signed it.

The layout follows Intel's TDX DCAP Quoting Library API (quotes version 4 and 5), its PCK certificate profile (the SGX
extensions) and PCS API v4 (TCB info, QE identity). A verifier accepts it under the root made here and under no other.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

DAY: Final = 86_400
NOW: Final = 1_800_000_000
"""The time at which evidence is made here, unless told otherwise."""

FMSPC: Final = bytes.fromhex("00906ed50000")
PPID: Final = bytes.fromhex("aa" * 16)
RUNTIME_EVENT: Final = 0x08000001
SEPT_VE_DISABLE: Final = 1 << 28

_INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_SIGNER: Final = bytes.fromhex("dc" * 32)
_TCB_SVN: Final = bytes([5, 1, 2, *bytes(13)])
"""TDX module 1 with security version 5; the third component is the late microcode."""
_SGX: Final = "1.2.840.113741.1.13.1"

# Field -> bytes, in the order of the TD report.
_REPORT_10: Final = {
    "tee_tcb_svn": 16,
    "mr_seam": 48,
    "mr_signer_seam": 48,
    "seam_attributes": 8,
    "td_attributes": 8,
    "xfam": 8,
    "mr_td": 48,
    "mr_config_id": 48,
    "mr_owner": 48,
    "mr_owner_config": 48,
    "rt_mr0": 48,
    "rt_mr1": 48,
    "rt_mr2": 48,
    "rt_mr3": 48,
    "report_data": 64,
}
_REPORT_15: Final = {**_REPORT_10, "tee_tcb_svn2": 16, "mr_service_td": 48}
_REPORT_15EX: Final = {
    **_REPORT_15,
    "vmid": 1,
    "td_id": 32,
    "dev_info": 48,
    "init_service_td_hash": 48,
    "init_service_td_attributes": 8,
    "init_cpu_svn": 16,
    "init_tee_tcb_svn": 16,
    "init_tee_fmspc": 12,
    "cur_service_td_hash": 48,
    "cur_service_td_attributes": 8,
}
_BODIES: Final = {"1.0": (2, _REPORT_10), "1.5": (3, _REPORT_15), "1.5ex": (4, _REPORT_15EX)}


@dataclass(frozen=True, kw_only=True)
class CollateralTerms:
    """What the collateral says of the platform."""

    issued_at: int = NOW - DAY
    expires_at: int = NOW + 29 * DAY
    fmspc: bytes = FMSPC
    status: str = "UpToDate"
    advisories: tuple[str, ...] = ()
    evaluation: int = 17
    module_levels: tuple[tuple[int, str], ...] = ((5, "UpToDate"), (3, "OutOfDate"))
    """Security version and status of the TDX module, newest first."""
    revoked_platform: bool = False
    crls_issued_at: int | None = None
    """None for the time at which the rest is issued."""


class TestIntel:
    """A vendor with a root, and one platform whose quoting enclave signs whatever TD report it is given."""

    __test__ = False

    def __init__(self, *, ppid: bytes = PPID, fmspc: bytes = FMSPC) -> None:
        self.ppid, self.fmspc = ppid, fmspc
        self._root_key, self._ca_key, self._pck_key, self._tcb_key, self._attestation_key = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(5)
        )
        self._root = _certificate("Test SGX Root CA", self._root_key, None, self._root_key, ca=1)
        self._ca = _certificate("Test SGX PCK Platform CA", self._ca_key, self._root, self._root_key, ca=0)
        self._tcb = _certificate("Test SGX TCB Signing", self._tcb_key, self._root, self._root_key)
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), self._sgx_extension())
        self._pck = _certificate("Test SGX PCK Certificate", self._pck_key, self._ca, self._ca_key, extension)

    @property
    def root(self) -> bytes:
        """The root certificate, DER."""
        return self._root.public_bytes(Encoding.DER)

    @property
    def chain(self) -> str:
        """The platform's certificate with what certifies it, as PEM."""
        return _pem(self._pck, self._ca, self._root)

    def _sgx_extension(self) -> bytes:
        components = [_named(f"{_SGX}.2.{index}", _integer(2)) for index in range(1, 17)]
        tcb = [*components, _named(f"{_SGX}.2.17", _integer(13)), _named(f"{_SGX}.2.18", der(4, bytes([2] * 16)))]
        flags = [_named(f"{_SGX}.7.{index}", der(1, b"\xff")) for index in (1, 2, 3)]
        return _sequence(
            _named(f"{_SGX}.1", der(4, self.ppid)),
            _named(f"{_SGX}.2", _sequence(*tcb)),
            _named(f"{_SGX}.3", der(4, bytes(2))),
            _named(f"{_SGX}.4", der(4, self.fmspc)),
            _named(f"{_SGX}.5", der(10, b"\x01")),
            _named(f"{_SGX}.6", der(4, bytes(range(16)))),
            _named(f"{_SGX}.7", _sequence(*flags)),
        )

    def quote(
        self,
        report_data: bytes,
        *,
        version: int = 4,
        body: str = "1.0",
        attributes: int = SEPT_VE_DISABLE,
        fields: Mapping[str, bytes] | None = None,
        key_type: int = 2,
        tee_type: int = 0x81,
        chain: str | None = None,
        certification_type: int = 5,
        padding: bytes = b"",
    ) -> bytes:
        """A signed quote.

        Args:
            report_data: 64 bytes.
            version: 4, or 5 with any `body`.
            body: TD report "1.0", "1.5" or "1.5ex".
            attributes: TD ATTRIBUTES as a number.
            fields: any field of the TD report by Intel's name for it, such as ``rt_mr3``.
            key_type: of the attestation key, as the header states it.
            tee_type: as the header states it.
            chain: what stands in the quote for the platform's certificates; None for the genuine chain.
            certification_type: 5 where the certificates are in the quote.
            padding: what follows the quote.
        """
        kind, layout = _BODIES[body]
        values = {
            "tee_tcb_svn": _TCB_SVN,
            "tee_tcb_svn2": _TCB_SVN,
            "td_attributes": attributes.to_bytes(8, "little"),
            "mr_td": b"\x11" * 48,
            **(fields or {}),
            "report_data": report_data,
        }
        report = b"".join(values.get(name, bytes(size)).ljust(size, b"\0") for name, size in layout.items())
        header = b"".join(
            (_le(version, 2), _le(key_type, 2), _le(tee_type, 4), bytes(4), _INTEL_QE, bytes(20)),
        )
        descriptor = b"" if version == 4 else _le(kind, 2) + _le(len(report), 4)
        signed = header + descriptor + report
        public = self._attestation_key.public_key().public_numbers()
        attestation_key = public.x.to_bytes(32, "big") + public.y.to_bytes(32, "big")
        own_data = bytes(range(32))
        qe_report = self._qe_report(hashlib.sha256(attestation_key + own_data).digest())
        pem = (self.chain if chain is None else chain).encode() + b"\0"
        certification = b"".join(
            (
                qe_report,
                _signature(self._pck_key, qe_report),
                _le(len(own_data), 2) + own_data,
                _le(certification_type, 2) + _le(len(pem), 4) + pem,
            )
        )
        authentication = b"".join(
            (
                _signature(self._attestation_key, signed),
                attestation_key,
                _le(6, 2) + _le(len(certification), 4) + certification,
            )
        )
        return signed + _le(len(authentication), 4) + authentication + padding

    def _qe_report(self, key_hash: bytes) -> bytes:
        return b"".join(
            (
                bytes(48),  # CPUSVN, MISCSELECT, reserved
                b"\x11" + bytes(15),  # ATTRIBUTES
                b"\xee" * 32 + bytes(32),  # MRENCLAVE, reserved
                _QE_SIGNER + bytes(96),  # MRSIGNER, reserved
                _le(2, 2) + _le(4, 2) + bytes(60),  # ISVPRODID, ISVSVN, reserved
                key_hash + bytes(32),
            )
        )

    def collateral(self, terms: CollateralTerms | None = None) -> dict[str, Any]:
        """Collateral in the JSON form of QuoteCollateralV3."""
        said = terms or CollateralTerms()
        dates = {"issueDate": _date(said.issued_at), "nextUpdate": _date(said.expires_at)}
        tcb_info = json.dumps(
            {
                "id": "TDX",
                "version": 3,
                **dates,
                "fmspc": said.fmspc.hex().upper(),
                "pceId": "0000",
                "tcbType": 0,
                "tcbEvaluationDataNumber": said.evaluation,
                "tdxModule": _module(),
                "tdxModuleIdentities": [
                    {
                        "id": "TDX_01",
                        **_module(),
                        "tcbLevels": [
                            {"tcb": {"isvsvn": version}, "tcbDate": _date(0), "tcbStatus": status}
                            for version, status in said.module_levels
                        ],
                    }
                ],
                "tcbLevels": [
                    {
                        "tcb": {
                            "sgxtcbcomponents": [{"svn": 2}] * 16,
                            "pcesvn": 13,
                            "tdxtcbcomponents": [{"svn": svn} for svn in (3, 0, 2, *bytes(13))],
                        },
                        "tcbDate": _date(0),
                        "tcbStatus": said.status,
                        "advisoryIDs": list(said.advisories),
                    }
                ],
            },
            separators=(",", ":"),
        )
        qe_identity = json.dumps(
            {
                "id": "TD_QE",
                "version": 2,
                **dates,
                "tcbEvaluationDataNumber": said.evaluation,
                "miscselect": "00000000",
                "miscselectMask": "FFFFFFFF",
                "attributes": "11000000000000000000000000000000",
                "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
                "mrsigner": _QE_SIGNER.hex().upper(),
                "isvprodid": 2,
                "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": _date(0), "tcbStatus": "UpToDate"}],
            },
            separators=(",", ":"),
        )
        revoked = [self._pck.serial_number] if said.revoked_platform else []
        return {
            "pck_crl_issuer_chain": _pem(self._ca, self._root),
            "root_ca_crl": _crl(self._root, self._root_key, said, []).hex(),
            "pck_crl": _crl(self._ca, self._ca_key, said, revoked).hex(),
            "tcb_info_issuer_chain": _pem(self._tcb, self._root),
            "tcb_info": tcb_info,
            "tcb_info_signature": _signature(self._tcb_key, tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": _pem(self._tcb, self._root),
            "qe_identity": qe_identity,
            "qe_identity_signature": _signature(self._tcb_key, qe_identity.encode()).hex(),
        }


@dataclass(kw_only=True)
class DstackGuest:
    """A guest that boots under dstack: it extends the runtime registers and keeps the log."""

    compose: str = '{"manifest_version":2,"name":"tollseal","runner":"docker-compose"}'
    app_id: bytes = b"\xab" * 20
    version: int = 1
    """Of the digests of its own events."""
    log: list[dict[str, Any]] = field(default_factory=list)
    registers: list[bytes] = field(default_factory=lambda: [bytes(48)] * 4)

    @property
    def compose_hash(self) -> bytes:
        return hashlib.sha256(self.compose.encode()).digest()

    @property
    def config_id(self) -> bytes:
        return b"\x01" + self.compose_hash

    def boot(self, *names: str) -> "DstackGuest":
        """Boot through the events that dstack emits, or through those named, in the order given."""
        for register in (0, 1, 0, 2, 1):
            self.measure(register, f"boot event {len(self.log)}".encode())
        payloads = {
            "app-id": self.app_id,
            "compose-hash": self.compose_hash,
            "instance-id": b"\x1d" * 20,
            "key-provider": b'{"name":"kms","id":""}',
        }
        usual = ("system-preparing", *payloads, "boot-mr-done", "system-ready")
        for name in names or usual:
            self.emit(name, payloads.get(name, b""))
        return self

    def measure(self, register: int, data: bytes) -> None:
        """A firmware event: what is hashed does not enter the log."""
        self._extend(register, 0x80000001, hashlib.sha384(data).digest(), "", b"not what was hashed")

    def emit(self, name: str, payload: bytes, *, version: int | None = None) -> None:
        """An event of dstack or, later, of the application."""
        if (version or self.version) == 1:
            preimage = RUNTIME_EVENT.to_bytes(4, "little") + b":" + name.encode() + b":" + payload
        else:
            preimage = f'{{"name":"{name}","payload":"{payload.hex()}","type":{RUNTIME_EVENT}}}'.encode()
        self._extend(3, RUNTIME_EVENT, hashlib.sha384(preimage).digest(), name, payload)

    def _extend(self, register: int, kind: int, digest: bytes, name: str, payload: bytes) -> None:
        self.registers[register] = hashlib.sha384(self.registers[register] + digest).digest()
        self.log.append(
            {
                "imr": register,
                "event_type": kind,
                "digest": digest.hex(),
                "event": name,
                "event_payload": payload.hex(),
            }
        )

    @property
    def fields(self) -> dict[str, bytes]:
        """What stands in its TD report."""
        return {f"rt_mr{number}": value for number, value in enumerate(self.registers)} | {
            "mr_config_id": self.config_id
        }

    def evidence(self, vendor: TestIntel, report_data: bytes, **changes: Any) -> dict[str, Any]:
        """What the service publishes, with the compose text. `changes` replace members."""
        return {
            "quote": vendor.quote(report_data, fields=self.fields).hex(),
            "event_log": json.dumps(self.log),
            "app_compose": self.compose,
            "vm_config": "{}",
            **changes,
        }


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    signer: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
    ca: int | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(NOW - 3000 * DAY, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 3000 * DAY, UTC))
        .add_extension(x509.BasicConstraints(ca=ca is not None, path_length=ca), critical=True)
        .add_extension(_usage(signs_certificates=ca is not None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(signer, SHA256())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=not signs_certificates,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _crl(
    issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey, terms: CollateralTerms, revoked: Sequence[int]
) -> bytes:
    issued_at = datetime.fromtimestamp(terms.crls_issued_at or terms.issued_at, UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(issued_at)
        .next_update(datetime.fromtimestamp(terms.expires_at, UTC))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued_at).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def _module() -> dict[str, str]:
    return {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


def _pem(*chain: x509.Certificate) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain)


def _signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _le(number: int, size: int) -> bytes:
    return number.to_bytes(size, "little")


def der(tag: int, content: bytes) -> bytes:
    """One DER element."""
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


def _sequence(*items: bytes) -> bytes:
    return der(0x30, b"".join(items))


def _integer(number: int) -> bytes:
    return der(2, bytes([number]))


def _named(oid: str, value: bytes) -> bytes:
    first, second, *rest = (int(part) for part in oid.split("."))
    encoded = bytes([first * 40 + second])
    for part in rest:
        groups = [part & 0x7F]
        while part := part >> 7:
            groups.append(part & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return _sequence(der(6, encoded), value)
