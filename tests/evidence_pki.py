"""Issues certificates for test hardware, right or wrong in any single way."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import (
    BasicConstraints,
    Certificate,
    CertificateBuilder,
    CertificateRevocationListBuilder,
    ExtensionType,
    KeyUsage,
    Name,
    NameAttribute,
    RevokedCertificate,
    RevokedCertificateBuilder,
)
from cryptography.x509.oid import NameOID

Key: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

PSS: Final = padding.PSS(padding.MGF1(SHA384()), 48)
_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@cache
def rsa_key(owner: str) -> rsa.RSAPrivateKey:
    """One key per owner and test run: they take long to make. Smaller than a vendor's, for the same reason."""
    assert owner
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_key(owner: str) -> ec.EllipticCurvePrivateKey:
    """One P-384 key per owner and test run."""
    assert owner
    return ec.generate_private_key(ec.SECP384R1())


def usage(*names: str) -> KeyUsage:
    return KeyUsage(**{name: name in names for name in _USAGES})


def der(certificate: Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def name(common_name: str) -> Name:
    return Name([NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), NameAttribute(NameOID.COMMON_NAME, common_name)])


@cache
def authority(
    subject: str,
    owner: str,
    issuer: str,
    signer: str,
    since: int,
    until: int,
    constraints: BasicConstraints | None,
    key_usage: KeyUsage | None,
    serial: int,
) -> Certificate:
    """A certificate of an authority with RSA keys, which stays the same as long as its contents do."""
    return issue(
        subject,
        rsa_key(owner),
        issuer,
        rsa_key(signer),
        since=since,
        until=until,
        constraints=constraints,
        key_usage=key_usage,
        serial=serial,
    )


def issue(
    subject: str,
    key: Key,
    issuer: str,
    signer: Key,
    *,
    since: int,
    until: int,
    constraints: BasicConstraints | None = None,
    key_usage: KeyUsage | None = None,
    extensions: Sequence[tuple[ExtensionType, bool]] = (),
    serial: int = 7,
) -> Certificate:
    """A certificate; `since` and `until` in unix seconds, `extensions` with whether each is critical."""
    builder = (
        CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(datetime.fromtimestamp(since, UTC))
        .not_valid_after(datetime.fromtimestamp(until, UTC))
    )
    limits = [(value, True) for value in (constraints, key_usage) if value is not None]
    for value, critical in (*limits, *extensions):
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(signer, SHA384(), rsa_padding=PSS if isinstance(signer, rsa.RSAPrivateKey) else None)


def revoked(serial: int, *extensions: tuple[ExtensionType, bool], at: int) -> RevokedCertificate:
    """An entry of a revocation list."""
    builder = RevokedCertificateBuilder().serial_number(serial).revocation_date(datetime.fromtimestamp(at, UTC))
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.build()


def revocation_list(
    issuer: str,
    signer: rsa.RSAPrivateKey,
    *entries: RevokedCertificate,
    since: int,
    until: int,
    extensions: Sequence[tuple[ExtensionType, bool]] = (),
) -> bytes:
    """A revocation list in DER."""
    builder = (
        CertificateRevocationListBuilder()
        .issuer_name(name(issuer))
        .last_update(datetime.fromtimestamp(since, UTC))
        .next_update(datetime.fromtimestamp(until, UTC))
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(signer, SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)
