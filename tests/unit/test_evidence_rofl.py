"""ROFL evidence proves what the chain says, as the relying party's own node tells it, and nothing by itself."""

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.digest import digest
from attestation.errors import MalformedError
from attestation.evidence.appraisal import Appraisal, EvidencePolicy, Inputs
from attestation.evidence.rofl import NOTICE, SAPPHIRE, app_id_bytes, appraise
from attestation.verdict import Status

NOW = 1_760_000_000
DATA = bytes(range(64))
APP = "rofl1qqn9xndja7e2pnxhttktmecvwzz0yqwxsquqyxdf"
OTHER_APP = "rofl1qr98wz5t6q4x8ng6a5l5v7rqlx90j3kcnun5dwht"
KEY = "net.oasis.app.tollseal.0"
RAK, NODE = b"\x5a" * 32, b"\x03" * 32
ENCLAVES = (b"\x01" * 32 + bytes(32), b"\x02" * 32 + bytes(32))
MEASURED = {"app_id": app_id_bytes(APP, "").hex(), "enclaves": (ENCLAVES[0] + ENCLAVES[1]).hex()}
ON_CHAIN = {
    "chain",
    "fresh",
    "app",
    "registered",
    "expiry",
    "report_data",
    "quotes",
    "evaluation",
    "measurements",
    "denied",
}

Change = Callable[[dict[str, Any]], object]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def evidence(**changes: Any) -> dict[str, Any]:
    return {
        "format": "rofl",
        "notice": NOTICE,
        "app_id": APP,
        "rak": RAK.hex(),
        "metadata_key": KEY,
        "report_data": DATA.hex(),
    } | changes


def snapshot() -> dict[str, Any]:
    """As ``oasis rofl show --format json`` prints it, with what surrounds it."""
    return {
        "format": "rofl-registration/1",
        "chain_context": SAPPHIRE[:32].hex(),
        "runtime_id": SAPPHIRE[32:].hex(),
        "epoch": 40_000,
        "fetched_at": NOW - 10,
        "app": {
            "id": APP,
            "policy": {
                "quotes": {"pcs": {"tcb_validity_period": 30, "min_tcb_evaluation_data_number": 18, "tdx": {}}},
                "enclaves": [b64(ENCLAVES[1]), b64(ENCLAVES[0])],
                "endorsements": [{"any": {}}],
                "fees": 2,
                "max_expiration": 3,
            },
            "admin": "oasis1qrec770vrek0a9a5lcrv0zvt22504k68svq7kzve",
            "stake": {"Amount": "10000000000000000000000", "Denomination": ""},
            "metadata": {"net.oasis.rofl.name": "tollseal"},
            "sek": b64(bytes(32)),
        },
        "replicas": [
            {
                "app": APP,
                "node_id": b64(b"\x01" * 32),
                "rak": b64(b"\x02" * 32),
                "rek": b64(bytes(32)),
                "expiration": 9,
            },
            {
                "app": APP,
                "node_id": b64(NODE),
                "entity_id": b64(b"\x04" * 32),
                "rak": b64(RAK),
                "rek": b64(bytes(32)),
                "expiration": 40_002,
                "extra_keys": [],
                "metadata": {KEY: digest(DATA), "net.oasis.app.version": "1"},
            },
        ],
    }


def check(
    claim: Any = None, collateral: Any = None, *, now: int = NOW, policy: EvidencePolicy | None = None, **inputs: Any
) -> Appraisal:
    collateral = snapshot() if collateral is None else collateral
    policy = policy or EvidencePolicy(measurements={"rofl": (MEASURED,)}, minimum_tcb_evaluation=18)
    return appraise(
        evidence() if claim is None else claim, Inputs(now=now, policy=policy, collateral=collateral, **inputs)
    )


def changed(change: Change) -> dict[str, Any]:
    document = snapshot()
    change(document)
    return document


def statuses(appraisal: Appraisal) -> dict[str, Status]:
    return {one.id.removeprefix("rofl."): one.status for one in appraisal.checks}


def failed(appraisal: Appraisal) -> set[str]:
    return {name for name, status in statuses(appraisal).items() if status is Status.FAIL}


def mine(document: dict[str, Any]) -> dict[str, Any]:
    replica: dict[str, Any] = document["replicas"][1]
    return replica


def test_a_registered_replica_proves_its_report_data() -> None:
    appraisal = check()
    assert set(statuses(appraisal).values()) == {Status.PASS}
    assert appraisal.report_data == DATA
    assert appraisal.measurements == MEASURED
    assert appraisal.chip == NODE.hex()
    assert (appraisal.tee_type, appraisal.is_hardware) == ("rofl", True)


def test_without_a_snapshot_nothing_of_the_chain_is_verified() -> None:
    appraisal = appraise(evidence(), Inputs(now=NOW))
    found = statuses(appraisal)
    assert found.pop("shape") is Status.PASS
    assert found.keys() == ON_CHAIN | {"collateral"}
    assert set(found.values()) == {Status.NOT_VERIFIED}
    assert appraisal.report_data is None, "report data that nobody signed must bind nothing"
    assert appraisal.missing(of_policy=False) is not None, "it must not count as genuine"


def test_it_is_labelled_as_what_it_is() -> None:
    appraisal = appraise(evidence(), Inputs(now=NOW))
    details = {one.id: one.detail for one in appraisal.checks}
    assert "not a quote" in details["rofl.shape"]
    assert "on-chain attested, not a quote" in details["rofl.registered"]
    assert failed(check(evidence(notice="genuine TDX quote"))) == {"shape"}


def test_without_a_measurement_policy_only_the_measurements_are_not_verified() -> None:
    appraisal = check(policy=EvidencePolicy())
    found = statuses(appraisal)
    assert {name for name, status in found.items() if status is not Status.PASS} == {"measurements", "evaluation"}
    assert appraisal.missing(of_policy=False) is None
    assert str(appraisal.missing()).startswith("rofl.measurements")


@pytest.mark.parametrize(
    ("change", "check_id"),
    [
        (lambda d: d.update(chain_context="00" * 32), "chain"),
        (lambda d: d.update(runtime_id="00" * 32), "chain"),
        (lambda d: d.update(fetched_at=NOW - 3601), "fresh"),
        (lambda d: d.update(fetched_at=NOW + 1), "fresh"),
        (lambda d: d.update(epoch=40_002), "expiry"),
        (lambda d: mine(d).update(expiration=40_000), "expiry"),
        (lambda d: mine(d)["metadata"].update({KEY: digest(bytes(64))}), "report_data"),
        (lambda d: mine(d)["metadata"].update({KEY: digest(DATA).removeprefix("sha256:")}), "report_data"),
        (lambda d: mine(d)["metadata"].update({KEY: None}), "report_data"),
        (lambda d: mine(d)["metadata"].clear(), "report_data"),
        (lambda d: mine(d).pop("metadata"), "report_data"),
        (lambda d: d["app"]["policy"]["quotes"]["pcs"].update(disabled=True), "quotes"),
        (lambda d: d["app"]["policy"]["quotes"]["pcs"].update(disabled="false"), "quotes"),
        (lambda d: d["app"]["policy"]["quotes"]["pcs"].clear(), "evaluation"),
        (lambda d: d["app"]["policy"]["enclaves"].append(b64(b"\x09" * 64)), "measurements"),
        (lambda d: d["app"]["policy"]["enclaves"].pop(), "measurements"),
    ],
)
def test_each_thing_that_the_chain_says_counts(change: Change, check_id: str) -> None:
    assert failed(check(collateral=changed(change))) == {check_id}


def test_another_app_is_not_this_one() -> None:
    assert {"app", "measurements"} <= failed(check(collateral=changed(lambda d: d["app"].update(id=OTHER_APP))))
    assert {"app", "registered"} <= failed(check(evidence(app_id=OTHER_APP)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["replicas"].pop(),
        lambda d: d["replicas"].clear(),
        lambda d: d["replicas"].append(copy.deepcopy(mine(d))),
        lambda d: mine(d).update(rak=b64(b"\x5b" * 32)),
        lambda d: mine(d).update(app=OTHER_APP),
    ],
)
def test_a_replica_that_is_not_listed_once_proves_nothing(change: Change) -> None:
    appraisal = check(collateral=changed(change))
    assert failed(appraisal) == {"registered", "expiry", "report_data", "denied"}
    assert appraisal.report_data is None


def test_another_replicas_digest_is_not_ours() -> None:
    """The same app's other instance may be anywhere; its registration vouches for its own keys only."""
    stolen = changed(lambda d: d["replicas"][0].update(metadata=mine(d).pop("metadata")))
    assert failed(check(collateral=stolen)) == {"report_data"}


@pytest.mark.parametrize("report_data", [bytes(64), DATA[:32] + bytes(32), bytes([DATA[0] ^ 1]) + DATA[1:]])
def test_other_report_data_is_refused(report_data: bytes) -> None:
    appraisal = check(evidence(report_data=report_data.hex()))
    assert failed(appraisal) == {"report_data"}
    assert appraisal.report_data is None


@pytest.mark.parametrize("key", ["net.oasis.app.version", "net.oasis.provider.tollseal.0", "tollseal.0", KEY + "/", 1])
def test_only_our_own_metadata_vouches(key: object) -> None:
    collateral = changed(lambda d: mine(d)["metadata"].update({str(key): digest(DATA)}))
    appraisal = check(evidence(metadata_key=key), collateral)
    assert "shape" in failed(appraisal)
    assert appraisal.report_data is None


def test_a_chain_of_ones_own_is_accepted_only_when_it_is_named() -> None:
    own = changed(lambda d: d.update(chain_context="aa" * 32, runtime_id="bb" * 32))
    root = b"\xaa" * 32 + b"\xbb" * 32
    assert failed(check(collateral=own)) == {"chain"}
    assert check(collateral=own, roots={"rofl": (root,)}).genuine
    assert failed(check(roots={"rofl": (root,)})) == {"chain"}, "it replaces the pinned one"
    assert check(roots={"tdx": (root,)}).genuine


@pytest.mark.parametrize("entry", [NODE.hex(), RAK.hex()])
def test_what_is_denied_is_refused(entry: str) -> None:
    policy = EvidencePolicy(measurements={"rofl": (MEASURED,)}, denied=frozenset({entry}))
    assert failed(check(policy=policy)) == {"denied"}


def test_the_demanded_tcb_evaluation_is_compared_with_the_apps() -> None:
    for wanted, expected in ((18, set()), (19, {"evaluation"})):
        policy = EvidencePolicy(measurements={"rofl": (MEASURED,)}, minimum_tcb_evaluation=wanted)
        assert failed(check(policy=policy)) == expected


@pytest.mark.parametrize(
    "accepted",
    [
        {"enclaves": ENCLAVES[0].hex()},
        {"app_id": MEASURED["app_id"]},
        {"app_id": "00" * 21, "enclaves": MEASURED["enclaves"]},
        {},
    ],
)
def test_measurements_that_are_not_all_on_the_list_are_refused(accepted: dict[str, str]) -> None:
    policy = EvidencePolicy(measurements={"rofl": (accepted,)})
    assert failed(check(policy=policy)) == {"measurements"}


@pytest.mark.parametrize(
    "claim",
    [
        None,
        [],
        "quote",
        {},
        evidence(format="tdx"),
        evidence(extra=1),
        evidence(app_id=APP.upper()),
        evidence(app_id=APP[:-1] + "q"),
        evidence(app_id=7),
        evidence(rak=RAK.hex().upper()),
        evidence(rak=b64(RAK)),
        evidence(rak="5a"),
        evidence(report_data=DATA[:32].hex()),
        {name: value for name, value in evidence().items() if name != "rak"},
    ],
)
def test_malformed_evidence_is_a_failed_check(claim: object) -> None:
    appraisal = appraise(claim, Inputs(now=NOW, collateral=snapshot()))
    assert failed(appraisal) == {"shape"}
    assert appraisal.report_data is None


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format="rofl-registration/2"),
        lambda d: d.update(extra=1),
        lambda d: d.pop("epoch"),
        lambda d: d.update(epoch="40000"),
        lambda d: d.update(fetched_at=True),
        lambda d: d.update(chain_context="aa"),
        lambda d: d.update(app=[]),
        lambda d: d["app"].pop("id"),
        lambda d: d["app"].pop("policy"),
        lambda d: d["app"]["policy"].pop("quotes"),
        lambda d: d["app"]["policy"]["quotes"].pop("pcs"),
        lambda d: d["app"]["policy"].pop("enclaves"),
        lambda d: d["app"]["policy"].update(enclaves=[]),
        lambda d: d["app"]["policy"].update(enclaves=[b64(bytes(32))]),
        lambda d: d["app"]["policy"].update(enclaves=["!"]),
        lambda d: d.update(replicas={}),
        lambda d: d.update(replicas=[1]),
        lambda d: mine(d).pop("rak"),
        lambda d: mine(d).update(rak=RAK.hex()),
        lambda d: mine(d).update(expiration=-1),
        lambda d: mine(d).update(metadata=[]),
        lambda d: mine(d).update(app="rofl1"),
    ],
)
def test_a_malformed_snapshot_is_a_failed_check_and_vouches_for_nothing(change: Change) -> None:
    appraisal = check(collateral=changed(change))
    assert failed(appraisal) == {"collateral"}
    assert {statuses(appraisal)[name] for name in ON_CHAIN} == {Status.NOT_VERIFIED}
    assert appraisal.report_data is None


@pytest.mark.parametrize("collateral", [[], "text", 1, {}])
def test_collateral_that_is_no_snapshot_is_refused(collateral: Any) -> None:
    assert failed(check(collateral=collateral)) == {"collateral"}


@pytest.mark.parametrize(
    ("app_id", "expected"),
    [
        ("rofl1qrd45eaj4tf6l7mjw5prcukz75wdmwg6kggt6pnp", "00db5a67b2aad3affb7275023c72c2f51cddb91ab2"),
        ("rofl1qrev5wq76npkmcv5wxkdxxcu4dhmu704yyl30h43", "00f2ca381ed4c36de19471acd31b1cab6fbe79f521"),
    ],
)
def test_app_ids_are_read_as_the_chain_writes_them(app_id: str, expected: str) -> None:
    assert app_id_bytes(app_id, "id").hex() == expected


def test_an_app_id_has_one_spelling() -> None:
    """This one has a right checksum, and a bit set behind the last of its bytes."""
    with pytest.raises(MalformedError, match="not a valid app id"):
        app_id_bytes("rofl1qqn9xndja7e2pnxhttktmecvwzz0yqwxsppksnsm", "id")


@given(st.integers(5, 44), st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
def test_no_changed_letter_of_an_app_id_is_accepted(place: int, letter: str) -> None:
    if APP[place] != letter:
        with pytest.raises(MalformedError):
            app_id_bytes(APP[:place] + letter + APP[place + 1 :], "id")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, JSON)
def test_no_json_raises_or_is_believed(claim: Any, collateral: Any) -> None:
    appraisal = appraise(claim, Inputs(now=NOW, collateral=collateral))
    assert not appraisal.genuine
    assert appraisal.report_data is None


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict | list):
        for name in value if isinstance(value, dict) else range(len(value)):
            found += places(value[name], (*path, name))
    return found


@given(st.sampled_from(places(evidence())), JSON)
def test_no_changed_part_of_the_evidence_is_accepted(path: tuple[Any, ...], value: Any) -> None:
    claim = evidence()
    if claim[path[0]] == value:
        return
    claim[path[0]] = value
    appraisal = check(claim)
    assert not appraisal.genuine
    assert appraisal.report_data is None


@given(st.sampled_from(places(snapshot())), JSON)
def test_no_part_of_a_snapshot_raises_whatever_it_is(path: tuple[Any, ...], value: Any) -> None:
    document = snapshot()
    parent = document
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    appraisal = check(collateral=document)
    if appraisal.report_data is not None:
        assert mine(document)["metadata"][KEY] == digest(DATA)


@given(st.data())
def test_no_flipped_bit_of_the_evidence_is_accepted(data: st.DataObject) -> None:
    text = bytearray(json.dumps(evidence()).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        claim = json.loads(bytes(text))
    except ValueError:
        return
    if claim != evidence():
        assert not check(claim).genuine
