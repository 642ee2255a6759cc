"""TLS that ends inside the enclave: the certificate whose key the keyset lists, and clients that accept no other.

Source: aci/1 sections 3.1 and 9.1 (channel). The certificate is self-signed: what vouches for its key is the attested
keyset, not a certificate authority.
"""

import datetime
import ipaddress
import os
import ssl
from typing import Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from attestation.digest import sha256_hex

_CLOCK_SKEW: Final = datetime.timedelta(hours=1)
_NO_END: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""No end of its own (RFC 5280 section 4.1.2.5): the key outlives keysets, and each of these bounds the trust in it."""


def spki_sha256(certificate: bytes) -> str:
    """The SHA-256 of a DER certificate's SubjectPublicKeyInfo, as 64 lower-case hex characters (aci/1 section 3.1).

    Raises:
        ValueError: not a certificate.
    """
    key = x509.load_der_x509_certificate(certificate).public_key()
    return sha256_hex(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def make_certificate(key: ec.EllipticCurvePrivateKey, *, host: str, now: int) -> bytes:
    """A self-signed server certificate in DER.

    Args:
        key: a P-256 key of the enclave.
        host: DNS name or IP address that clients connect to.
        now: unix seconds.
    """
    try:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enclave")])
    start = datetime.datetime.fromtimestamp(now, tz=datetime.UTC) - _CLOCK_SKEW
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(_NO_END)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def server_context(key: ec.EllipticCurvePrivateKey, certificate: bytes) -> ssl.SSLContext:
    """A context that serves with an enclave's key. The key reaches OpenSSL through memory and touches no disk."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + ssl.DER_cert_to_PEM_cert(certificate).encode("ascii")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Python loads a chain from a path only; this path is anonymous memory of this process.
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)
    return context


def unauthenticated_context() -> ssl.SSLContext:
    """A context that accepts any certificate: only for asking who answers, never for sending anything."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def pinned_context(certificate: bytes) -> ssl.SSLContext:
    """A context for connections to whoever holds the key of exactly this DER certificate, and to nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the attested keyset vouches for the key, whatever the host is called
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context


def peer_certificate(response: httpx.Response) -> bytes | None:
    """The DER certificate of the server that sent a response, or None when it came without TLS."""
    stream = response.extensions.get("network_stream")
    tls = stream.get_extra_info("ssl_object") if stream is not None else None
    return tls.getpeercert(binary_form=True) if isinstance(tls, ssl.SSLObject | ssl.SSLSocket) else None
