"""The private half of a keyset: born in memory, held there, never written anywhere."""

import secrets
import ssl
from dataclasses import dataclass, replace
from typing import Final, Self

import coincurve
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.eip712 import address_of_point, sign_digest
from attestation.errors import EnclaveError
from attestation.keyset import ALGO_HTTP, ALGO_PAYMENT, ALGO_RECEIPT, PublicKey
from attestation.tls import make_certificate, server_context, spki_sha256

_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True, repr=False)
class _Private:
    """The keys themselves."""

    receipt: Ed25519PrivateKey
    http: Ed25519PrivateKey
    payment: coincurve.PrivateKey
    tls: ec.EllipticCurvePrivateKey
    storage: AESGCM


class KeyRing:
    """One fresh key per role, and a storage key for answers that wait for delivery.

    It has no way to export, write or print a private key. The keys go with the process: what Python allows of that
    is said in docs/threat-model.md.

    Args:
        private: the keys.
        number: which ring of the process this is. From the second on it stands in the key ids, because signatures
            under two rings are about at the same time.
    """

    def __init__(self, private: _Private, number: int) -> None:
        suffix = "" if number == 1 else f"-{number}"
        self.receipt_key_id: Final = f"receipt{suffix}"
        self.http_key_id: Final = f"http{suffix}"
        self.payment_key_id: Final = f"payment{suffix}"
        point = private.payment.public_key.format(compressed=False)
        self.payment_address: Final = address_of_point(point)
        """0x and 40 lower-case hex characters: what the registry publishes."""
        self._public: Final = (
            PublicKey(self.receipt_key_id, ALGO_RECEIPT, private.receipt.public_key().public_bytes_raw().hex()),
            PublicKey(self.http_key_id, ALGO_HTTP, private.http.public_key().public_bytes_raw().hex()),
            PublicKey(self.payment_key_id, ALGO_PAYMENT, point.hex()),
        )
        self._number: Final = number
        self._private: _Private | None = private

    @classmethod
    def generate(cls) -> Self:
        """New keys from the operating system's random source."""
        private = _Private(
            receipt=Ed25519PrivateKey.generate(),
            http=Ed25519PrivateKey.generate(),
            payment=coincurve.PrivateKey(),
            tls=ec.generate_private_key(ec.SECP256R1()),
            storage=AESGCM(AESGCM.generate_key(bit_length=256)),
        )
        return cls(private, 1)

    def renew(self) -> Self:
        """The ring that follows: new keys for receipts, responses and payments.

        The TLS key stays for the life of the process, which aci/1 section 3.1 allows: connections, and buyers who have
        pinned it, go on. The storage key stays too, so that stored answers can still be read.

        Raises:
            EnclaveError: the keys have been given up.
        """
        private = replace(
            self._keys,
            receipt=Ed25519PrivateKey.generate(),
            http=Ed25519PrivateKey.generate(),
            payment=coincurve.PrivateKey(),
        )
        return type(self)(private, self._number + 1)

    def forget(self) -> None:
        """Give up the private keys: from here on nothing can be signed or opened with this ring."""
        self._private = None

    @property
    def _keys(self) -> _Private:
        if self._private is None:
            raise EnclaveError("these keys were given up when the service stopped")
        return self._private

    def __repr__(self) -> str:
        return f"<KeyRing payment={self.payment_address}>"

    def __reduce__(self) -> str:
        raise EnclaveError("a key ring never leaves the process it was born in")

    def public_keys(self) -> tuple[PublicKey, ...]:
        """The keyset's `receipt_signing_keys`, in the published order."""
        return self._public

    def tls_server(self, *, host: str, now: int) -> tuple[str, ssl.SSLContext]:
        """The SPKI hash for the keyset, and a context that serves with the TLS key. `now` is in unix seconds."""
        certificate = make_certificate(self._keys.tls, host=host, now=now)
        return spki_sha256(certificate), server_context(self._keys.tls, certificate)

    def sign_receipt(self, message: bytes) -> bytes:
        return self._keys.receipt.sign(message)

    def sign_http(self, message: bytes) -> bytes:
        return self._keys.http.sign(message)

    def sign_typed_data(self, digest: bytes) -> bytes:
        return sign_digest(self._keys.payment, digest)

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        """Encrypt with the storage key (AES-256-GCM); `context` must be given again to open it."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._keys.storage.encrypt(nonce, data, context)

    def unseal(self, sealed: bytes, *, context: bytes) -> bytes:
        """What `seal` was given.

        Raises:
            EnclaveError: sealed by another boot's key, for another context, or changed.
        """
        storage = self._keys.storage
        try:
            return storage.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise EnclaveError("this was not sealed by the keys of this boot") from error
