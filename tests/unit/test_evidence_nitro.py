"""Nitro documents are believed exactly as far as AWS's keys, and the policy, go."""

import json
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import BasicConstraints, PolicyConstraints, load_pem_x509_certificate
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.digest import sha256_hex
from attestation.encoding import parse_json
from attestation.evidence.appraisal import Appraisal, EvidencePolicy, Inputs
from attestation.evidence.nitro import appraise
from attestation.evidence.roots import AWS_NITRO
from attestation.verdict import Status
from tests.evidence_nitro import HOUR, NOW, NitroModule
from tests.evidence_pki import der, usage

DATA = bytes(range(64))
MODULE = NitroModule()
DOCUMENT = MODULE.document(DATA)
TAG = b"\xd2"

GOOD, GOOD_AT = "dstack_nsmqvl_2025-12-25T131537.cose", 1_766_668_537
DEBUGGED, DEBUGGED_AT = "evervault_DEBUG_2023-09-18T150330.cose", 1_695_049_410


def failed(appraisal: Appraisal) -> set[str]:
    return {check.id.removeprefix("nitro.") for check in appraisal.checks if check.status is Status.FAIL}


def status(appraisal: Appraisal, check: str) -> Status:
    return next(done.status for done in appraisal.checks if done.id == f"nitro.{check}")


def check(document: bytes, module: NitroModule = MODULE, *, now: int = NOW, **policy: Any) -> Appraisal:
    """As a relying party who trusts this module's root."""
    inputs = Inputs(now=now, roots={"nitro": (module.root,)}, policy=EvidencePolicy(**policy))
    return appraise({"document": document.hex()}, inputs)


def real(evidence_dir: Path, file: str) -> bytes:
    return (evidence_dir / "nitro" / file).read_bytes()


# Captured on real hardware


def test_a_real_document_is_genuine_under_awss_root_at_its_own_time(evidence_dir: Path) -> None:
    found = appraise({"document": real(evidence_dir, GOOD).hex()}, Inputs(now=GOOD_AT))
    assert found.genuine, found.failure
    assert found.is_hardware
    assert (found.report_data, found.issued_at, found.chip) == (bytes(64), GOOD_AT, None)
    assert found.measurements["pcr0"].startswith("5cb702954321826d")
    assert set(found.measurements) == {f"pcr{index}" for index in range(16)}
    assert status(found, "measurements") is Status.NOT_VERIFIED


@pytest.mark.parametrize("now", [GOOD_AT - 4, GOOD_AT + 3 * HOUR + 1, 1_780_272_000])
def test_a_real_document_is_refused_at_any_other_time(evidence_dir: Path, now: int) -> None:
    found = appraise({"document": real(evidence_dir, GOOD).hex()}, Inputs(now=now))
    assert failed(found) == {"validity"}


def test_a_real_enclave_in_debug_mode_is_refused_for_that_alone(evidence_dir: Path) -> None:
    found = appraise({"document": real(evidence_dir, DEBUGGED).hex()}, Inputs(now=DEBUGGED_AT))
    assert failed(found) == {"debug"}
    assert found.report_data is None
    assert found.measurements["pcr0"] == "00" * 48


def test_the_pin_is_awss_root(evidence_dir: Path) -> None:
    root = load_pem_x509_certificate(real(evidence_dir, "AWS_NitroEnclaves_Root-G1.pem"))
    assert sha256_hex(root.public_bytes(Encoding.DER)) in AWS_NITRO


@settings(deadline=None)
@given(st.data())
def test_no_bit_of_a_real_document_can_change(evidence_dir: Path, data: st.DataObject) -> None:
    document = bytearray(real(evidence_dir, GOOD))
    bit = data.draw(st.integers(0, len(document) * 8 - 1))
    document[bit // 8] ^= 1 << bit % 8
    assert not appraise({"document": document.hex()}, Inputs(now=GOOD_AT)).genuine


# Made under a test root


def test_a_document_verifies_under_its_own_root_only() -> None:
    evidence = parse_json(json.dumps(MODULE.evidence(DATA)), "evidence")
    found = appraise(evidence, Inputs(now=NOW, roots={"nitro": (MODULE.root,)}))
    assert found.genuine, found.failure
    assert (found.report_data, found.issued_at) == (DATA, NOW)
    assert failed(appraise(evidence, Inputs(now=NOW))) == {"root"}
    assert failed(appraise(evidence, Inputs(now=NOW, roots={"nitro": ()}))) == {"root"}
    assert failed(check(DOCUMENT, NitroModule(owner="somebody else"))) == {"root"}


def test_the_tag_may_be_there_or_not() -> None:
    assert check(TAG + DOCUMENT).genuine


@pytest.mark.parametrize("user_data", [None, b"", bytes(63), bytes(65), bytes(512)])
def test_other_user_data_is_genuine_and_binds_nothing(user_data: bytes | None) -> None:
    found = check(MODULE.document(user_data))
    assert found.genuine
    assert found.report_data is None


def test_optional_fields_may_be_missing() -> None:
    payload = {name: value for name, value in MODULE.payload(DATA).items() if value is not None}
    assert check(MODULE.sign(cbor2.dumps(payload))).genuine
    del payload["user_data"]
    assert check(MODULE.sign(cbor2.dumps(payload))).genuine


def test_the_payload_may_be_a_map_of_unknown_length_as_awss_is() -> None:
    pairs = b"".join(cbor2.dumps(name) + cbor2.dumps(value) for name, value in MODULE.payload(DATA).items())
    assert check(MODULE.sign(b"\xbf" + pairs + b"\xff")).genuine


PCRS = MODULE.payload(DATA)["pcrs"]
BUNDLE = MODULE.payload(DATA)["cabundle"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"module_id": ""}, "document"),
        ({"module_id": b"id"}, "document"),
        ({"module_id": None}, "document"),
        ({"digest": "SHA256"}, "document"),
        ({"digest": None}, "document"),
        ({"timestamp": 0}, "document"),
        ({"timestamp": -1}, "document"),
        ({"timestamp": 1.5}, "document"),
        ({"timestamp": True}, "document"),
        ({"timestamp": None}, "document"),
        ({"pcrs": {}}, "document"),
        ({"pcrs": []}, "document"),
        ({"pcrs": None}, "document"),
        ({"pcrs": {**PCRS, 32: bytes(48)}}, "document"),
        ({"pcrs": {**PCRS, -1: bytes(48)}}, "document"),
        ({"pcrs": {**PCRS, "3": bytes(48)}}, "document"),
        ({"pcrs": {2: bytes(48), True: bytes(48)}}, "document"),
        ({"pcrs": {**PCRS, 3: bytes(32)}}, "document"),
        ({"pcrs": {**PCRS, 3: "00" * 48}}, "document"),
        ({"certificate": b""}, "document"),
        ({"certificate": bytes(1025)}, "document"),
        ({"certificate": None}, "document"),
        ({"cabundle": []}, "document"),
        ({"cabundle": None}, "document"),
        ({"cabundle": [*BUNDLE, b""]}, "document"),
        ({"cabundle": [*BUNDLE, "text"]}, "document"),
        ({"public_key": b""}, "document"),
        ({"public_key": bytes(1025)}, "document"),
        ({"user_data": bytes(513)}, "document"),
        ({"user_data": "text"}, "document"),
        ({"nonce": bytes(513)}, "document"),
        ({"certificate": b"\x30\x00"}, "certificates"),
        ({"cabundle": [*BUNDLE, b"\x30\x00"]}, "certificates"),
        ({"cabundle": BUNDLE[1:]}, "root"),
        ({"cabundle": [BUNDLE[0], *BUNDLE[2:]]}, "chain"),
        ({"cabundle": [BUNDLE[0], *reversed(BUNDLE[1:])]}, "chain"),
        ({"cabundle": BUNDLE[:-1]}, "chain"),
        ({"cabundle": list(reversed(BUNDLE))}, "root"),
        ({"cabundle": BUNDLE[:1]}, "chain"),
        ({"timestamp": (NOW - 2) * 1000}, "validity"),
        ({"timestamp": (NOW + 3 * HOUR) * 1000 + 1}, "validity"),
        ({"timestamp": NOW}, "validity"),
        ({"timestamp": 2**64 - 1}, "validity"),
        ({"pcrs": {**PCRS, 0: bytes(48), 1: bytes(48), 2: bytes(48)}}, "debug"),
        ({"pcrs": {**PCRS, 0: bytes(48)}}, "debug"),
        ({"pcrs": {**PCRS, 2: bytes(48)}}, "debug"),
        ({"pcrs": {0: b"\x01" * 48, 1: b"\x01" * 48}}, "debug"),
    ],
)
def test_what_a_signed_document_must_not_say(changes: dict[str, Any], reason: str) -> None:
    found = check(MODULE.document(DATA, **changes))
    assert reason in failed(found)
    assert failed(found) <= ({"root", "chain"} if reason == "root" else {reason})


@pytest.mark.parametrize(
    "changes",
    [
        {"pcrs": dict.fromkeys(range(32), b"\x01" * 48)},
        {"public_key": b"\x01", "nonce": bytes(512)},
        {"public_key": bytes(1024), "nonce": b""},
        {"added_later": 1},
        {"timestamp": (NOW - 1) * 1000},
        {"timestamp": (NOW + 3 * HOUR) * 1000},
    ],
)
def test_what_a_signed_document_may_say(changes: dict[str, Any]) -> None:
    found = check(MODULE.document(DATA, **changes))
    assert found.genuine, found.failure


def test_facts_are_told_also_where_a_check_failed() -> None:
    found = check(MODULE.document(DATA, certificate=b"\x30\x00"))
    for name in ("root", "chain", "validity", "signature"):
        assert status(found, name) is Status.NOT_VERIFIED
    assert (found.report_data, found.issued_at) == (DATA, NOW)
    assert found.measurements["pcr0"] == "01" * 48


# Certificates

ROOT, REGION, ZONE, INSTANCE, LEAF = range(5)


@pytest.mark.parametrize(
    ("module", "reasons"),
    [
        (MODULE.but(constraints={ZONE: None}), {"chain"}),
        (MODULE.but(constraints={ROOT: None}), {"chain"}),
        (MODULE.but(constraints={INSTANCE: BasicConstraints(ca=False, path_length=None)}), {"chain"}),
        (MODULE.but(constraints={REGION: BasicConstraints(ca=True, path_length=1)}), {"chain"}),
        (MODULE.but(constraints={ROOT: BasicConstraints(ca=True, path_length=2)}), {"chain"}),
        (MODULE.but(constraints={LEAF: BasicConstraints(ca=True, path_length=None)}), {"chain"}),
        (MODULE.but(usages={INSTANCE: usage("digital_signature")}), {"chain"}),
        (MODULE.but(usages={ROOT: None}), {"chain"}),
        (MODULE.but(usages={LEAF: usage("content_commitment")}), {"chain"}),
        (MODULE.but(usages={LEAF: None}), {"chain"}),
        (MODULE.but(extensions={ZONE: ((PolicyConstraints(0, None), True),)}), {"chain"}),
        (MODULE.but(extensions={LEAF: ((PolicyConstraints(0, None), True),)}), {"chain"}),
        (MODULE.but(now=NOW - 4 * HOUR), {"validity"}),
        (MODULE.but(now=NOW + HOUR), {"validity"}),
    ],
)
def test_what_certificates_must_not_be(module: NitroModule, reasons: set[str]) -> None:
    assert failed(check(module.document(DATA), module)) == reasons


def test_a_leaf_without_basic_constraints_is_no_authority() -> None:
    module = MODULE.but(constraints={LEAF: None})
    assert check(module.document(DATA), module).genuine


def test_a_wider_path_length_is_fine() -> None:
    module = MODULE.but(constraints={ROOT: BasicConstraints(ca=True, path_length=3)})
    assert check(module.document(DATA), module).genuine


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_another_curve_is_not_es384(curve: ec.EllipticCurve) -> None:
    module = MODULE.but(curve=curve)
    signed = MODULE.sign(cbor2.dumps(module.payload(DATA)))
    assert failed(check(signed, module)) == {"signature"}


def test_a_smaller_curve_signs_nothing() -> None:
    module = MODULE.but(curve=ec.SECP256R1())
    assert failed(check(module.document(DATA), module)) == {"signature"}


# The envelope


@pytest.mark.parametrize("header", [{1: -7}, {1: -36}, {}, {1: -35, 4: b"key"}, {1: -35, 2: [1]}, {"1": -35}, [], -35])
def test_only_es384_and_nothing_else_is_taken(header: Any) -> None:
    signed = MODULE.sign(cbor2.dumps(MODULE.payload(DATA)), protected=cbor2.dumps(header))
    assert failed(check(signed)) == {"signature"}


def test_an_empty_header_is_not_es384() -> None:
    assert failed(check(MODULE.sign(cbor2.dumps(MODULE.payload(DATA)), protected=b""))) == {"signature"}


PARTS = cbor2.loads(DOCUMENT)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        TAG,
        DOCUMENT + b"\x00",
        DOCUMENT[:-1],
        TAG + TAG + DOCUMENT,
        b"\xd3" + DOCUMENT,
        b"\x98\x04" + DOCUMENT[1:],
        b"\x9f" + DOCUMENT[1:] + b"\xff",
        cbor2.dumps([PARTS[0], {1: 2}, *PARTS[2:]]),
        cbor2.dumps([PARTS[0], [], *PARTS[2:]]),
        cbor2.dumps([{1: -35}, *PARTS[1:]]),
        cbor2.dumps([*PARTS[:2], None, PARTS[3]]),
        cbor2.dumps([*PARTS[:2], b"", PARTS[3]]),
        cbor2.dumps([*PARTS[:3], PARTS[3][:-1]]),
        cbor2.dumps([*PARTS[:3], PARTS[3] + b"\0"]),
        cbor2.dumps([*PARTS[:3], PARTS[3].hex()]),
        cbor2.dumps(PARTS[:3]),
        cbor2.dumps([*PARTS, b""]),
        cbor2.dumps({0: 1}),
        cbor2.dumps([*PARTS[:2], bytes(16_385), PARTS[3]]),
        cbor2.dumps([*PARTS[:2], bytes(20_000), PARTS[3]]),
        b"\x80" * 20_000,
        b"\x81" * 10_000 + b"\x00",
        b"\x9b" + b"\x7f" * 8,
        b"\xd8\x1c\x81\xd8\x1d\x00",
        b"\xd8\x23\x63(((",
    ],
)
def test_what_is_no_document_is_a_failed_check(document: bytes) -> None:
    found = check(document)
    assert failed(found) == {"shape"}
    assert (found.report_data, found.measurements, found.issued_at) == (None, {}, None)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x00",
        b"\xff",
        cbor2.dumps([]),
        cbor2.dumps({**MODULE.payload(DATA), "nonce": cbor2.CBORTag(2, b"\x01")}),
        cbor2.dumps({**MODULE.payload(DATA), "added_later": [[[[]]]]}),
        # A name that occurs twice: two readers may pick different ones.
        b"\xbf" + cbor2.dumps(MODULE.payload(DATA))[1:] + cbor2.dumps("nonce") + cbor2.dumps(None) + b"\xff",
        b"\xbf\x61\x80\x00\xff",
    ],
)
def test_a_payload_must_be_plain(payload: bytes) -> None:
    assert failed(check(MODULE.sign(payload))) == {"document"}


@pytest.mark.parametrize("place", [0, 2, 3])
def test_parts_of_two_documents_do_not_make_a_third(place: int) -> None:
    other = cbor2.loads(MODULE.document(bytes(64), timestamp=NOW * 1000))
    mixed = [other[index] if index == place else part for index, part in enumerate(PARTS)]
    assert check(cbor2.dumps(mixed)).genuine is (place == 0)


def test_another_modules_key_does_not_sign_for_this_one() -> None:
    forged = NitroModule(owner="somebody else").sign(cbor2.dumps(MODULE.payload(DATA)))
    assert failed(check(forged)) == {"signature"}


# Measurements


@pytest.mark.parametrize(
    ("sets", "passes"),
    [
        (({"pcr0": "01" * 48},), True),
        (({"pcr0": "01" * 48, "pcr1": "02" * 48, "pcr2": "03" * 48, "pcr8": "00" * 48},), True),
        (({"pcr0": "ff" * 48}, {"pcr0": "01" * 48}), True),
        (({"pcr0": "01" * 48, "pcr2": "ff" * 48},), False),
        (({"pcr0": "01" * 48, "pcr31": "00" * 48},), False),
        (({"pcr1": "02" * 48},), False),
        (({},), False),
        ((), False),
    ],
)
def test_measurements_must_be_on_the_allow_list(sets: tuple[dict[str, str], ...], passes: bool) -> None:
    assert failed(check(DOCUMENT, measurements={"nitro": sets})) == (set() if passes else {"measurements"})


# Malformed


@pytest.mark.parametrize(
    "evidence",
    [
        None,
        [],
        {},
        {"document": None},
        {"document": DOCUMENT},
        {"document": DOCUMENT.hex().upper()},
        {"document": DOCUMENT.hex(), "more": 1},
    ],
)
def test_malformed_evidence_is_a_failed_check(evidence: Any) -> None:
    assert failed(appraise(evidence, Inputs(now=NOW, roots={"nitro": (MODULE.root,)}))) == {"shape"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_nothing_raises(value: Any) -> None:
    for evidence in (value, {"document": value}):
        assert not appraise(evidence, Inputs(now=NOW)).genuine


@settings(deadline=None)
@given(st.binary())
def test_no_bytes_raise(data: bytes) -> None:
    assert not check(data).genuine
    assert not check(TAG + data).genuine
    assert not check(MODULE.sign(data)).genuine
    assert not check(MODULE.document(DATA, certificate=data)).genuine
    assert not check(MODULE.document(DATA, cabundle=[*BUNDLE, data])).genuine


@settings(deadline=None)
@given(JSON, st.sampled_from(sorted(MODULE.payload(DATA))))
def test_no_field_raises(value: Any, name: str) -> None:
    signed = MODULE.document(DATA, **{name: value})
    assert check(signed).genuine in (True, False)


def test_the_module_signs_with_the_key_it_certifies() -> None:
    assert MODULE.payload(DATA)["certificate"] == der(MODULE.chain[-1])
    assert MODULE.chain[-1].public_key() == MODULE.key.public_key()
