"""X.509 certificate chains, as far as hardware evidence needs them.

What is checked of RFC 5280 section 6.1: names, signatures, basicConstraints with path length, keyUsage, critical
extensions, and validity at a given time. Policies and name constraints do not occur here; a certificate that marks one
critical is refused. A chain is a sequence with the end-entity certificate first and the root last.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import pairwise
from typing import Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509 import (
    BasicConstraints,
    Certificate,
    CertificateIssuer,
    CertificateRevocationList,
    DirectoryName,
    ExtensionNotFound,
    ExtensionType,
    IssuingDistributionPoint,
    KeyUsage,
    Name,
    load_der_x509_certificate,
    load_der_x509_crl,
    load_pem_x509_certificates,
)
from cryptography.x509.oid import NameOID

from attestation.digest import sha256_hex
from attestation.errors import EvidenceError, MalformedError

_PROCESSED: Final = frozenset({BasicConstraints.oid, KeyUsage.oid})
_PROCESSED_IN_CRL: Final = frozenset({IssuingDistributionPoint.oid})
_SHA384_BYTES: Final = 48
_E = TypeVar("_E", bound=ExtensionType)


class Scheme(Enum):
    """How every signature of a chain must have been made; what a certificate declares is not asked."""

    RSA_PSS_SHA384 = "RSA-PSS with SHA-384"
    ECDSA_P384_SHA384 = "ECDSA P-384 with SHA-384"


def certificate(der: bytes, where: str) -> Certificate:
    """One certificate from its DER form.

    Raises:
        MalformedError: it is not one.
    """
    try:
        with _zero_serial_numbers():
            found = load_der_x509_certificate(der)
    except ValueError as error:
        raise MalformedError(where, "must be a DER certificate") from error
    _check_unsigned(der, found.tbs_certificate_bytes, found.signature, where)
    return found


def der_certificates(file: bytes, where: str) -> list[bytes]:
    """The DER form of every certificate in a file, which is PEM or one DER certificate, in the file's order.

    Raises:
        MalformedError: it is PEM, and not of certificates.
    """
    if b"-----BEGIN" not in file:
        return [file]
    try:
        with _zero_serial_numbers():
            return [one.public_bytes(Encoding.DER) for one in load_pem_x509_certificates(file)]
    except ValueError as error:
        raise MalformedError(where, "must be PEM or DER certificates") from error


def check_root(root: Certificate, pins: Mapping[str, str], given: Sequence[bytes] | None) -> str:
    """Which trusted root this is: the name of its pin, or "given" when `given` (DER) replaces the pins and has it.

    Raises:
        EvidenceError: it is none.
    """
    der = root.public_bytes(Encoding.DER)
    if given is not None:
        if der not in given:
            raise EvidenceError(f"{common_name(root)} is none of the roots that were given")
        return "given"
    name = pins.get(sha256_hex(der))
    if name is None:
        raise EvidenceError(f"{common_name(root)} is not a root of the vendor's")
    return name


def check_chain(chain: Sequence[Certificate], scheme: Scheme, *, leaf_states_usage: bool) -> None:
    """Check everything about a chain but its root's identity, validity and revocation.

    Args:
        leaf_states_usage: the end-entity certificate must have keyUsage; without, it may leave it out.

    Raises:
        EvidenceError: a name, a signature, a constraint or a key usage is wrong.
    """
    for below, (subject, issuer) in enumerate(pairwise(chain)):
        if subject.issuer != issuer.subject:
            raise EvidenceError(f"{common_name(subject)} was not issued by {common_name(issuer)}")
        _check_authority(issuer, below)
        if not verifies(issuer, scheme, subject.signature, subject.tbs_certificate_bytes):
            raise EvidenceError(f"{common_name(issuer)} did not sign {common_name(subject)} ({scheme.value})")
    leaf = chain[0]
    _check_critical(leaf)
    constraints = _extension(leaf, BasicConstraints)
    if constraints is not None and constraints.ca:
        raise EvidenceError(f"{common_name(leaf)} is an authority and cannot sign evidence")
    usage = _extension(leaf, KeyUsage)
    if not usage.digital_signature if usage is not None else leaf_states_usage:
        raise EvidenceError(f"{common_name(leaf)} is not for signatures (keyUsage without digitalSignature)")


def check_validity(chain: Sequence[Certificate], at: int) -> str:
    """Check that every certificate is valid at `at` (unix seconds).

    Raises:
        EvidenceError: one is not.
    """
    for one in chain:
        if at < one.not_valid_before_utc.timestamp():
            raise EvidenceError(f"{common_name(one)} is not valid before {one.not_valid_before_utc:%Y-%m-%d %H:%M:%S}")
        if at > one.not_valid_after_utc.timestamp():
            raise EvidenceError(f"{common_name(one)} expired on {one.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC")
    return f"valid until {min(one.not_valid_after_utc for one in chain):%Y-%m-%d %H:%M:%S} UTC"


def check_revocation(crl_der: bytes, chain: Sequence[Certificate], scheme: Scheme, at: int, where: str) -> str:
    """Check a chain against a revocation list that its root signed (RFC 5280 section 6.3).

    Raises:
        MalformedError: the list is not a DER list.
        EvidenceError: the list is not the root's, not current, not understood, or names a certificate of the chain.
    """
    try:
        crl = load_der_x509_crl(crl_der)
    except ValueError as error:
        raise MalformedError(where, "must be a DER certificate revocation list") from error
    _check_unsigned(crl_der, crl.tbs_certlist_bytes, crl.signature, where)
    root = chain[-1]
    usage = _extension(root, KeyUsage)
    if crl.issuer != root.subject or usage is None or not usage.crl_sign:
        raise EvidenceError(f"the revocation list is not one of {common_name(root)}")
    if not verifies(root, scheme, crl.signature, crl.tbs_certlist_bytes):
        raise EvidenceError(f"{common_name(root)} did not sign the revocation list")
    _check_current(crl, at)
    if any(extension.critical and extension.oid not in _PROCESSED_IN_CRL for extension in crl.extensions):
        raise EvidenceError("the revocation list has a critical extension that is not understood")
    revoked = _revoked(crl)
    for one in chain:
        if (one.issuer, one.serial_number) in revoked:
            raise EvidenceError(f"{common_name(one)} is revoked")
    return f"{len(revoked)} certificates are revoked, none of these"


def verifies(issuer: Certificate, scheme: Scheme, signature: bytes, signed: bytes) -> bool:
    """Whether the key of `issuer` made `signature` over `signed`, in exactly this scheme."""
    key = issuer.public_key()
    try:
        if scheme is Scheme.RSA_PSS_SHA384 and isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, padding.PSS(padding.MGF1(SHA384()), _SHA384_BYTES), SHA384())
            return True
        if scheme is Scheme.ECDSA_P384_SHA384 and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(SHA384()))
            return isinstance(key.curve, ec.SECP384R1)
    except InvalidSignature:
        return False
    return False


@contextmanager
def _zero_serial_numbers() -> Iterator[None]:
    """AMD gives every VCEK the serial number 0, which RFC 5280 forbids and the parser warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


def common_name(one: Certificate) -> str:
    """The subject's common name, for messages."""
    names = one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "a certificate without a name"


def _check_unsigned(der: bytes, signed: bytes, signature: bytes, where: str) -> None:
    """What no signature covers has one right form only, so that nothing in a certificate can change unnoticed."""
    start = der.index(signed) + len(signed)
    # The algorithm stands inside and behind what is signed (RFC 5280 section 4.1.1.2).
    if der[start : start + 2 + der[start + 1]] not in signed:
        raise MalformedError(where, "names two signature algorithms")
    if not der.endswith(b"\0" + signature):  # the count of unused bits
        raise MalformedError(where, "has a signature that is not of whole bytes")


def _check_authority(issuer: Certificate, below: int) -> None:
    """`below` counts the authorities between this one and the end-entity certificate."""
    _check_critical(issuer)
    constraints = _extension(issuer, BasicConstraints)
    if constraints is None or not constraints.ca:
        raise EvidenceError(f"{common_name(issuer)} is not an authority (basicConstraints)")
    if constraints.path_length is not None and below > constraints.path_length:
        raise EvidenceError(f"{common_name(issuer)} allows {constraints.path_length} authorities below it, not {below}")
    usage = _extension(issuer, KeyUsage)
    if usage is None or not usage.key_cert_sign:
        raise EvidenceError(f"{common_name(issuer)} may not sign certificates (keyUsage without keyCertSign)")


def _check_critical(one: Certificate) -> None:
    for extension in one.extensions:
        if extension.critical and extension.oid not in _PROCESSED:
            oid = extension.oid.dotted_string
            raise EvidenceError(f"{common_name(one)} has a critical extension that is not understood: {oid}")


def _extension(one: Certificate, kind: type[_E]) -> _E | None:
    try:
        return one.extensions.get_extension_for_class(kind).value
    except ExtensionNotFound:
        return None


def _check_current(crl: CertificateRevocationList, at: int) -> None:
    if at < crl.last_update_utc.timestamp():
        raise EvidenceError(f"the revocation list is of the future: {crl.last_update_utc:%Y-%m-%d %H:%M:%S} UTC")
    if crl.next_update_utc is None or at > crl.next_update_utc.timestamp():
        raise EvidenceError("the revocation list is out of date")


def _revoked(crl: CertificateRevocationList) -> set[tuple[Name, int]]:
    """(issuer, serial number) of every entry; an indirect list may name other issuers (RFC 5280 section 5.3.3)."""
    revoked = set()
    issuer = crl.issuer
    for entry in crl:
        for extension in entry.extensions:
            if isinstance(extension.value, CertificateIssuer):
                issuer = next(iter(extension.value.get_values_for_type(DirectoryName)))
            elif extension.critical:
                raise EvidenceError("the revocation list has an entry that is not understood")
        revoked.add((issuer, entry.serial_number))
    return revoked
