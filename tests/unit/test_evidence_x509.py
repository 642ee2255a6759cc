"""Files of certificates: PEM or DER, in their order, and nothing else."""

from ssl import DER_cert_to_PEM_cert

import pytest

from attestation.errors import MalformedError
from attestation.evidence.x509 import der_certificates
from tests.evidence_snp import SnpMachine

CERTIFICATES = list(SnpMachine().certificates)


def test_pem_gives_each_certificate_in_the_files_order() -> None:
    pem = "some words before\n" + "".join(map(DER_cert_to_PEM_cert, CERTIFICATES))
    assert der_certificates(pem.encode(), "ca") == CERTIFICATES


def test_der_is_taken_as_it_is() -> None:
    assert der_certificates(CERTIFICATES[0], "ca") == [CERTIFICATES[0]]


@pytest.mark.parametrize(
    "file",
    [
        b"-----BEGIN CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    ],
)
def test_pem_of_anything_else_is_malformed(file: bytes) -> None:
    with pytest.raises(MalformedError, match="ca: must be PEM or DER certificates"):
        der_certificates(file, "ca")
