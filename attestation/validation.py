"""The documents of a validation, and asking for one.

A request document names one key of one agent and where it can be checked. It is small enough to stand in the request's
URI itself, and its keccak256 is the request hash. The registry has one table of hashes for everybody, and whoever takes
one first has it: the document carries a salt, so that a hash that was taken is replaced by another (docs/formats.md).
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from attestation import encoding
from attestation.digest import jcs
from attestation.errors import MalformedError, TollsealError
from attestation.fetch import data_content
from attestation.onchain import AgentReference
from attestation.publishing import Publisher, content_hash
from attestation.registry.errors import RevertedError
from attestation.registry.validation import MAX_RESPONSE, Request, Validation, ValidationWriter

REQUEST_FORMAT: Final = "tollseal.validation-request/1"
MAX_REQUEST_BYTES: Final = 4 << 20
"""Largest request document: one that carries a whole bundle. Those that name an endpoint have some hundred bytes."""
MAX_INLINE_BYTES: Final = 4 << 10
"""Largest request document that is put on the chain as a data: URI."""
SIMULATED_TAG: Final = "simulated"
"""Tag of answers about simulated enclaves."""

_ATTEMPTS: Final = 3
_SALT_BYTES: Final = 32
_FIELDS: Final = {"format", "agent", "keyset_digest", "payment_key", "key_slot", "salt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInQuestion:
    """The key of an agent that is to be checked, and where. Exactly one of `endpoint` and `bundle` is there."""

    agent: AgentReference
    keyset_digest: str
    payment_key: str
    """Address, lower-case."""
    key_slot: str
    """The metadata key that lists it, ``tee.key.<replica>``."""
    endpoint: str | None = None
    """Origin of the service, which is asked for fresh evidence."""
    bundle: Mapping[str, Any] | None = None
    """A purchase under this key (`attestation.bundle`); whoever reads the request reads the buyer's document."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that stands on the chain. `transaction` is None when it stood there before."""

    request_hash: str
    transaction: str | None


def build_request(key: KeyInQuestion, *, salt: str) -> bytes:
    """The request document (RFC 8785). `salt` is 64 lower-case hex characters that nobody could guess."""
    where = {"endpoint": key.endpoint} if key.bundle is None else {"bundle": dict(key.bundle)}
    return jcs(
        {
            "format": REQUEST_FORMAT,
            "agent": str(key.agent),
            "keyset_digest": key.keyset_digest,
            "payment_key": key.payment_key,
            "key_slot": key.key_slot,
            "salt": salt,
            **where,
        }
    )


def parse_request(data: bytes) -> KeyInQuestion:
    """A request document of somebody unknown.

    Raises:
        MalformedError: not one; the field is named.
    """
    document = encoding.as_object(encoding.parse_json(data, "request"), "request")
    encoding.only(document, "request", _FIELDS, frozenset({"endpoint", "bundle"}))
    if document["format"] != REQUEST_FORMAT:
        raise MalformedError("request.format", f"must be {REQUEST_FORMAT}")
    if ("endpoint" in document) == ("bundle" in document):
        raise MalformedError("request", "must have either an endpoint or a bundle")
    encoding.hex_bytes(document["salt"], "request.salt", size=_SALT_BYTES)
    digest = encoding.text(document["keyset_digest"], "request.keyset_digest")
    encoding.hex_bytes(digest.removeprefix("sha256:"), "request.keyset_digest", size=32)
    bundle = document.get("bundle")
    return KeyInQuestion(
        agent=AgentReference.parse(encoding.text(document["agent"], "request.agent")),
        keyset_digest=digest,
        payment_key=encoding.address(document["payment_key"], "request.payment_key"),
        key_slot=encoding.text(document["key_slot"], "request.key_slot"),
        endpoint=None if bundle is not None else encoding.text(document.get("endpoint"), "request.endpoint"),
        bundle=None if bundle is None else encoding.as_object(bundle, "request.bundle"),
    )


def draw_salt() -> str:
    """A salt for `build_request`."""
    return secrets.token_hex(_SALT_BYTES)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the validators that somebody trusts say of an agent: how many of their latest answers are 100 and how many
    are less, and how many of the requests to them have none. A pending request is not a score.

    Answers tagged `simulated` count nowhere but in `simulated`: no hardware stands behind them.
    """

    passed: int
    failed: int
    pending: int
    simulated: int


def standing(validations: Iterable[Validation], trusted: Collection[str]) -> Standing:
    """Counts the answers of the validators with the lower-case addresses `trusted`, and nobody else's."""
    ours = [one for one in validations if one.request.validator in trusted]
    answers = [one.answer for one in ours if one.answer is not None]
    hardware = [answer for answer in answers if answer.tag != SIMULATED_TAG]
    passed = sum(answer.response == MAX_RESPONSE for answer in hardware)
    return Standing(passed, len(hardware) - passed, len(ours) - len(answers), len(answers) - len(hardware))


async def request_validation(
    writer: ValidationWriter,
    validator: str,
    key: KeyInQuestion,
    *,
    salt: Callable[[], str] = draw_salt,
    publisher: Publisher | None = None,
) -> Asked:
    """Asks a validator to check a key, once: a key that it was asked about before is not asked about again.

    Args:
        writer: sends as the agent's owner or operator.
        validator: whom to ask.
        key: what to ask about.
        salt: draws salts.
        publisher: makes the document readable; by default it is put into the URI itself.

    Raises:
        MalformedError: the document is too large to be put into its URI.
        RegistryError: see `ValidationWriter`.
    """
    agent_id, publisher = key.agent.agent_id, publisher or Publisher()
    for request in await writer.reader.requests(validator=validator, agent_id=agent_id):
        if _asks_about(request, key):
            return Asked(request.request_hash, None)
    for attempt in range(_ATTEMPTS):
        document = build_request(key, salt=salt())
        if publisher.inline and len(document) > MAX_INLINE_BYTES:
            raise MalformedError(
                "request", f"has {len(document)} bytes, at most {MAX_INLINE_BYTES} go on the chain: name a URI for it"
            )
        request_hash = content_hash(document)
        try:
            sent = await writer.request(validator, agent_id, publisher.publish(document), request_hash)
        except RevertedError as error:
            # Somebody saw it on its way and took its hash. The next one they have to guess anew.
            if error.reason != "exists" or attempt == _ATTEMPTS - 1:
                raise
        else:
            return Asked(request_hash, sent.transaction)
    raise AssertionError  # the last attempt returns or raises


def inline_key(request: Request) -> KeyInQuestion | None:
    """The key that a request is about, when its own URI holds a document of this format with the request's hash."""
    try:
        data = data_content(request.uri, max_bytes=MAX_INLINE_BYTES)
        key = parse_request(data)
    except TollsealError:
        return None
    return key if content_hash(data) == request.request_hash else None


def _asks_about(request: Request, key: KeyInQuestion) -> bool:
    asked = inline_key(request)
    return asked is not None and (asked.agent, asked.keyset_digest) == (key.agent, key.keyset_digest)
