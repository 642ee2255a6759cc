"""Intel's collateral for a TDX quote: what it must contain, and the time for which it holds.

Collateral is the JSON form of QuoteCollateralV3 (Intel DCAP, `sgx_ql_qve_collateral_t`), as `dcap-qvl` writes it: PEM
chains and signed JSON documents as text, CRLs and signatures as hex. Nothing here trusts it: its signatures are checked
together with the quote. What is checked here is that no byte of it can change unnoticed, and that it is in time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from attestation import encoding
from attestation.errors import EvidenceError, MalformedError

_CHAINS: Final = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
_CRLS: Final = ("root_ca_crl", "pck_crl")
_SIGNED: Final = ("tcb_info", "qe_identity")
_PCK_CHAIN: Final = "pck_certificate_chain"
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Collateral of the published shape. Its signatures are not checked yet."""

    members: Mapping[str, str]
    """The members of QuoteCollateralV3, and nothing else."""
    fmspc: str
    """The platform family it is for: 6 bytes as lower-case hex."""
    issued_at: int
    """Unix seconds of its youngest part: it holds from then on."""
    expires_at: int
    """Unix seconds of the first `nextUpdate`: it holds until, and not at, this second."""

    def to_json(self, *, with_pck_chain: bool) -> str:
        """The document for `dcap-qvl`, which would prefer a PCK chain in it to the one inside the quote."""
        return json.dumps({name: text for name, text in self.members.items() if with_pck_chain or name != _PCK_CHAIN})

    def check_time(self, now: int) -> None:
        """Raises EvidenceError when it does not hold at `now`."""
        if now < self.issued_at:
            raise EvidenceError(f"the collateral is of {self.issued_at}, after the time of the check ({now})")
        if now >= self.expires_at:
            raise EvidenceError(f"the collateral expired at {self.expires_at} (now {now})")


def parse_collateral(document: Any) -> Collateral:
    """Collateral from its JSON document. Members that QuoteCollateralV3 does not know are left out.

    Raises:
        MalformedError: it does not have the published shape.
        EvidenceError: a certificate chain in it does not hold together.
    """
    if not isinstance(document, Mapping):
        raise MalformedError("collateral", "must be a JSON object")
    names = [*_CHAINS, *_CRLS, *_SIGNED, *(f"{name}_signature" for name in _SIGNED)]
    if document.get(_PCK_CHAIN) is not None:
        names.append(_PCK_CHAIN)
    members = {name: encoding.text(document.get(name), f"collateral.{name}") for name in names}
    chains = {name: certificate_chain(members[name].encode(), f"collateral.{name}") for name in _CHAINS}
    crls = {name: _crl(members[name], f"collateral.{name}") for name in _CRLS}
    if not _signed_by(crls["pck_crl"], chains["pck_crl_issuer_chain"][0]):
        raise EvidenceError("collateral.pck_crl is not signed by the head of collateral.pck_crl_issuer_chain")
    for name in _SIGNED:
        encoding.hex_bytes(members[f"{name}_signature"], f"collateral.{name}_signature", size=_SIGNATURE_BYTES)
    documents = {
        name: encoding.as_object(encoding.parse_json(members[name], f"collateral.{name}"), f"collateral.{name}")
        for name in _SIGNED
    }
    fmspc = encoding.text(documents["tcb_info"].get("fmspc"), "collateral.tcb_info.fmspc").lower()
    windows = [_window(found, f"collateral.{name}") for name, found in documents.items()]
    windows += [_crl_window(crl, f"collateral.{name}") for name, crl in crls.items()]
    return Collateral(
        members=members,
        fmspc=encoding.hex_bytes(fmspc, "collateral.tcb_info.fmspc", size=6).hex(),
        issued_at=max(issued for issued, _ in windows),
        expires_at=min(expires for _, expires in windows),
    )


def certificate_chain(pem: bytes, where: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM chain, leaf first, each signed by the next one, and the root at its end by itself.

    Whether the chain ends at a root that is trusted is not checked here. A verifier ignores what stands in a chain
    beyond the certificates it needs, so a change there would go unnoticed; here it does not.

    Raises:
        MalformedError: not PEM, no certificate, or text besides the certificates.
        EvidenceError: a certificate is not signed by the next one, or the last one by itself.
    """
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise MalformedError(where, "must be a chain of PEM certificates") from error
    # Line breaks differ between writers; nothing else may.
    if b"".join(pem.split()) != b"".join(b"".join(cert.public_bytes(Encoding.PEM) for cert in chain).split()):
        raise MalformedError(where, "must hold PEM certificates and nothing else")
    for certificate, issuer in [*pairwise(chain), (chain[-1], chain[-1])]:
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise EvidenceError(
                f"{where}: a certificate is not signed by the next one, or the last by itself"
            ) from error
    return chain


def _crl(value: str, where: str) -> x509.CertificateRevocationList:
    try:
        return x509.load_der_x509_crl(encoding.hex_bytes(value, where))
    except ValueError as error:
        raise MalformedError(where, "must be a DER certificate revocation list") from error


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    return isinstance(key, EllipticCurvePublicKey) and crl.is_signature_valid(key)


def _window(document: Mapping[str, Any], where: str) -> tuple[int, int]:
    issued, expires = (_seconds(document.get(name), f"{where}.{name}") for name in ("issueDate", "nextUpdate"))
    return issued, expires


def _crl_window(crl: x509.CertificateRevocationList, where: str) -> tuple[int, int]:
    if crl.next_update_utc is None:
        raise MalformedError(where, "must say when it is updated next")
    return int(crl.last_update_utc.timestamp()), int(crl.next_update_utc.timestamp())


def _seconds(value: Any, where: str) -> int:
    try:
        return int(datetime.strptime(encoding.text(value, where), "%Y-%m-%dT%H:%M:%S%z").timestamp())
    except ValueError as error:
        raise MalformedError(where, "must be a time such as 2026-01-31T12:00:00Z") from error
