"""A dstack deployment is what its event log says, as far as the log reproduces what the hardware measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.evidence import dstack
from attestation.evidence.appraisal import Appraisal, EvidencePolicy, Inputs
from attestation.verdict import Check, Status
from tests.evidence_tdx import NOW, DstackGuest, TestIntel

DATA = bytes(range(64))
VENDOR = TestIntel()
COLLATERAL = VENDOR.collateral()
COMPOSE_HASH = "62dd36d22b7d704aaa4d598226801ed4e6a3bfd17dde762b2efd9876768be800"
DSTACK_CHECKS = ["log", "boot", "rtmr3", "identity", "compose", "config_id"]


def check(evidence: Any, **policy: Any) -> Appraisal:
    inputs = Inputs(now=NOW, roots={"tdx": (VENDOR.root,)}, policy=EvidencePolicy(**policy), collateral=COLLATERAL)
    return dstack.appraise_tdx_family(evidence, inputs)


def of(appraisal: Appraisal, check_id: str) -> Check:
    return next(check for check in appraisal.checks if check.id == check_id)


def refused(appraisal: Appraisal, check_id: str, words: str) -> bool:
    found = of(appraisal, check_id)
    assert words in found.detail
    return not appraisal.genuine and found.status is Status.FAIL


def unverified(appraisal: Appraisal, check_id: str, words: str = "") -> bool:
    found = of(appraisal, check_id)
    return words in found.detail and found.status is Status.NOT_VERIFIED


def with_log(guest: DstackGuest, change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
    """The guest's evidence with its log changed afterwards, as a liar would."""
    log = json.loads(json.dumps(guest.log))
    change(log)
    return guest.evidence(VENDOR, DATA, event_log=log)


def runtime(log: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(event for event in log if event["event"] == name)


# Captured on real hardware


@pytest.fixture
def captured(evidence_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((evidence_dir / "dstack" / "nearai_20A06F_getquote.json").read_bytes())
    return found


def real(evidence_dir: Path, evidence: Any, collateral: str = "collateral_20A06F_2025-09.json") -> Appraisal:
    document = json.loads((evidence_dir / "tdx" / collateral).read_bytes())
    return dstack.appraise_tdx_family(evidence, Inputs(now=1757000000, collateral=document))


def test_a_real_deployment_is_what_its_log_says(evidence_dir: Path, captured: dict[str, Any]) -> None:
    appraisal = real(evidence_dir, captured)
    assert appraisal.genuine
    assert appraisal.tcb_status == "UpToDate"
    for name in ("log", "boot", "rtmr3", "identity", "config_id"):
        assert of(appraisal, f"dstack.{name}").status is Status.PASS
    assert unverified(appraisal, "dstack.compose", COMPOSE_HASH)
    assert appraisal.measurements["compose_hash"] == COMPOSE_HASH
    assert appraisal.measurements["mr_config_id"].startswith("01" + COMPOSE_HASH)
    # It binds no key: whoever asks for a binding compares with this, and finds another value.
    assert appraisal.report_data == b"\x01" * 64


def test_a_real_deployment_with_collateral_of_another_family_is_refused(
    evidence_dir: Path, captured: dict[str, Any]
) -> None:
    appraisal = real(evidence_dir, captured, "collateral_B0C06F_2025-06.json")
    assert refused(appraisal, "tdx.collateral", "FMSPC mismatch")


def test_a_real_deployment_with_another_compose_text_is_refused(evidence_dir: Path, captured: dict[str, Any]) -> None:
    assert refused(real(evidence_dir, {**captured, "app_compose": "{}"}), "dstack.compose", COMPOSE_HASH)


def test_a_real_log_that_lies_about_an_event_is_refused(evidence_dir: Path, captured: dict[str, Any]) -> None:
    log = json.loads(captured["event_log"]) if isinstance(captured["event_log"], str) else captured["event_log"]
    for event in log:
        if event["event"] == "compose-hash":
            event["event_payload"] = "00" * 32
    assert refused(real(evidence_dir, {**captured, "event_log": log}), "dstack.rtmr3", "compose-hash")


def test_a_real_log_without_the_digests_that_are_recomputed_is_as_good(
    evidence_dir: Path, captured: dict[str, Any]
) -> None:
    log = json.loads(captured["event_log"]) if isinstance(captured["event_log"], str) else captured["event_log"]
    for event in log:
        if event["imr"] == 3:
            event["digest"] = ""
    appraisal = real(evidence_dir, {**captured, "event_log": json.dumps(log)})
    assert appraisal.genuine
    assert of(appraisal, "dstack.rtmr3").status is Status.PASS


# Made under a test root


@pytest.mark.parametrize("version", [1, 2])
def test_a_deployment_is_checked_from_the_quote_to_the_compose_text(version: int) -> None:
    guest = DstackGuest(version=version).boot()
    appraisal = check(guest.evidence(VENDOR, DATA))
    assert appraisal.genuine
    assert all(of(appraisal, f"dstack.{name}").status is Status.PASS for name in DSTACK_CHECKS)
    assert appraisal.measurements["compose_hash"] == guest.compose_hash.hex()
    assert appraisal.measurements["app_id"] == guest.app_id.hex()
    assert appraisal.measurements["instance_id"] == "1d" * 20
    assert appraisal.report_data == DATA


def test_all_checks_of_a_quote_are_made_too() -> None:
    guest = DstackGuest().boot()
    debug = VENDOR.quote(DATA, fields=guest.fields, attributes=1 << 28 | 1)
    assert refused(check(guest.evidence(VENDOR, DATA, quote=debug.hex())), "tdx.debug", "debugged")


def test_a_deployment_is_refused_under_intels_root() -> None:
    evidence = DstackGuest().boot().evidence(VENDOR, DATA)
    appraisal = dstack.appraise(evidence, Inputs(now=NOW, collateral=COLLATERAL))
    assert refused(appraisal, "tdx.signature", "Intel's root")


def test_evidence_without_a_log_is_a_bare_quote_unless_it_has_a_compose_text() -> None:
    guest = DstackGuest().boot()
    bare = check({"quote": guest.evidence(VENDOR, DATA)["quote"], "event_log": None})
    assert bare.genuine
    assert not any(found.id.startswith("dstack.") for found in bare.checks)
    assert refused(check(guest.evidence(VENDOR, DATA, event_log=None)), "dstack.log", "event_log")


def test_the_log_of_another_guest_is_refused() -> None:
    evidence = DstackGuest().boot().evidence(VENDOR, DATA, event_log=DstackGuest(compose="other").boot().log)
    appraisal = check(evidence)
    assert refused(appraisal, "dstack.rtmr3", "does not reproduce")
    for name in ("identity", "compose", "config_id"):
        assert unverified(appraisal, f"dstack.{name}")
    assert "compose_hash" not in appraisal.measurements


def test_another_compose_text_than_the_measured_one_is_refused() -> None:
    guest = DstackGuest().boot()
    assert refused(
        check(guest.evidence(VENDOR, DATA, app_compose=guest.compose + " ")), "dstack.compose", "not the one"
    )
    assert refused(check(guest.evidence(VENDOR, DATA, app_compose=7)), "dstack.compose", "string")
    missing = check(guest.evidence(VENDOR, DATA, app_compose=None))
    assert missing.genuine
    assert unverified(missing, "dstack.compose", guest.compose_hash.hex())


def test_events_after_system_ready_extend_the_register_and_mean_nothing() -> None:
    guest = DstackGuest().boot()
    guest.emit("compose-hash", b"\xee" * 32)
    guest.emit("app-id", b"\xee" * 20)
    guest.emit("system-ready", b"")
    guest.emit("any:thing", b"")
    appraisal = check(guest.evidence(VENDOR, DATA))
    assert appraisal.genuine
    assert appraisal.measurements["compose_hash"] == guest.compose_hash.hex()
    assert "4 events after system-ready" in of(appraisal, "dstack.identity").detail
    assert refused(check(with_log(guest, lambda log: log.pop())), "dstack.rtmr3", "does not reproduce")


BOOT = ("system-preparing", "app-id", "compose-hash", "system-ready")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("app-id", "compose-hash", "compose-hash", "system-ready"), "2 events compose-hash"),
        (("app-id", "app-id", "compose-hash", "system-ready"), "2 events app-id"),
        (("app-id", "system-ready", "compose-hash"), "0 events compose-hash"),
        (("system-ready", "app-id", "compose-hash"), "0 events app-id"),
        (("app-id", "compose-hash"), "no event system-ready"),
        (("app-id", "compose-hash", "compose-hash:x", "system-ready"), "colon"),
    ],
)
def test_an_identity_that_is_not_stated_exactly_once_is_refused(names: tuple[str, ...], words: str) -> None:
    appraisal = check(DstackGuest().boot(*names).evidence(VENDOR, DATA))
    assert refused(appraisal, "dstack.identity", words)
    assert unverified(appraisal, "dstack.compose")
    assert "compose_hash" not in appraisal.measurements


def test_an_identity_of_another_size_is_refused() -> None:
    guest = DstackGuest(app_id=b"\xab" * 19).boot()
    assert refused(check(guest.evidence(VENDOR, DATA)), "dstack.identity", "must have 20 bytes")


def test_what_is_stated_twice_besides_the_identity_is_not_handed_out() -> None:
    guest = DstackGuest().boot("instance-id", "instance-id", *BOOT)
    appraisal = check(guest.evidence(VENDOR, DATA))
    assert appraisal.genuine
    assert "instance_id" not in appraisal.measurements


def test_a_colon_cannot_move_between_name_and_payload() -> None:
    guest = DstackGuest()
    guest.emit("app-id", guest.app_id)
    guest.emit("compose-hash", guest.compose_hash)
    guest.emit("note", b"a:b")
    guest.emit("system-ready", b"")
    assert check(guest.evidence(VENDOR, DATA)).genuine

    def resplit(log: list[dict[str, Any]]) -> None:
        runtime(log, "note").update(event="note:a", event_payload=b"b".hex())

    assert refused(check(with_log(guest, resplit)), "dstack.identity", "colon")


def swap(log: list[dict[str, Any]], register: int) -> None:
    first, second = [index for index, event in enumerate(log) if event["imr"] == register][:2]
    log[first], log[second] = log[second], log[first]


@pytest.mark.parametrize(("register", "check_id"), [(0, "boot"), (1, "boot"), (3, "rtmr3")])
def test_events_in_another_order_are_refused(register: int, check_id: str) -> None:
    evidence = with_log(DstackGuest().boot(), lambda log: swap(log, register))
    assert refused(check(evidence), f"dstack.{check_id}", f"does not reproduce RTMR{register}")


def test_digests_in_the_log_are_recomputed_and_never_believed() -> None:
    guest = DstackGuest().boot()

    def lie(log: list[dict[str, Any]]) -> None:
        runtime(log, "compose-hash")["event_payload"] = "ee" * 32

    assert refused(check(with_log(guest, lie)), "dstack.rtmr3", "'compose-hash' is not that of its name and payload")

    def contradict(log: list[dict[str, Any]]) -> None:
        runtime(log, "compose-hash")["digest"] = "ee" * 48

    assert refused(check(with_log(guest, contradict)), "dstack.rtmr3", "not that of its name")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("empty", ["", None])
def test_runtime_events_need_no_digest(version: int, empty: str | None) -> None:
    guest = DstackGuest(version=version).boot()

    def strip(log: list[dict[str, Any]]) -> None:
        for event in log:
            if event["imr"] == 3:
                event["digest"] = empty

    assert check(with_log(guest, strip)).genuine

    def strip_and_lie(log: list[dict[str, Any]]) -> None:
        strip(log)
        runtime(log, "compose-hash")["event_payload"] = "ee" * 32

    assert refused(check(with_log(guest, strip_and_lie)), "dstack.rtmr3", "does not reproduce")


def test_a_log_that_states_its_versions_is_held_to_them() -> None:
    guest = DstackGuest(version=2).boot()
    guest.emit("app event", b"", version=1)

    def state(log: list[dict[str, Any]], versions: dict[str, int]) -> None:
        for event in log:
            if event["imr"] == 3:
                event["version"] = versions.get(event["event"], 2)
                event["digest"] = ""

    assert check(with_log(guest, lambda log: state(log, {"app event": 1}))).genuine
    assert refused(check(with_log(guest, lambda log: state(log, {}))), "dstack.rtmr3", "does not reproduce")
    assert refused(check(with_log(guest, lambda log: state(log, {"app-id": 3}))), "dstack.log", "version")


def test_boot_events_cannot_be_replayed_without_their_digests() -> None:
    evidence = with_log(DstackGuest().boot(), lambda log: log[0].update(digest=""))
    appraisal = check(evidence)
    assert refused(appraisal, "dstack.log", "48 bytes, is 0")
    assert unverified(appraisal, "dstack.boot")
    assert unverified(appraisal, "dstack.rtmr3")


def test_a_log_of_runtime_events_alone_leaves_the_boot_unverified() -> None:
    guest = DstackGuest().boot()
    evidence = guest.evidence(VENDOR, DATA, event_log=[event for event in guest.log if event["imr"] == 3])
    appraisal = check(evidence)
    assert unverified(appraisal, "dstack.boot", "RTMR0, RTMR1, RTMR2")
    assert of(appraisal, "dstack.rtmr3").status is Status.PASS


def test_no_event_can_hide_in_the_runtime_register_under_another_type() -> None:
    evidence = with_log(DstackGuest().boot(), lambda log: runtime(log, "compose-hash").update(event_type=4))
    assert refused(check(evidence), "dstack.log", "134217729")


@pytest.mark.parametrize(
    ("config_id", "outcome", "words"),
    [
        (bytes(48), Status.NOT_VERIFIED, "does not use"),
        (b"\x01" + b"\xee" * 32, Status.FAIL, "another compose text"),
        (b"\x02" + b"\xee" * 32, Status.NOT_VERIFIED, "form 2"),
        (b"\x03" + b"\xee" * 32, Status.NOT_VERIFIED, "form 3"),
        (b"\x04", Status.FAIL, "no known form"),
    ],
)
def test_the_config_id_must_fit_where_it_states_a_compose_hash(config_id: bytes, outcome: Status, words: str) -> None:
    guest = DstackGuest().boot()
    quote = VENDOR.quote(DATA, fields={**guest.fields, "mr_config_id": config_id})
    found = of(check(guest.evidence(VENDOR, DATA, quote=quote.hex())), "dstack.config_id")
    assert found.status is outcome
    assert words in found.detail


def test_a_config_id_with_more_behind_the_compose_hash_is_refused() -> None:
    guest = DstackGuest().boot()
    quote = VENDOR.quote(DATA, fields={**guest.fields, "mr_config_id": guest.config_id + b"\x01"})
    assert refused(check(guest.evidence(VENDOR, DATA, quote=quote.hex())), "dstack.config_id", "another compose")


def test_an_allow_list_must_name_the_application() -> None:
    guest = DstackGuest().boot()
    evidence = guest.evidence(VENDOR, DATA)
    registers = check(evidence).measurements
    system = {name: registers[name] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")}
    assert refused(check(evidence, measurements={"tdx": (system,)}), "tdx.measurements", "compose_hash or rtmr3")
    for name in ("compose_hash", "rtmr3"):
        pinned = {**system, name: registers[name]}
        assert check(evidence, measurements={"tdx": (system, pinned)}).genuine
        other = {**pinned, name: "ee" * len(registers[name])}
        assert refused(check(evidence, measurements={"tdx": (system, other)}), "tdx.measurements", name)
    # Leaving out the log does not help: a bare quote has no compose hash.
    bare = {"quote": evidence["quote"]}
    pinned = {**system, "compose_hash": registers["compose_hash"]}
    assert refused(check(bare, measurements={"tdx": (pinned,)}), "tdx.measurements", "compose_hash")


GOOD: dict[str, Any] = {"imr": 3, "event_type": dstack.RUNTIME_EVENT, "digest": "", "event": "a", "event_payload": ""}


@pytest.mark.parametrize(
    "log",
    [
        7,
        "",
        "{}",
        "[1]",
        "[" * 1000,
        [None],
        [{}],
        [{**GOOD, "imr": 4}],
        [{**GOOD, "imr": -1}],
        [{**GOOD, "imr": True}],
        [{**GOOD, "event_type": "134217729"}],
        [{**GOOD, "event_type": 1 << 40}],
        [{**GOOD, "digest": "00"}],
        [{**GOOD, "digest": "FF" * 48}],
        [{**GOOD, "digest": 0}],
        [{**GOOD, "event": None}],
        [{**GOOD, "event": "\ud800"}],
        [{**GOOD, "event_payload": "0x"}],
        [{**GOOD, "event_payload": None}],
        [{**GOOD, "version": 0}],
        [{**GOOD, "version": "1"}],
        [{**GOOD, "imr": 0, "digest": "00" * 32}],
        [GOOD] * (dstack.MAX_EVENTS + 1),
    ],
)
def test_a_malformed_log_is_a_failed_check(log: object) -> None:
    assert not check(DstackGuest().boot().evidence(VENDOR, DATA, event_log=log)).genuine


def test_an_unreadable_quote_leaves_the_log_unverified() -> None:
    appraisal = check(DstackGuest().boot().evidence(VENDOR, DATA, quote="00"))
    assert of(appraisal, "dstack.log").status is Status.PASS
    for name in DSTACK_CHECKS[1:]:
        assert unverified(appraisal, f"dstack.{name}")
    assert not appraisal.genuine


def test_what_a_log_says_cannot_disturb_a_terminal() -> None:
    guest = DstackGuest()
    guest.emit("\x1b[2J:" + "x" * 10_000, b"")
    guest.emit("system-ready", b"")
    detail = of(check(guest.evidence(VENDOR, DATA)), "dstack.identity").detail
    assert detail.isprintable()
    assert len(detail) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
GUEST = DstackGuest().boot()
EVIDENCE = GUEST.evidence(VENDOR, DATA)


@given(evidence=JSON, log=JSON, compose=JSON)
def test_no_json_raises_or_is_accepted(evidence: Any, log: Any, compose: Any) -> None:
    assert not check(evidence).genuine
    assert not dstack.appraise(evidence, Inputs(now=NOW)).genuine
    changed = check({**EVIDENCE, "event_log": log, "app_compose": compose})
    assert not changed.genuine or (log is None and compose is None)


@settings(max_examples=150)
@given(data=st.data())
def test_no_change_of_a_runtime_event_is_accepted(data: st.DataObject) -> None:
    log = json.loads(EVIDENCE["event_log"])
    event = data.draw(st.sampled_from([event for event in log if event["imr"] == 3]))
    name = data.draw(st.sampled_from(sorted(event)))
    value = data.draw(JSON | st.binary(max_size=48).map(bytes.hex))
    same = value == event[name] and type(value) is type(event[name])
    empty = name == "digest" and value in ("", None)
    event[name] = value
    assert check({**EVIDENCE, "event_log": log}).genuine == (same or empty)


@settings(max_examples=50)
@given(cut=st.integers(0, len(GUEST.log) - 1), again=st.booleans())
def test_no_event_can_be_left_out_or_said_twice(cut: int, again: bool) -> None:
    log = GUEST.log[:cut] + ([GUEST.log[cut]] * 2 if again else []) + GUEST.log[cut + 1 :]
    appraisal = check({**EVIDENCE, "event_log": log})
    # RTMR2 has one event: without it, the log says nothing of RTMR2, and that is reported.
    assert not appraisal.genuine or unverified(appraisal, "dstack.boot", "RTMR2")
