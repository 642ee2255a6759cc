"""The evidence of a dstack deployment: a TDX quote, and the event log that explains its runtime registers.

`evidence` is that of `tdx` with ``event_log`` (a list of events, or its JSON text) and, where published,
``app_compose`` (the text that was booted); aci/1 section 4.2. All checks of `tdx` run first. Then the log is replayed:

    RTMR[i] = SHA384(RTMR[i] || digest), from 48 zero bytes, for every event of register i in order

RTMR3 holds dstack's own events. Their digests are recomputed from name and payload, those in the log are never used.
RTMR0-2 hold the firmware's and boot loader's events. What was hashed for those is not in the log, so their digests are
extended as given: that the register comes out shows that the digests are true, and nothing about the text beside them.

An application can append events to RTMR3 as soon as it runs. dstack marks that moment with `system-ready`; only
what stands before the first of these says what was booted, and there each name that makes the identity stands once.
Sources: dstack cc-eventlog (events), dstack-types (`mr_config_id`).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attestation import encoding
from attestation.digest import jcs, sha256_hex
from attestation.errors import EvidenceError, MalformedError
from attestation.evidence import tdx
from attestation.evidence.appraisal import Appraisal, Checks, Inputs, NotVerified

RUNTIME_EVENT: Final = 0x08000001
RUNTIME_REGISTER: Final = 3
SYSTEM_READY: Final = "system-ready"
MAX_EVENTS: Final = 1 << 16
"""A log has about 30 events; an application that appends for years stays below this."""

_DIGEST_BYTES: Final = 48
_VERSIONS: Final = (1, 2)
_IDENTITY: Final = {"app-id": 20, "compose-hash": 32}
"""Events that must stand exactly once before `system-ready`, and the bytes of their payload."""
_ALSO: Final = ("instance-id", "key-provider", "mr-kms", "os-image-hash")
"""Events that are handed out among the measurements too where they stand there once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of the log, as it states itself."""

    register: int
    kind: int
    digest: bytes
    """As given; empty where the log leaves it out."""
    name: str
    payload: bytes
    version: int | None
    """Of the digest's format; None when the log does not say."""

    def recomputed(self, version: int) -> bytes:
        """The digest of a dstack runtime event, from its name and payload."""
        if version == 2:
            preimage = jcs({"name": self.name, "type": self.kind, "payload": self.payload.hex()})
        else:
            preimage = b":".join((self.kind.to_bytes(4, "little"), self.name.encode(), self.payload))
        return hashlib.sha384(preimage).digest()


def appraise_tdx_family(evidence: Any, inputs: Inputs) -> Appraisal:
    """Check evidence of tee_type `tdx`: as dstack's where it has an event log or a compose text, else as a quote."""
    explained = isinstance(evidence, dict) and any(
        evidence.get(name) is not None for name in ("event_log", "app_compose")
    )
    return appraise(evidence, inputs) if explained else tdx.appraise(evidence, inputs)


def appraise(evidence: Any, inputs: Inputs) -> Appraisal:
    """Check the evidence of a dstack deployment.

    What the log establishes joins the measurements: `compose_hash`, `app_id` and others. An allow-list must name
    `compose_hash` (or `rtmr3`), besides what it must name for TDX.
    """
    checks = Checks()
    found = tdx.examine(evidence, inputs, checks)
    log: list[Event] | None = None
    runtime: list[Event] | None = None
    identity: Mapping[str, bytes] | None = None

    def event_log() -> str:
        nonlocal log
        log = parse_log(encoding.as_object(evidence, "evidence").get("event_log"))
        return f"{len(log)} events"

    def boot() -> str:
        return _replay_boot(tdx.need(log, "dstack.log"), tdx.need(found.quote, "tdx.format").registers)

    def rtmr3() -> str:
        nonlocal runtime
        events = [event for event in tdx.need(log, "dstack.log") if event.register == RUNTIME_REGISTER]
        _replay_runtime(events, tdx.need(found.quote, "tdx.format").registers["rtmr3"])
        runtime = events
        return f"{len(events)} events with recomputed digests reproduce RTMR3"

    def identify() -> str:
        nonlocal identity
        events = tdx.need(runtime, "dstack.rtmr3")
        identity, later = _identity(events)
        found.measured |= {name.replace("-", "_"): payload.hex() for name, payload in identity.items()}
        uncounted = f"; {later} events after {SYSTEM_READY} do not count" if later else ""
        return f"app {identity['app-id'].hex()}, compose hash {identity['compose-hash'].hex()}{uncounted}"

    def compose() -> str:
        measured = tdx.need(identity, "dstack.identity")["compose-hash"].hex()
        text = evidence.get("app_compose")
        if text is None:
            raise NotVerified(f"the compose text is not in the evidence; its SHA-256 must be {measured}")
        if sha256_hex(encoding.text(text, "evidence.app_compose").encode()) != measured:
            raise EvidenceError(f"the compose text is not the one that was booted, whose SHA-256 is {measured}")
        return f"the compose text is the one that was booted, SHA-256 {measured}"

    def config_id() -> str:
        compose_hash = tdx.need(identity, "dstack.identity")["compose-hash"]
        return _check_config_id(tdx.need(found.quote, "tdx.format").registers["mr_config_id"], compose_hash)

    checks.run("dstack.log", event_log)
    checks.run("dstack.boot", boot)
    checks.run("dstack.rtmr3", rtmr3)
    checks.run("dstack.identity", identify)
    checks.run("dstack.compose", compose)
    checks.run("dstack.config_id", config_id)
    checks.run(
        "tdx.measurements",
        lambda: tdx.check_measurements(found.measured, inputs.policy, also_one_of=("compose_hash", "rtmr3")),
    )
    return found.appraisal(checks)


def parse_log(value: Any) -> list[Event]:
    """The events of a dstack event log, from a list or its JSON text. Unknown members of an event are ignored.

    Raises:
        MalformedError: not such a log.
    """
    where = "evidence.event_log"
    events = encoding.parse_json(value, where) if isinstance(value, str) else value
    if not isinstance(events, list):
        raise MalformedError(where, "must be a list of events, or its JSON text")
    if len(events) > MAX_EVENTS:
        raise MalformedError(where, f"must have at most {MAX_EVENTS} events, has {len(events)}")
    return [_event(event, f"{where}[{index}]") for index, event in enumerate(events)]


def _event(value: Any, where: str) -> Event:
    event = encoding.as_object(value, where)
    register = encoding.integer(event.get("imr"), f"{where}.imr")
    kind = encoding.integer(event.get("event_type"), f"{where}.event_type")
    if register > RUNTIME_REGISTER:
        raise MalformedError(f"{where}.imr", "must be 0 to 3")
    stated = event.get("digest")
    digest = b"" if stated is None else encoding.hex_bytes(stated, f"{where}.digest")
    if register != RUNTIME_REGISTER:
        # What the digest covers is not in the log: without it, nothing can be replayed.
        if len(digest) != _DIGEST_BYTES:
            raise MalformedError(f"{where}.digest", f"must be {_DIGEST_BYTES} bytes, is {len(digest)}")
        return Event(register=register, kind=kind, digest=digest, name="", payload=b"", version=None)
    if kind != RUNTIME_EVENT:
        # Its digest could not be recomputed, so any dstack event could be hidden behind it.
        raise MalformedError(f"{where}.event_type", f"must be {RUNTIME_EVENT} in RTMR3, is {kind}")
    if digest and len(digest) != _DIGEST_BYTES:
        raise MalformedError(f"{where}.digest", f"must be {_DIGEST_BYTES} bytes or empty, is {len(digest)}")
    version = event.get("version")
    if version is not None and encoding.integer(version, f"{where}.version", minimum=1) not in _VERSIONS:
        raise MalformedError(f"{where}.version", "must be 1 or 2")
    return Event(
        register=register,
        kind=kind,
        digest=digest,
        name=encoding.text(event.get("event"), f"{where}.event"),
        payload=encoding.hex_bytes(event.get("event_payload"), f"{where}.event_payload"),
        version=version,
    )


def replay(digests: Iterable[bytes]) -> str:
    """The register, as lower-case hex, after a runtime register was extended by each digest in turn."""
    register = bytes(_DIGEST_BYTES)
    for digest in digests:
        register = hashlib.sha384(register + digest).digest()
    return register.hex()


def _replay_boot(log: Sequence[Event], registers: Mapping[str, str]) -> str:
    untold = []
    for number in range(RUNTIME_REGISTER):
        digests = [event.digest for event in log if event.register == number]
        measured = registers[f"rtmr{number}"]
        if replay(digests) == measured:
            continue
        if digests:
            raise EvidenceError(f"the event log does not reproduce RTMR{number}: {replay(digests)}, quote: {measured}")
        untold.append(f"RTMR{number}")
    if untold:
        raise NotVerified(
            f"the event log does not tell how {', '.join(untold)} came about; the quote itself states them"
        )
    return "RTMR0-2 are reproduced from digests as given; what they are digests of is not in the log"


def _replay_runtime(events: Sequence[Event], measured: str) -> None:
    """Raises EvidenceError when the events do not reproduce RTMR3, or contradict themselves."""
    versions = []
    for event in events:
        fits = [version for version in _VERSIONS if event.version in (None, version)]
        if event.digest:
            fits = [version for version in fits if event.recomputed(version) == event.digest]
        if not fits:
            raise EvidenceError(
                f"the digest of the event '{tdx.printable(event.name)}' is not that of its name and payload"
            )
        versions.append(fits)
    # Where a log leaves out both digest and version, all events that do are of the same version.
    for pick in (0, -1):
        if replay(event.recomputed(fits[pick]) for event, fits in zip(events, versions, strict=True)) == measured:
            return
    raise EvidenceError(f"the event log does not reproduce RTMR3 {measured}")


def _identity(events: Sequence[Event]) -> tuple[dict[str, bytes], int]:
    """What the events before `system-ready` say was booted, and how many events follow it.

    Raises:
        EvidenceError: no such event, or a name of the identity that does not stand exactly once before it.
    """
    names = [event.name for event in events]
    if SYSTEM_READY not in names:
        raise EvidenceError(f"no event {SYSTEM_READY}: what the application added cannot be told from what was booted")
    ready = names.index(SYSTEM_READY)
    for event in events[:ready]:
        # Version 1 joins name and payload by a colon: with one in the name, the same digest has two readings.
        if ":" in event.name:
            raise EvidenceError(
                f"the event '{tdx.printable(event.name)}' before {SYSTEM_READY} has a colon in its name"
            )
    for name, size in _IDENTITY.items():
        payloads = [event.payload for event in events[:ready] if event.name == name]
        if len(payloads) != 1:
            raise EvidenceError(f"{len(payloads)} events {name} before {SYSTEM_READY}, must be exactly one")
        if len(payloads[0]) != size:
            raise EvidenceError(f"the event {name} must have {size} bytes, has {len(payloads[0])}")
    found = {
        event.name: event.payload
        for event in events[:ready]
        if event.name in (*_IDENTITY, *_ALSO) and names[:ready].count(event.name) == 1
    }
    return found, len(events) - ready - 1


def _check_config_id(config_id: str, compose_hash: bytes) -> str:
    """Compare `mr_config_id`, which the host sets before boot and the hardware signs, with what was measured."""
    if config_id == bytes(_DIGEST_BYTES).hex():
        raise NotVerified("the deployment does not use mr_config_id")
    form = int(config_id[:2], 16)
    if form == 1:
        if bytes.fromhex(config_id[2:]) != compose_hash.ljust(_DIGEST_BYTES - 1, b"\0"):
            raise EvidenceError(f"mr_config_id {config_id} is of another compose text than {compose_hash.hex()}")
        return "mr_config_id holds the compose hash"
    if form in (2, 3):
        raise NotVerified(f"mr_config_id is of form {form}, a digest of more than the compose hash")
    raise EvidenceError(f"mr_config_id {config_id} is of no known form")
