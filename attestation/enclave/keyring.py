"""The private half of a keyset: born at boot, held in memory, never written anywhere."""

import secrets
import ssl
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from eth_account import Account
from eth_account.messages import SignableMessage
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import PrivateKey

from attestation.errors import EnclaveError
from attestation.keyset import ALGO_HTTP, ALGO_PAYMENT, ALGO_RECEIPT, PublicKey
from attestation.tls import make_certificate, server_context, spki_sha256

_NONCE_BYTES: Final = 12


class KeyRing:
    """One fresh key per role, and a storage key for answers that wait for delivery.

    It has no way to export, write or print a private key. The keys go with the process: what Python allows of that
    is said in docs/threat-model.md.
    """

    receipt_key_id: Final = "receipt"
    http_key_id: Final = "http"
    payment_key_id: Final = "payment"

    def __init__(
        self,
        receipt: Ed25519PrivateKey,
        http: Ed25519PrivateKey,
        payment: LocalAccount,
        tls: ec.EllipticCurvePrivateKey,
        storage: AESGCM,
    ) -> None:
        self._receipt = receipt
        self._http = http
        self._payment = payment
        self._tls = tls
        self._storage = storage

    @classmethod
    def generate(cls) -> Self:
        """New keys from the operating system's random source."""
        return cls(
            receipt=Ed25519PrivateKey.generate(),
            http=Ed25519PrivateKey.generate(),
            payment=Account.from_key(secrets.token_bytes(32)),
            tls=ec.generate_private_key(ec.SECP256R1()),
            storage=AESGCM(AESGCM.generate_key(bit_length=256)),
        )

    def __repr__(self) -> str:
        return f"<KeyRing payment={self.payment_address}>"

    def __reduce__(self) -> str:
        raise EnclaveError("a key ring never leaves the process it was born in")

    @property
    def payment_address(self) -> str:
        """0x and 40 lower-case hex characters: what the registry publishes."""
        return str(self._payment.address).lower()

    def public_keys(self) -> tuple[PublicKey, ...]:
        """The keyset's `receipt_signing_keys`, in the published order."""
        payment = PrivateKey(bytes(self._payment.key)).public_key
        return (
            PublicKey(self.receipt_key_id, ALGO_RECEIPT, self._receipt.public_key().public_bytes_raw().hex()),
            PublicKey(self.http_key_id, ALGO_HTTP, self._http.public_key().public_bytes_raw().hex()),
            PublicKey(self.payment_key_id, ALGO_PAYMENT, b"\x04".hex() + payment.to_bytes().hex()),
        )

    def tls_server(self, *, host: str, now: int, not_after: int) -> tuple[str, ssl.SSLContext]:
        """The SPKI hash for the keyset, and a context that serves with the TLS key until `not_after` (unix seconds)."""
        certificate = make_certificate(self._tls, host=host, now=now, not_after=not_after)
        return spki_sha256(certificate), server_context(self._tls, certificate)

    def sign_receipt(self, message: bytes) -> bytes:
        return self._receipt.sign(message)

    def sign_http(self, message: bytes) -> bytes:
        return self._http.sign(message)

    def sign_typed_data(self, message: SignableMessage) -> bytes:
        return bytes(self._payment.sign_message(message).signature)

    def seal(self, data: bytes, *, context: bytes) -> bytes:
        """Encrypt with the storage key (AES-256-GCM); `context` must be given again to open it."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._storage.encrypt(nonce, data, context)

    def unseal(self, sealed: bytes, *, context: bytes) -> bytes:
        """What `seal` was given.

        Raises:
            EnclaveError: sealed by another boot's key, for another context, or changed.
        """
        try:
            return self._storage.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise EnclaveError("this was not sealed by the keys of this boot") from error
