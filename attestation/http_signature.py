"""Signatures over HTTP responses, with the request they answer bound in.

Source: RFC 9421 (HTTP Message Signatures), RFC 9530 (Content-Digest) and the x402 extension `http-message-signatures`
(tag ``x402-response``, request components marked ``;req``). The structured-field work is the library's; what is ours is
the list of what must be covered, and that an uncovered field counts as a failure.
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageVerifier,
    HTTPSignatureComponentResolver,
    InvalidSignature,
    MappingKeyResolver,
)
from http_message_signatures.algorithms import ED25519

from attestation import encoding
from attestation.digest import sha256
from attestation.errors import EvidenceError, MalformedError
from attestation.keyset import PublicKey

TAG: Final = "x402-response"
LABEL: Final = "sig"
STREAM_TYPE: Final = "text/event-stream"
"""Media type of a streamed answer, whose head is signed before its body exists."""
DIRECTORY_PATH: Final = "/.well-known/http-message-signatures-directory"

COVERED_FIELDS: Final = (
    "content-type",
    "retry-after",
    "payment-required",
    "payment-response",
    "x-aci-version",
    "x-aci-keyset-digest",
    "x-receipt-id",
    "x-receipt",
)
"""Response fields that are signed whenever they are present, besides the status and the digest of the body."""

_REQUEST_COMPONENTS: Final = ("@method", "@authority", "@path", "@query")
"""What is signed of the request, the last one only when there is a query."""

SIGNATURE_FIELDS: Final = ("content-digest", "signature-input", "signature")
"""The fields that signing adds."""

_COMPONENT: Final = r'"[a-z0-9@-]+"(?:;req)?'
_CANONICAL_INPUT: Final = re.compile(
    rf'{LABEL}=\({_COMPONENT}(?: {_COMPONENT})*\);created=[1-9][0-9]*;keyid="[^"\\]*";alg="ed25519";tag="{TAG}"'
)
"""Signature-Input as we write it. Other texts have the same meaning, and one changed byte must show."""

MAX_CLOCK_SKEW_SECONDS: Final = 60
"""How far in the future a signature may seem to have been made."""


class HttpSigner(Protocol):
    """Holds the http key of a keyset."""

    @property
    def http_key_id(self) -> str: ...

    def sign_http(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature over `message`."""
        ...


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the response to it, as a signature sees them.

    Header names are lower case; a field that occurred on several lines is one value, joined with ", " (RFC 9110
    section 5.3). `body` and `request_body` are the exact bytes on the wire.
    """

    method: str
    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    request_headers: Mapping[str, str] = field(default_factory=dict)
    request_body: bytes = b""


def sign_response(exchange: Exchange, signer: HttpSigner, *, created: int) -> dict[str, str]:
    """The fields to add to a response: Content-Digest, Signature-Input and Signature.

    Args:
        exchange: the response, complete but for these fields.
        signer: holds the http key.
        created: unix seconds.

    Raises:
        MalformedError: the request's URL or a field cannot be expressed in a signature.
    """
    digest = {"content-digest": content_digest(exchange.body)}
    headers = {**exchange.headers, **digest}
    return {**digest, **_signed(exchange, headers, signer, created)}


def sign_stream_head(exchange: Exchange, signer: HttpSigner, *, created: int) -> dict[str, str]:
    """The fields to add to the head of a streamed response: Signature-Input and Signature, and no Content-Digest.

    The signature covers what `sign_response` covers, but for the body, which is not known yet. Only the receipt binds
    the body, and a client must fetch it after the stream's end (docs/formats.md, "Streamed answers").

    Args:
        exchange: the response, complete but for these fields; its `body` is not looked at.
        signer: holds the http key.
        created: unix seconds.

    Raises:
        MalformedError: the response is not a stream or carries a Content-Digest; its URL or a field cannot be expressed
            in a signature.
    """
    if (problem := _no_stream_head(exchange.headers)) is not None:
        raise MalformedError("response", problem)
    return _signed(exchange, exchange.headers, signer, created)


def content_digest(body: bytes) -> str:
    """The value of Content-Digest (RFC 9530 section 2)."""
    return f"sha-256=:{encoding.b64(sha256(body))}:"


def verify_response(exchange: Exchange, key: PublicKey, *, now: int) -> int:
    """Check that a whole response, and its being the answer to this request, is signed by the attested http key.

    Args:
        exchange: request and response.
        key: the `ed25519-rfc9421` key of an established keyset.
        now: unix seconds; signatures from the future are refused, old ones are the caller's business.

    Returns:
        When the signature was made, in unix seconds by the service's clock.

    Raises:
        EvidenceError: unsigned, signed by another key, changed, or not covering what it must.
    """
    return _verified(exchange, key, now, exchange.body)


def verify_stream_head(exchange: Exchange, key: PublicKey, *, now: int) -> int:
    """Check the signed head of a streamed response, as `verify_response` does, but for the body.

    What comes after the head is not covered: it is worth nothing until a receipt names its hash.

    Args:
        exchange: request and response; `body` is not looked at.
        key: the `ed25519-rfc9421` key of an established keyset.
        now: unix seconds.

    Returns:
        When the signature was made, in unix seconds by the service's clock.

    Raises:
        EvidenceError: not a stream's head, or whatever `verify_response` refuses.
    """
    if (problem := _no_stream_head(exchange.headers)) is not None:
        raise EvidenceError(f"the response {problem}")
    return _verified(exchange, key, now, None)


def is_stream(headers: Mapping[str, str]) -> bool:
    """Whether a response is a stream of server-sent events, by its media type (RFC 9110 section 8.3.1)."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == STREAM_TYPE


def required_components(url: str, headers: Mapping[str, str], *, stream: bool = False) -> tuple[str, ...]:
    """What a response's signature must cover (RFC 9421 section 2), as serialized component identifiers.

    `stream` leaves out the digest of the body.
    """
    names = _REQUEST_COMPONENTS if urlsplit(url).query else _REQUEST_COMPONENTS[:-1]
    request = (f'"{name}";req' for name in names)
    digest = () if stream else ('"content-digest"',)
    return ('"@status"', *request, *digest, *(f'"{name}"' for name in COVERED_FIELDS if name in headers))


def key_directory(*keys: PublicKey) -> dict[str, Any]:
    """The JSON Web Key Set served at `DIRECTORY_PATH` (RFC 8037 section 2 for the form of a key)."""
    return {
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "kid": key.key_id,
                "use": "sig",
                "alg": "EdDSA",
                "x": encoding.b64url(bytes.fromhex(key.public_key)),
            }
            for key in keys
        ],
        "purpose": TAG,
    }


def _no_stream_head(headers: Mapping[str, str]) -> str | None:
    """What keeps a response from being signed without its body, or None."""
    if not is_stream(headers):
        return f"is not {STREAM_TYPE}: its signature must cover its body"
    return "is a stream and carries a Content-Digest" if "content-digest" in headers else None


def _signed(exchange: Exchange, headers: Mapping[str, str], signer: HttpSigner, created: int) -> dict[str, str]:
    components = required_components(exchange.url, headers, stream="content-digest" not in headers)
    parameters = f'({" ".join(components)});created={created};keyid="{signer.http_key_id}";alg="ed25519";tag="{TAG}"'
    signature = encoding.b64(signer.sign_http(_signature_base(exchange, headers, components, parameters)))
    return {"signature-input": f"{LABEL}={parameters}", "signature": f"{LABEL}=:{signature}:"}


def _verified(exchange: Exchange, key: PublicKey, now: int, body: bytes | None) -> int:
    """When a signature was made that holds; a `body` of None is not covered by it."""
    try:
        public_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public_key))
        verifier = _Verifier(
            signature_algorithm=ED25519,
            key_resolver=MappingKeyResolver(public_keys={key.key_id: public_key}, private_keys={}),
        )
        verifier.now = now
        results = verifier.verify(
            _message(exchange, exchange.headers),
            max_age=None,
            expect_tag=TAG,
            require_components=required_components(exchange.url, exchange.headers, stream=body is None),
            body=body,
        )
    except InvalidSignature as error:
        raise EvidenceError(f"the response signature does not hold: {str(error) or 'wrong signature'}") from error
    except (HTTPMessageSignaturesException, ValueError, TypeError) as error:
        raise EvidenceError(f"the response signature is malformed: {error}") from error
    canonical = _CANONICAL_INPUT.fullmatch(exchange.headers["signature-input"])
    if len(results) != 1 or not canonical or _canonical(exchange.headers["signature"]) is None:
        raise EvidenceError("the response must carry exactly one signature, in canonical form")
    return int(results[0].parameters["created"])


class _Verifier(HTTPMessageVerifier):
    """The library's verifier with the time as an argument instead of the machine's clock."""

    now: int = 0

    def validate_created_and_expires(self, sig_input: Any, max_age: datetime.timedelta | None = None) -> None:
        created = sig_input.params.get("created")
        if not isinstance(created, int) or isinstance(created, bool):
            raise InvalidSignature('it has no "created" time')
        if created > self.now + MAX_CLOCK_SKEW_SECONDS:
            raise InvalidSignature(f"it was made in the future ({created}, now {self.now})")
        if max_age is not None or "expires" in sig_input.params:
            raise InvalidSignature("an expiry is not part of this profile")


def _signature_base(
    exchange: Exchange, headers: Mapping[str, str], components: tuple[str, ...], parameters: str
) -> bytes:
    """What is signed (RFC 9421 section 2.5), for the components that we cover.

    Written out because the library's general form costs ten times as much as the signature itself. Tests hold it to
    the library's, which is also what checks every response.

    Raises:
        MalformedError: the URL or a field cannot be expressed.
    """
    asked = _request_values(exchange.method, exchange.url)
    lines = []
    for component in components:
        value = str(exchange.status) if component == '"@status"' else asked.get(component)
        if value is None:
            value = headers[component[1:-1]].strip(" \t")
        if not value.isascii() or not value.replace("\t", " ").isprintable():
            raise MalformedError("response", f"cannot be signed: {component} has characters that no signature covers")
        lines.append(f"{component}: {value}")
    lines.append(f'"@signature-params": {parameters}')
    return "\n".join(lines).encode()


@lru_cache(maxsize=1024)
def _request_values(method: str, url: str) -> Mapping[str, str]:
    """What a signature says of a request, by component; services are asked for few URLs, many times each."""
    try:
        message = SimpleNamespace(method=method, url=url, headers={})
        resolver = HTTPSignatureComponentResolver(message)  # type: ignore[no-untyped-call]
        resolve = resolver.derived_component_resolvers
        return {f'"{name}";req': str(resolve[name](resolver)) for name in _REQUEST_COMPONENTS}
    except HTTPMessageSignaturesException as error:
        raise MalformedError("response", f"cannot be signed: {error}") from error


def _message(exchange: Exchange, headers: Mapping[str, str]) -> SimpleNamespace:
    request = SimpleNamespace(method=exchange.method, url=exchange.url, headers=dict(exchange.request_headers))
    return SimpleNamespace(status_code=exchange.status, headers=dict(headers), request=request)


def _canonical(signature: str) -> bytes | None:
    """The signature's bytes when the field is written as we write it: other texts may decode to the same bytes."""
    if not (signature.startswith(f"{LABEL}=:") and signature.endswith(":")):
        return None
    try:
        return encoding.b64_bytes(signature[len(LABEL) + 2 : -1], "signature")
    except MalformedError:
        return None
