"""A TDX quote convinces only when everything about it does: signature, platform, collateral, attributes, policy."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import EvidenceError, MalformedError
from attestation.evidence import tdx
from attestation.evidence.appraisal import Appraisal, EvidencePolicy, Inputs
from attestation.evidence.collateral import certificate_chain, parse_collateral
from attestation.verdict import Check, Status
from tests.evidence_tdx import DAY, FMSPC, NOW, PPID, SEPT_VE_DISABLE, CollateralTerms, TestIntel, der

DATA = bytes(range(64))
VENDOR = TestIntel()
OTHER = TestIntel()
COLLATERAL = VENDOR.collateral()
QUOTE = VENDOR.quote(DATA)
MRTD = "11" * 48
REGISTERS = {"mrtd": MRTD, "rtmr0": "00" * 48, "rtmr1": "00" * 48, "rtmr2": "00" * 48}


def check(
    quote: bytes = QUOTE,
    *,
    collateral: Mapping[str, Any] | None = COLLATERAL,
    now: int = NOW,
    roots: tuple[bytes, ...] | None = (VENDOR.root,),
    beside: Mapping[str, Any] | None = None,
    **policy: Any,
) -> Appraisal:
    evidence = {"quote": quote.hex(), **({} if beside is None else {"collateral": beside})}
    trusted = {} if roots is None else {"tdx": roots}
    return tdx.appraise(
        evidence, Inputs(now=now, roots=trusted, policy=EvidencePolicy(**policy), collateral=collateral)
    )


def of(appraisal: Appraisal, check_id: str) -> Check:
    return next(check for check in appraisal.checks if check.id == check_id)


def status(appraisal: Appraisal, check_id: str) -> Status:
    return of(appraisal, check_id).status


def refused(appraisal: Appraisal, check_id: str, words: str) -> bool:
    found = of(appraisal, check_id)
    assert words in found.detail
    return not appraisal.genuine and found.status is Status.FAIL


# Captured on real hardware


def real(evidence_dir: Path, quote: str, collateral: str, now: int, **policy: Any) -> Appraisal:
    raw = tdx.read_quote((evidence_dir / "tdx" / quote).read_bytes())
    document = json.loads((evidence_dir / "tdx" / collateral).read_bytes())
    return check(raw, collateral=document, now=now, roots=None, **policy)


@pytest.mark.parametrize(
    ("quote", "collateral", "at", "window"),
    [
        ("dcapqvl_B0C06F.quote.bin", "collateral_B0C06F_2025-06.json", 1750400000, (1750329147, 1752919235)),
        ("near_20A06F.quote.hex", "collateral_20A06F_2025-09.json", 1757000000, (1756798919, 1759388631)),
    ],
)
def test_a_real_quote_is_genuine_within_the_window_of_its_collateral(
    evidence_dir: Path, quote: str, collateral: str, at: int, window: tuple[int, int]
) -> None:
    appraisal = real(evidence_dir, quote, collateral, at)
    assert appraisal.genuine
    assert (appraisal.tcb_status, appraisal.advisories) == ("UpToDate", ())
    assert f"from {window[0]} to {window[1]}" in of(appraisal, "tdx.collateral").detail
    assert all(real(evidence_dir, quote, collateral, now).genuine for now in (window[0], window[1] - 1))
    for now, words in ((window[0] - 1, "after the time"), (window[1], "expired")):
        late = real(evidence_dir, quote, collateral, now)
        assert refused(late, "tdx.collateral", words)
        assert status(late, "tdx.signature") is Status.FAIL


def test_a_real_platform_without_a_tcb_level_is_refused(evidence_dir: Path) -> None:
    appraisal = real(evidence_dir, "dcapqvl_B0C06F_nomatch.quote.hex", "collateral_B0C06F_2025-06.json", now=1750400000)
    assert refused(appraisal, "tdx.signature", "No matching TCB level")


def test_collateral_of_another_platform_family_is_refused(evidence_dir: Path) -> None:
    appraisal = real(evidence_dir, "near_20A06F.quote.hex", "collateral_B0C06F_2025-06.json", now=1750400000)
    assert refused(appraisal, "tdx.collateral", "FMSPC mismatch")


def test_a_real_quote_does_not_verify_under_a_root_of_ours(evidence_dir: Path) -> None:
    raw = (evidence_dir / "tdx" / "dcapqvl_B0C06F.quote.bin").read_bytes()
    document = json.loads((evidence_dir / "tdx" / "collateral_B0C06F_2025-06.json").read_bytes())
    assert not check(raw, collateral=document, now=1750400000).genuine


def test_an_ascii_stub_is_not_a_quote(evidence_dir: Path) -> None:
    report = json.loads((evidence_dir / "aci" / "aci_report_stub.json").read_bytes())
    appraisal = tdx.appraise(report["attestation"]["evidence"], Inputs(now=NOW))
    assert refused(appraisal, "tdx.format", "not a quote")
    assert appraisal.report_data is None


@pytest.mark.parametrize("offset", [*range(0, 632, 37), 640, 700, 770, 1000, 1160, 1220, 1300])
def test_no_flip_of_a_signed_byte_of_a_real_quote_is_accepted(evidence_dir: Path, offset: int) -> None:
    raw = bytearray((evidence_dir / "tdx" / "dcapqvl_B0C06F.quote.bin").read_bytes())
    document = json.loads((evidence_dir / "tdx" / "collateral_B0C06F_2025-06.json").read_bytes())
    raw[offset] ^= 1
    assert not check(bytes(raw), collateral=document, now=1750400000, roots=None).genuine


# Made under a test root


@pytest.mark.parametrize(("version", "body"), [(4, "1.0"), (5, "1.0"), (5, "1.5"), (5, "1.5ex")])
def test_every_kind_of_quote_is_genuine_under_the_test_root_only(version: int, body: str) -> None:
    quote = VENDOR.quote(DATA, version=version, body=body)
    appraisal = check(quote)
    assert appraisal.genuine
    assert appraisal.is_hardware
    assert (appraisal.report_data, appraisal.chip, appraisal.tcb_status) == (DATA, PPID.hex(), "UpToDate")
    assert appraisal.measurements["mrtd"] == MRTD
    assert ("mr_service_td" in appraisal.measurements) == (body != "1.0")
    assert not any(found.status is Status.FAIL for found in appraisal.checks)
    assert refused(check(quote, roots=None), "tdx.signature", "Intel's root")
    assert refused(check(quote, roots=(OTHER.root,)), "tdx.signature", "does not verify")


def test_any_root_that_the_verifier_names_will_do_and_none_means_none() -> None:
    assert check(roots=(OTHER.root, b"no certificate", VENDOR.root)).genuine
    assert refused(check(roots=()), "tdx.signature", "no root is trusted")


def test_without_collateral_the_signature_is_not_verified_and_says_so() -> None:
    appraisal = check(collateral=None)
    for check_id in ("tdx.collateral", "tdx.signature", "tdx.tcb", "tdx.evaluation", "tdx.advisories"):
        assert status(appraisal, check_id) is Status.NOT_VERIFIED
    assert "no collateral" in of(appraisal, "tdx.collateral").detail
    assert (appraisal.report_data, appraisal.chip, appraisal.tcb_status) == (DATA, PPID.hex(), None)


def test_the_verifiers_collateral_wins_over_that_beside_the_quote() -> None:
    stale = VENDOR.collateral(CollateralTerms(issued_at=NOW - 60 * DAY, expires_at=NOW - 30 * DAY))
    assert check(collateral=None, beside=COLLATERAL).genuine
    assert check(collateral=COLLATERAL, beside=stale).genuine
    assert refused(check(collateral=stale, beside=COLLATERAL), "tdx.collateral", "expired")
    assert refused(check(collateral=None, beside=stale), "tdx.collateral", "expired")


def test_revocation_lists_from_the_future_are_refused() -> None:
    future = VENDOR.collateral(CollateralTerms(crls_issued_at=NOW + DAY))
    appraisal = check(collateral=future)
    assert refused(appraisal, "tdx.collateral", "after the time")
    assert refused(appraisal, "tdx.signature", "not valid at the time")


def test_a_revoked_platform_is_refused() -> None:
    appraisal = check(collateral=VENDOR.collateral(CollateralTerms(revoked_platform=True)))
    assert status(appraisal, "tdx.signature") is Status.FAIL


def test_collateral_signed_by_nobody_or_for_another_family_is_refused() -> None:
    for name in ("tcb_info", "qe_identity"):
        changed = {
            **COLLATERAL,
            name: COLLATERAL[name].replace('"tcbEvaluationDataNumber":17', '"tcbEvaluationDataNumber":99'),
        }
        assert status(check(collateral=changed), "tdx.signature") is Status.FAIL
    other_family = VENDOR.collateral(CollateralTerms(fmspc=bytes(6)))
    assert refused(check(collateral=other_family), "tdx.collateral", f"quote from {FMSPC.hex()}")


def test_only_tcb_statuses_of_the_policy_are_accepted() -> None:
    hardening = VENDOR.collateral(CollateralTerms(status="SWHardeningNeeded", advisories=("INTEL-SA-2", "INTEL-SA-1")))
    default = check(collateral=hardening)
    assert refused(default, "tdx.tcb", "SWHardeningNeeded")
    assert refused(default, "tdx.advisories", "INTEL-SA-1, INTEL-SA-2")
    assert (default.tcb_status, default.advisories) == ("SWHardeningNeeded", ("INTEL-SA-1", "INTEL-SA-2"))
    lenient: dict[str, Any] = {"tcb_statuses": frozenset({"UpToDate", "SWHardeningNeeded"})}
    assert refused(
        check(collateral=hardening, tolerated_advisories=frozenset({"INTEL-SA-1"}), **lenient),
        "tdx.advisories",
        "INTEL-SA-2",
    )
    tolerant = check(collateral=hardening, tolerated_advisories=frozenset({"INTEL-SA-1", "INTEL-SA-2"}), **lenient)
    assert tolerant.genuine
    assert refused(check(tcb_statuses=frozenset()), "tdx.tcb", "none")


def test_a_revoked_tcb_is_refused_under_any_policy() -> None:
    revoked = VENDOR.collateral(CollateralTerms(status="Revoked"))
    assert not check(collateral=revoked, tcb_statuses=frozenset({"Revoked"})).genuine


def test_the_module_loaded_now_counts_besides_the_one_at_launch() -> None:
    old, new = bytes([3, 1, 2, *bytes(13)]), bytes([5, 1, 2, *bytes(13)])
    updated = VENDOR.quote(DATA, version=5, body="1.5", fields={"tee_tcb_svn": old, "tee_tcb_svn2": new})
    assert refused(check(updated), "tdx.tcb", "TDRelaunchAdvised")
    assert check(updated, tcb_statuses=frozenset({"TDRelaunchAdvised"})).genuine
    downgraded = VENDOR.quote(DATA, version=5, body="1.5", fields={"tee_tcb_svn": new, "tee_tcb_svn2": old})
    assert refused(check(downgraded), "tdx.tcb", "UpToDate at launch, but OutOfDate")


def test_the_evaluation_number_has_a_floor_where_the_policy_names_one() -> None:
    assert status(check(), "tdx.evaluation") is Status.NOT_VERIFIED
    assert status(check(minimum_tcb_evaluation=17), "tdx.evaluation") is Status.PASS
    assert refused(check(minimum_tcb_evaluation=18), "tdx.evaluation", "17")


@pytest.mark.parametrize("bit", [0, 4, 5, 6, 7])
def test_debug_and_profiling_are_always_refused(bit: int) -> None:
    quote = VENDOR.quote(DATA, attributes=SEPT_VE_DISABLE | 1 << bit)
    assert refused(check(quote), "tdx.debug", "debugged")
    assert refused(check(quote, collateral=None), "tdx.debug", "debugged")


@pytest.mark.parametrize(
    ("quote", "words"),
    [
        (VENDOR.quote(DATA, attributes=SEPT_VE_DISABLE | 1 << 29), "another platform"),
        (VENDOR.quote(DATA, attributes=0), "SEPT_VE_DISABLE"),
        (VENDOR.quote(DATA, attributes=SEPT_VE_DISABLE | 1 << 17), "service TD"),
        (VENDOR.quote(DATA, version=5, body="1.5", fields={"mr_service_td": b"\x01"}), "service TD"),
    ],
)
def test_a_td_that_others_can_move_or_disturb_is_refused(quote: bytes, words: str) -> None:
    assert refused(check(quote), "tdx.attributes", words)


def test_a_denied_platform_is_refused() -> None:
    assert refused(check(denied=frozenset({PPID.hex()})), "tdx.denied", PPID.hex())
    assert refused(check(collateral=None, denied=frozenset({PPID.hex()})), "tdx.denied", PPID.hex())
    assert check(denied=frozenset({"bb" * 16})).genuine


def test_a_platform_certificate_from_the_collateral_serves_a_quote_without_one() -> None:
    quote = VENDOR.quote(DATA, certification_type=3, chain="x" * 404)
    appraisal = check(quote, collateral={**COLLATERAL, "pck_certificate_chain": VENDOR.chain})
    assert appraisal.genuine
    assert appraisal.chip == PPID.hex()
    assert status(check(quote), "tdx.signature") is Status.FAIL
    blind = check(quote, collateral=None, denied=frozenset({PPID.hex()}))
    assert status(blind, "tdx.denied") is Status.NOT_VERIFIED
    assert blind.chip is None


def test_the_certificate_in_the_quote_counts_and_not_another_beside_it() -> None:
    assert check(collateral={**COLLATERAL, "pck_certificate_chain": OTHER.chain}).genuine


@pytest.mark.parametrize(
    ("quote", "words"),
    [
        (VENDOR.quote(DATA, key_type=3), "attestation keys of type 3"),
        (VENDOR.quote(DATA, version=5, tee_type=0), "SGX"),
        (VENDOR.quote(DATA, version=3), "not a quote"),
        (VENDOR.quote(DATA, version=6), "not a quote"),
        (VENDOR.quote(DATA, padding=b"\0\0\x01"), "3 bytes that are not part of it"),
        (VENDOR.quote(DATA, padding=bytes(tdx.MAX_QUOTE_BYTES)), "at most"),
        (QUOTE[:-200], "not a quote"),
        (b"", "not a quote"),
        (VENDOR.quote(DATA, chain=VENDOR.chain + "more"), "nothing else"),
        (VENDOR.quote(DATA, chain="none"), "PEM certificates"),
        (VENDOR.quote(DATA, chain=VENDOR.chain[: VENDOR.chain.index("-----END CERTIFICATE-----") + 26]), "next one"),
    ],
)
def test_what_is_not_a_whole_tdx_quote_is_refused(quote: bytes, words: str) -> None:
    assert refused(check(quote), "tdx.format", words)


def test_zeros_after_a_quote_are_padding() -> None:
    assert check(VENDOR.quote(DATA, padding=bytes(70))).genuine


def sizes_changed(quote: bytes) -> list[bytes]:
    """The quote with a byte that nothing covers between its parts, with the sizes around it to match."""

    def grown(data: bytes, offset: int, by: int = 1) -> bytes:
        size = int.from_bytes(data[offset : offset + 4], "little") + by
        return data[:offset] + size.to_bytes(4, "little") + data[offset + 4 :]

    authentication = 632
    certification = authentication + 4 + 128 + 2
    other_type = quote[: certification - 2] + b"\x05\x00" + quote[certification:]
    return [
        grown(quote, authentication) + b"\0",
        grown(grown(quote, authentication), certification) + b"\0",
        other_type,
    ]


@pytest.mark.parametrize("quote", sizes_changed(QUOTE))
def test_bytes_hidden_between_the_parts_of_a_quote_are_refused(quote: bytes) -> None:
    assert refused(check(quote), "tdx.format", "must")


# Measurements


def measurements(*sets: Mapping[str, str]) -> dict[str, Any]:
    return {"measurements": {"tdx": sets}}


def test_without_a_policy_measurements_are_reported_and_not_verified() -> None:
    appraisal = check()
    assert status(appraisal, "tdx.measurements") is Status.NOT_VERIFIED
    assert appraisal.genuine


def test_a_set_must_match_in_all_its_registers() -> None:
    assert "left open" in of(check(**measurements(REGISTERS)), "tdx.measurements").detail
    whole = check(**measurements({**REGISTERS, "mrtd": "ff" * 48}, {**REGISTERS, "rtmr3": "00" * 48}))
    assert whole.genuine
    assert "left open" not in of(whole, "tdx.measurements").detail
    for name in (*REGISTERS, "rtmr3", "mr_config_id", "unknown"):
        wrong = check(**measurements({**REGISTERS, name: "ff" * 48}))
        assert refused(wrong, "tdx.measurements", f"differ: {name}")


@pytest.mark.parametrize("name", tdx.REQUIRED_REGISTERS)
def test_a_set_that_leaves_a_register_open_is_refused(name: str) -> None:
    partial = {key: value for key, value in REGISTERS.items() if key != name}
    assert refused(check(**measurements(partial)), "tdx.measurements", name)
    assert refused(check(**measurements(REGISTERS, partial)), "tdx.measurements", name)


def test_a_policy_of_other_kinds_accepts_no_tdx() -> None:
    assert refused(check(measurements={"sev_snp": ({"launch": "00"},)}), "tdx.measurements", "accepts no tdx")
    assert refused(check(**measurements()), "tdx.measurements", "accepts no tdx")


def test_measurements_of_an_unreadable_quote_are_not_verified() -> None:
    assert status(check(b"", **measurements(REGISTERS)), "tdx.measurements") is Status.NOT_VERIFIED


# Collateral


@pytest.mark.parametrize("name", sorted(COLLATERAL))
def test_every_member_of_collateral_must_be_there_and_be_text(name: str) -> None:
    for broken in ({k: v for k, v in COLLATERAL.items() if k != name}, {**COLLATERAL, name: 1}):
        assert refused(check(collateral=broken), "tdx.collateral", name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("root_ca_crl", "00"),
        ("pck_crl", "zz"),
        ("tcb_info", "{"),
        ("tcb_info", "[]"),
        ("tcb_info", "{}"),
        ("tcb_info", '{"fmspc":"00","fmspc":"00"}'),
        ("tcb_info", '{"fmspc":"00906ed5"}'),
        ("tcb_info", '{"fmspc":"00906ed50000","issueDate":"yesterday","nextUpdate":"2030-01-01T00:00:00Z"}'),
        ("tcb_info_signature", "00" * 65),
        ("qe_identity_signature", "AA" * 64),
        ("qe_identity", '{"issueDate":1}'),
        ("pck_crl_issuer_chain", ""),
        ("pck_certificate_chain", 7),
    ],
)
def test_collateral_of_another_shape_is_refused(name: str, value: object) -> None:
    assert status(check(collateral={**COLLATERAL, name: value}), "tdx.collateral") is Status.FAIL
    assert not check(collateral={**COLLATERAL, name: value}).genuine


@pytest.mark.parametrize("document", [7, "text", [], True])
def test_collateral_that_is_no_object_is_refused(document: Any) -> None:
    assert refused(check(collateral=None, beside=document), "tdx.collateral", "JSON object")


def test_a_revocation_list_of_another_issuer_is_refused() -> None:
    for chain in (COLLATERAL["tcb_info_issuer_chain"], OTHER.collateral()["pck_crl_issuer_chain"]):
        with pytest.raises(EvidenceError, match="pck_crl is not signed"):
            parse_collateral({**COLLATERAL, "pck_crl_issuer_chain": chain})


def without_next_update(crl: bytes) -> bytes:
    """The revocation list without the second of its two times. Its signature no longer holds."""
    signed = x509.load_der_x509_crl(crl).tbs_certlist_bytes
    content = signed[2 if signed[1] < 0x80 else 2 + (signed[1] & 0x7F) :]
    time = content.index(b"\x17\x0d", content.index(b"\x17\x0d") + 1)  # UTCTime, 13 bytes
    rest = crl[crl.index(signed) + len(signed) :]
    return der(0x30, der(0x30, content[:time] + content[time + 15 :]) + rest)


def test_a_revocation_list_without_an_end_is_refused() -> None:
    endless = without_next_update(bytes.fromhex(COLLATERAL["root_ca_crl"])).hex()
    assert refused(check(collateral={**COLLATERAL, "root_ca_crl": endless}), "tdx.collateral", "updated next")


def test_a_chain_without_its_root_or_with_another_is_refused() -> None:
    ca, root = certificates(COLLATERAL["pck_crl_issuer_chain"])
    with pytest.raises(EvidenceError, match="last by itself"):
        certificate_chain(ca.encode(), "chain")
    with pytest.raises(EvidenceError, match="next one"):
        certificate_chain((ca + certificates(OTHER.chain)[2]).encode(), "chain")
    assert len(certificate_chain((ca + root).encode(), "chain")) == 2
    assert len(certificate_chain((ca + root).replace("\n", "\r\n").encode(), "chain")) == 2


def certificates(pem: str) -> list[str]:
    return [part + "-----END CERTIFICATE-----\n" for part in pem.split("-----END CERTIFICATE-----\n") if part]


# Files, and whatever else comes in


@pytest.mark.parametrize(
    "written", [bytes, bytes.hex, lambda raw: "0x" + raw.hex() + "\n", lambda raw: raw.hex().upper()]
)
def test_a_quote_is_read_from_a_file_as_bytes_or_hex(written: Callable[[bytes], bytes | str]) -> None:
    data = written(QUOTE)
    assert tdx.read_quote(data if isinstance(data, bytes) else data.encode()) == QUOTE


def test_a_file_with_anything_else_is_no_quote() -> None:
    with pytest.raises(MalformedError):
        tdx.read_quote(b"aci-stub-quote|\xff")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(evidence=JSON | st.fixed_dictionaries({"quote": JSON}, optional={"collateral": JSON}))
def test_no_json_raises_or_is_accepted(evidence: Any) -> None:
    assert not tdx.appraise(evidence, Inputs(now=NOW)).genuine


@given(raw=st.binary(max_size=900), version=st.sampled_from([b"", b"\x04\x00\x02\x00\x81\x00\x00\x00"]))
def test_no_bytes_raise_or_are_accepted(raw: bytes, version: bytes) -> None:
    assert not check(version + raw).genuine


@settings(max_examples=150)
@given(data=st.data())
def test_no_flip_of_a_quote_is_accepted(data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(QUOTE) - 2))
    changed = bytearray(QUOTE)
    changed[offset] ^= 1 << data.draw(st.integers(0, 7))
    appraisal = check(bytes(changed))
    # The line breaks of the certificates' text are the only bytes that nothing signs.
    assert not appraisal.genuine or chr(QUOTE[offset]).isspace()


@settings(max_examples=150)
@given(data=st.data())
def test_no_change_of_collateral_is_accepted(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(COLLATERAL)))
    text = COLLATERAL[name]
    offset = data.draw(st.integers(0, len(text) - 1))
    other = chr(ord(text[offset]) ^ 1 << data.draw(st.integers(0, 6)))
    appraisal = check(collateral={**COLLATERAL, name: text[:offset] + other + text[offset + 1 :]})
    assert not appraisal.genuine or text[offset].isspace()


@settings(max_examples=50)
@given(cut=st.integers(0, len(QUOTE) - 1))
def test_no_part_of_a_quote_is_accepted(cut: int) -> None:
    assert not check(QUOTE[:cut]).genuine
