"""The `rofl` evidence format: attested on the Oasis chain, and not a quote.

A ROFL enclave cannot hand out a quote. It shows its quote to the Oasis chain, which checks it against the app's policy
and registers the replica with the metadata that the replica chose; ours holds the digest of the report data. So the
evidence only says where to look. What it says is checked against a snapshot of the registration that the relying party
took from an Oasis node of its own choice and gives as `Inputs.collateral`; without one, nothing is verified.

What rests on the chain and that node alone: the quote, its TCB and the debug bit were checked at registration, against
the policy of that moment. The registration does not say which of the policy's enclaves the replica is, so every enclave
that the policy lists counts as measured. Source: oasisprotocol/oasis-sdk, runtime-sdk/src/modules/rofl.

The snapshot: `app` and `replicas` as `oasis rofl show --format json` prints them, fields unknown here ignored, and
`{"format": "rofl-registration/1", "chain_context": 64 hex, "runtime_id": 64 hex, "epoch": int, "fetched_at": unix
seconds}` beside them. Read: `app.id`, `app.policy.{enclaves, quotes.pcs}`, and of each replica `app`, `rak`, `node_id`,
`expiration` (an epoch) and `metadata`; keys and enclave identities (MRENCLAVE, MRSIGNER) are base64.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from attestation import encoding
from attestation.digest import digest
from attestation.errors import EvidenceError, MalformedError
from attestation.evidence.appraisal import Appraisal, Checks, Inputs, NotVerified
from attestation.evidence.measurements import check_allowed
from attestation.keyset import REPORT_DATA_BYTES

TEE_TYPE: Final = "rofl"
NOTICE: Final = "ON-CHAIN ATTESTED, NOT A QUOTE: the Oasis chain checked the hardware; ask a node that you trust"
SNAPSHOT_FORMAT: Final = "rofl-registration/1"
MAX_SNAPSHOT_AGE_SECONDS: Final = 3600
"""About one epoch of the Oasis network, the unit in which registrations expire."""
METADATA_NAMESPACE: Final = "net.oasis.app."
"""The chain puts it before every name that an app chooses for itself."""
KEY_PREFIX: Final = "tollseal."
"""Begins the names of our metadata, so that nothing else that the app publishes can pass for it."""
SAPPHIRE: Final = bytes.fromhex(
    "bb3d748def55bdfb797a2ac53ee6ee141e54cd2ab2dc2375f4a0703a178e6e55"
    "000000000000000000000000000000000000000000000000f80306c9858e7279"
)
"""The pinned root: the chain context (genesis digest) of the Oasis mainnet, then the runtime id of Sapphire on it. A
root in `Inputs.roots` has the same 64 bytes."""

_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_APP_ID: Final = re.compile(rf"rofl1[{_BECH32}]{{40}}")
_METADATA_KEY: Final = re.compile(re.escape(METADATA_NAMESPACE + KEY_PREFIX) + r"[a-z0-9._-]{1,64}")


def app_id_bytes(app_id: Any, where: str) -> bytes:
    """The 21 bytes of an app id (Bech32, BIP-173, with the prefix `rofl`).

    Raises:
        MalformedError: not an app id in lower case, or its checksum does not hold.
    """
    if not isinstance(app_id, str) or not _APP_ID.fullmatch(app_id):
        raise MalformedError(where, "must be an app id: rofl1 and 40 Bech32 characters")
    words = [_BECH32.index(character) for character in app_id[5:]]
    check = 1
    for word in [*(ord(c) >> 5 for c in "rofl"), 0, *(ord(c) & 31 for c in "rofl"), *words]:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ word
        for bit, factor in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= factor * (top >> bit & 1)
    value = 0
    for word in words[:-6]:
        value = value << 5 | word
    if check != 1 or value & 3:
        raise MalformedError(where, "is not a valid app id (checksum)")
    return (value >> 2).to_bytes(21, "big")


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the evidence says."""

    app_id: bytes
    rak: bytes
    metadata_key: str
    report_data: bytes


@dataclass(frozen=True, slots=True)
class _Replica:
    app_id: bytes
    rak: bytes
    node_id: bytes
    expiration: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    root: bytes
    epoch: int
    fetched_at: int
    app_id: bytes
    enclaves: tuple[bytes, ...]
    pcs: Mapping[str, Any]
    replicas: tuple[_Replica, ...]


def appraise(evidence: Any, inputs: Inputs) -> Appraisal:
    """Check where ROFL evidence points, in the snapshot of the chain in `inputs.collateral`.

    The report data is handed out only when the chain holds its digest: the evidence beside it is signed by nobody.
    """
    checks = Checks()
    facts: dict[str, Any] = {}
    claims: list[_Claim] = []
    snapshots: list[_Snapshot] = []

    def claim() -> _Claim:
        if not claims:
            raise NotVerified("the evidence could not be read")
        return claims[0]

    def snapshot() -> _Snapshot:
        if not snapshots:
            raise NotVerified("on-chain attested, not a quote: it takes a snapshot of the registration to check")
        return snapshots[0]

    def replica() -> _Replica:
        found = [one for one in snapshot().replicas if one.rak == claim().rak and one.app_id == claim().app_id]
        if len(found) != 1:
            raise EvidenceError(f"the chain lists {len(found)} replicas of this app with this key, not one")
        return found[0]

    def shape() -> str:
        claims.append(_parse_claim(evidence))
        return "complete, and says that it is not a quote"

    def collateral() -> str:
        if inputs.collateral is None:
            raise NotVerified("no snapshot of the registration was given; take one from an Oasis node of your choice")
        snapshots.append(_parse_snapshot(inputs.collateral))
        facts["measurements"] = {
            "app_id": snapshots[0].app_id.hex(),
            "enclaves": b"".join(snapshots[0].enclaves).hex(),
        }
        return f"the registration as of epoch {snapshots[0].epoch}, from the relying party's node"

    def chain() -> str:
        if snapshot().root not in inputs.roots.get(TEE_TYPE, (SAPPHIRE,)):
            raise EvidenceError("the snapshot is of another chain or runtime than the pinned one")
        return "the pinned chain and runtime"

    def fresh() -> str:
        age = inputs.now - snapshot().fetched_at
        if not 0 <= age <= MAX_SNAPSHOT_AGE_SECONDS:
            raise EvidenceError(f"the snapshot is {age} s old; 0 to {MAX_SNAPSHOT_AGE_SECONDS} s are accepted")
        return f"{age} s old"

    def app() -> str:
        if snapshot().app_id != claim().app_id:
            raise EvidenceError("the snapshot is of another app than the evidence names")
        return str(evidence["app_id"])

    def registered() -> str:
        facts["chip"] = replica().node_id.hex()
        return f"registered, endorsed by node {facts['chip']}"

    def expiry() -> str:
        # The runtime drops a registration in the epoch that it names (rofl state, expire_registrations).
        if replica().expiration <= snapshot().epoch:
            raise EvidenceError(f"expired in epoch {replica().expiration}, the chain is in {snapshot().epoch}")
        return f"until epoch {replica().expiration}, the chain is in {snapshot().epoch}"

    def report_data() -> str:
        if replica().metadata.get(claim().metadata_key) != digest(claim().report_data):
            raise EvidenceError(f"the replica's {claim().metadata_key} on chain is not the digest of this report data")
        facts["report_data"] = claim().report_data
        return f"{claim().metadata_key} on chain is its digest"

    def quotes() -> str:
        pcs = snapshot().pcs
        if pcs.get("disabled", False) is not False:
            raise EvidenceError("the app's policy on chain does not check hardware quotes (pcs is disabled)")
        return "the app's policy on chain has every hardware quote checked"

    def evaluation() -> str:
        lowest = encoding.integer(snapshot().pcs.get("min_tcb_evaluation_data_number"), "snapshot.pcs")
        wanted = inputs.policy.minimum_tcb_evaluation
        if wanted is None:
            raise NotVerified(f"the policy demands none; the app's own on chain demands {lowest} or newer")
        if lowest < wanted:
            raise EvidenceError(f"the app's policy on chain accepts TCB evaluation {lowest}, {wanted} is demanded")
        return f"the app's policy on chain demands {lowest} or newer, {wanted} is demanded"

    def measurements() -> str:
        snapshot()
        return check_allowed(inputs.policy, TEE_TYPE, facts["measurements"], required="enclaves")

    def denied() -> str:
        if {replica().node_id.hex(), replica().rak.hex()} & inputs.policy.denied:
            raise EvidenceError("the endorsing node or the replica is on the deny-list")
        return "neither the endorsing node nor the replica is on the deny-list"

    for check_id, check in (
        ("shape", shape),
        ("collateral", collateral),
        ("chain", chain),
        ("fresh", fresh),
        ("app", app),
        ("registered", registered),
        ("expiry", expiry),
        ("report_data", report_data),
        ("quotes", quotes),
        ("evaluation", evaluation),
        ("measurements", measurements),
        ("denied", denied),
    ):
        checks.run(f"{TEE_TYPE}.{check_id}", check)
    return Appraisal(tee_type=TEE_TYPE, is_hardware=True, checks=checks.done, **facts)


def _parse_claim(evidence: Any) -> _Claim:
    document = encoding.as_object(evidence, "evidence")
    encoding.only(document, "evidence", {"format", "notice", "app_id", "rak", "metadata_key", "report_data"})
    if document["format"] != TEE_TYPE:
        raise MalformedError("evidence.format", f"must be {TEE_TYPE}")
    if document["notice"] != NOTICE:
        raise MalformedError("evidence.notice", "must be the exact notice that this is not a quote")
    key = document["metadata_key"]
    if not isinstance(key, str) or not _METADATA_KEY.fullmatch(key):
        raise MalformedError("evidence.metadata_key", f"must begin with {METADATA_NAMESPACE}{KEY_PREFIX}")
    return _Claim(
        app_id=app_id_bytes(document["app_id"], "evidence.app_id"),
        rak=encoding.hex_bytes(document["rak"], "evidence.rak", size=32),
        metadata_key=key,
        report_data=encoding.hex_bytes(document["report_data"], "evidence.report_data", size=REPORT_DATA_BYTES),
    )


def _parse_snapshot(collateral: Any) -> _Snapshot:
    document = encoding.as_object(collateral, "snapshot")
    encoding.only(
        document,
        "snapshot",
        {"format", "chain_context", "runtime_id", "epoch", "fetched_at", "app", "replicas"},
    )
    if document["format"] != SNAPSHOT_FORMAT:
        raise MalformedError("snapshot.format", f"must be {SNAPSHOT_FORMAT}")
    app = encoding.as_object(document["app"], "snapshot.app")
    policy = encoding.as_object(app.get("policy"), "snapshot.app.policy")
    quotes = encoding.as_object(policy.get("quotes"), "snapshot.app.policy.quotes")
    enclaves = _list(policy.get("enclaves"), "snapshot.app.policy.enclaves")
    if not enclaves:
        raise MalformedError("snapshot.app.policy.enclaves", "must list an enclave")
    return _Snapshot(
        root=encoding.hex_bytes(document["chain_context"], "snapshot.chain_context", size=32)
        + encoding.hex_bytes(document["runtime_id"], "snapshot.runtime_id", size=32),
        epoch=encoding.integer(document["epoch"], "snapshot.epoch"),
        fetched_at=encoding.integer(document["fetched_at"], "snapshot.fetched_at"),
        app_id=app_id_bytes(app.get("id"), "snapshot.app.id"),
        enclaves=tuple(sorted(_base64(one, "snapshot.app.policy.enclaves", size=64) for one in enclaves)),
        pcs=encoding.as_object(quotes.get("pcs"), "snapshot.app.policy.quotes.pcs"),
        replicas=tuple(_parse_replica(one) for one in _list(document["replicas"], "snapshot.replicas")),
    )


def _parse_replica(value: Any) -> _Replica:
    where = "snapshot.replicas"
    replica = encoding.as_object(value, where)
    return _Replica(
        app_id=app_id_bytes(replica.get("app"), f"{where}.app"),
        rak=_base64(replica.get("rak"), f"{where}.rak", size=32),
        node_id=_base64(replica.get("node_id"), f"{where}.node_id", size=32),
        expiration=encoding.integer(replica.get("expiration"), f"{where}.expiration"),
        metadata=encoding.as_object(replica.get("metadata", {}), f"{where}.metadata"),
    )


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedError(where, "must be a list")
    return value


def _base64(value: Any, where: str, *, size: int) -> bytes:
    data = encoding.b64_bytes(value, where)
    if len(data) != size:
        raise MalformedError(where, f"must be {size} bytes, is {len(data)}")
    return data
