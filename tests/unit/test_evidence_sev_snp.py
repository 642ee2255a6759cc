"""SEV-SNP evidence is believed exactly as far as AMD's keys, and the policy, go."""

import json
from pathlib import Path
from ssl import DER_cert_to_PEM_cert
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import (
    BasicConstraints,
    CertificateIssuer,
    CRLReason,
    DeltaCRLIndicator,
    DirectoryName,
    Name,
    PolicyConstraints,
    ReasonFlags,
    load_pem_x509_certificates,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.digest import sha256_hex
from attestation.encoding import b64, b64_bytes, parse_json
from attestation.errors import MalformedError
from attestation.evidence.appraisal import Appraisal, EvidencePolicy, Inputs
from attestation.evidence.roots import AMD_ARK
from attestation.evidence.sev_snp import REPORT_BYTES, appraise, make_evidence
from attestation.evidence.x509 import der_certificates
from attestation.verdict import Status
from tests.evidence_pki import authority, der, ec_key, name, revoked, rsa_key, usage
from tests.evidence_snp import AUTHORITY_SERIAL, NOW, SINCE, UNTIL, SnpMachine, ia5, integer

DATA = bytes(range(64))
MACHINE = SnpMachine()
LINES = ("Milan", "Genoa", "Turin")
BOUND = MACHINE.evidence(DATA)

CAPTURED_AT = 1_750_000_000
VIRTEE = ("virtee_milan_v2.report.bin", "virtee_milan.vcek.der")
DEBUGGED = ("gosev_milan_v2_DEBUG.report.bin", "gosev_milan.vcek.der")


def failed(appraisal: Appraisal) -> set[str]:
    return {check.id.removeprefix("sev_snp.") for check in appraisal.checks if check.status is Status.FAIL}


def status(appraisal: Appraisal, check: str) -> Status:
    return next(done.status for done in appraisal.checks if done.id == f"sev_snp.{check}")


def detail(appraisal: Appraisal, check: str) -> str:
    return next(done.detail for done in appraisal.checks if done.id == f"sev_snp.{check}")


def check(evidence: Any, machine: SnpMachine = MACHINE, *, now: int = NOW, **policy: Any) -> Appraisal:
    """As a relying party who trusts this machine's root."""
    return appraise(evidence, Inputs(now=now, roots={"sev_snp": (machine.root,)}, policy=EvidencePolicy(**policy)))


def real(evidence_dir: Path, report: str, vcek: str, authorities: str = "ask_ark_milan.pem") -> dict[str, Any]:
    files = evidence_dir / "snp"
    chain = load_pem_x509_certificates((files / authorities).read_bytes())
    return make_evidence((files / report).read_bytes(), [(files / vcek).read_bytes(), *map(der, chain)])


def at(now: int) -> Inputs:
    return Inputs(now=now)


# Captured on real hardware


def test_a_real_milan_is_genuine_under_amds_root(evidence_dir: Path) -> None:
    found = appraise(real(evidence_dir, *VIRTEE), at(CAPTURED_AT))
    assert found.genuine
    assert found.is_hardware
    assert found.report_data is not None
    assert found.report_data.hex().startswith("d447b55d197491bf")
    assert found.measurements["measurement"].startswith("7a1e5c266c0108db")
    assert found.chip is not None
    assert found.chip.startswith("d49554ec717f4e5b")
    assert (found.issued_at, found.tcb_status, found.advisories) == (None, None, ())
    assert status(found, "revocation") is Status.NOT_VERIFIED
    assert status(found, "measurements") is Status.NOT_VERIFIED


def test_a_real_guest_that_can_be_debugged_is_refused_for_that_alone(evidence_dir: Path) -> None:
    found = appraise(real(evidence_dir, *DEBUGGED), at(CAPTURED_AT))
    assert failed(found) == {"debug"}
    assert status(found, "signature") is Status.PASS


@pytest.mark.parametrize(("now", "expired"), [(1_680_000_000, False), (1_906_000_000, True)])
def test_a_real_vcek_is_judged_at_the_given_time(evidence_dir: Path, now: int, expired: bool) -> None:
    found = appraise(real(evidence_dir, *VIRTEE), at(now))
    assert failed(found) == {"validity"}
    assert ("expired" in str(found.failure)) == expired


def test_another_chips_vcek_does_not_verify(evidence_dir: Path) -> None:
    found = appraise(real(evidence_dir, VIRTEE[0], DEBUGGED[1]), at(CAPTURED_AT))
    assert failed(found) == {"signature", "chip", "tcb"}


@pytest.mark.parametrize("authorities", ["ask_ark_genoa.pem", "ask_ark_turin_vcek.pem"])
def test_another_product_lines_authorities_do_not_verify(evidence_dir: Path, authorities: str) -> None:
    assert failed(appraise(real(evidence_dir, *VIRTEE, authorities), at(CAPTURED_AT))) == {"chain", "endorsement"}


@pytest.mark.parametrize("line", LINES)
def test_the_pins_are_amds_roots(evidence_dir: Path, line: str) -> None:
    path = next((evidence_dir / "snp").glob(f"ask_ark_{line.lower()}*.pem"))
    root = load_pem_x509_certificates(path.read_bytes())[-1]
    assert AMD_ARK[sha256_hex(der(root))] == line


def test_no_byte_of_a_real_report_can_change(evidence_dir: Path) -> None:
    evidence = real(evidence_dir, *VIRTEE)
    report = bytes.fromhex(evidence["report"])
    for place in range(REPORT_BYTES):
        changed = bytearray(report)
        changed[place] ^= 1 << place % 8
        assert not appraise({**evidence, "report": changed.hex()}, at(CAPTURED_AT)).genuine, place


@settings(deadline=None)
@given(st.data())
def test_no_bit_of_real_certificates_can_change(evidence_dir: Path, data: st.DataObject) -> None:
    evidence = real(evidence_dir, *VIRTEE)
    report, chain = bytes.fromhex(evidence["report"]), [b64_bytes(text, "test") for text in evidence["certificates"]]
    which = data.draw(st.integers(0, 2))
    bit = data.draw(st.integers(0, len(chain[which]) * 8 - 1))
    changed = bytearray(chain[which])
    changed[bit // 8] ^= 1 << bit % 8
    chain[which] = bytes(changed)
    assert not appraise(make_evidence(report, chain), at(CAPTURED_AT)).genuine


# Made under a test root


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("vlek", [False, True])
@pytest.mark.parametrize("line", LINES)
def test_every_line_kind_of_key_and_version_verifies_under_its_own_root_only(
    line: str, vlek: bool, version: int
) -> None:
    machine = SnpMachine(line=line, vlek=vlek)
    evidence = parse_json(json.dumps(machine.evidence(DATA, version=version)), "evidence")
    found = check(evidence, machine)
    assert found.genuine, found.failure
    assert found.report_data == DATA
    assert found.chip == machine.chip_id.ljust(64, b"\0").hex()
    assert found.measurements["measurement"] == bytes(range(48)).hex()
    assert failed(appraise(evidence, at(NOW))) == {"root"}
    assert failed(check(evidence, SnpMachine(owner="somebody else"))) == {"root"}


def test_no_root_at_all_trusts_nobody() -> None:
    assert failed(appraise(BOUND, Inputs(now=NOW, roots={"sev_snp": ()}))) == {"root"}


@pytest.mark.parametrize("version", [0, 1, 6, 2**32 - 1])
def test_an_unknown_report_version_is_refused(version: int) -> None:
    found = check(MACHINE.evidence(DATA, version=version))
    assert failed(found) == {"shape"}
    assert found.report_data is None


POLICY = 0x3001F


@pytest.mark.parametrize(
    ("patches", "reason"),
    [
        ({0x008: (POLICY | 1 << 19).to_bytes(8, "little")}, "debug"),
        ({0x008: (POLICY | 1 << 18).to_bytes(8, "little")}, "migration"),
        ({0x008: (POLICY ^ 1 << 17).to_bytes(8, "little")}, "format"),
        ({0x008: (POLICY | 1 << 26).to_bytes(8, "little")}, "format"),
        ({0x008: (POLICY | 1 << 63).to_bytes(8, "little")}, "format"),
        ({0x030: bytes((1, 0, 0, 0))}, "vmpl"),
        ({0x030: bytes((3, 0, 0, 0))}, "vmpl"),
        ({0x030: b"\xff" * 4}, "vmpl"),
        ({0x034: bytes(4)}, "format"),
        ({0x034: bytes((2, 0, 0, 0))}, "format"),
        ({0x048: bytes((7 << 2, 0, 0, 0))}, "format"),
        ({0x048: bytes((2 << 2, 0, 0, 0))}, "format"),
        ({0x048: bytes((1 << 5, 0, 0, 0))}, "format"),
        ({0x04C: b"\x01"}, "format"),
        ({0x18B: b"\x01"}, "format"),
        ({0x1EB: b"\x01"}, "format"),
        ({0x1EF: b"\x01"}, "format"),
        ({0x1F8: b"\x01"}, "format"),
        ({0x29F: b"\x01"}, "format"),
        ({0x188: bytes((0x19, 0x11))}, "endorsement"),
        ({0x188: bytes((0x1A, 0x02))}, "endorsement"),
        ({0x188: bytes((0x1A, 0x50))}, "endorsement"),
        ({0x188: bytes((0x19, 0x50))}, "endorsement"),
        ({0x1A0: b"\xff" * 64}, "chip"),
        ({0x180: bytes((3, 0, 0, 0, 0, 0, 24, 219))}, "tcb"),
        ({0x180: bytes((4, 0, 1, 0, 0, 0, 24, 219))}, "tcb"),
        ({0x1E0: bytes((4, 0, 0, 0, 0, 0, 23, 219))}, "tcb"),
        ({0x038: bytes((4, 0, 0, 0, 0, 0, 24, 218))}, "tcb"),
    ],
)
def test_what_a_signed_report_must_not_say(patches: dict[int, bytes], reason: str) -> None:
    found = check(MACHINE.evidence(DATA, patches=patches))
    assert reason in failed(found)
    assert failed(found) <= {reason, *({"endorsement", "chip", "tcb"} if reason == "endorsement" else ())}
    assert status(found, "signature") is Status.PASS
    assert found.report_data == DATA


@pytest.mark.parametrize(
    ("version", "patches"),
    [
        (3, {0x008: (POLICY | 0x3F00000).to_bytes(8, "little")}),
        (3, {0x040: b"\xff" * 8}),
        (3, {0x048: bytes((3, 0, 0, 0))}),
        (3, {0x110: b"\x05" * 48}),
        (3, {0x0E0: b"\x05" * 48}),
        (3, {0x038: bytes((9, 0, 0, 0, 0, 0, 24, 219)), 0x1E0: bytes((5, 0, 0, 0, 0, 0, 24, 219))}),
        (3, {0x1F0: bytes((9, 0, 0, 0, 0, 0, 24, 219))}),
        (5, {0x1F8: b"\xff" * 16}),
    ],
)
def test_what_a_signed_report_may_say(version: int, patches: dict[int, bytes]) -> None:
    found = check(MACHINE.evidence(DATA, version=version, patches=patches))
    assert found.genuine, found.failure


@pytest.mark.parametrize(("version", "place"), [(2, 0x188), (4, 0x1F8), (5, 0x208)])
def test_reserved_bytes_depend_on_the_version(version: int, place: int) -> None:
    assert "format" in failed(check(MACHINE.evidence(DATA, version=version, patches={place: b"\x01"})))


def test_a_higher_vmpl_needs_a_policy_that_says_so() -> None:
    evidence = MACHINE.evidence(DATA, patches={0x030: bytes((2, 0, 0, 0))})
    assert check(evidence, maximum_vmpl=2).genuine
    assert failed(check(evidence, maximum_vmpl=1)) == {"vmpl"}


@pytest.mark.parametrize("model", [0x1F, 0x11, 0x02])
def test_both_turins_are_turins(model: int) -> None:
    machine = SnpMachine(line="Turin")
    assert check(machine.evidence(DATA, patches={0x189: bytes((model,))}), machine).genuine


@pytest.mark.parametrize(("product", "model"), [("Genoa-B1", 0x11), ("Bergamo-A1", 0xA0), ("Siena-A0", 0xAF)])
def test_genoas_root_endorses_its_siblings(product: str, model: int) -> None:
    machine = SnpMachine(line="Genoa", extensions={"2": ia5(product)})
    assert check(machine.evidence(DATA, patches={0x189: bytes((model,))}), machine).genuine


# The chip


def test_where_the_chip_id_is_masked_the_vcek_names_the_chip() -> None:
    found = check(MACHINE.evidence(DATA, patches={0x1A0: bytes(64)}))
    assert found.genuine
    assert found.chip == MACHINE.chip_id.hex()
    assert "masks" in detail(found, "chip")


def test_a_vlek_names_a_provider_and_no_chip() -> None:
    machine = SnpMachine(vlek=True)
    found = check(machine.evidence(DATA), machine)
    assert "provider.example" in detail(found, "chip")
    masked = check(machine.evidence(DATA, patches={0x1A0: bytes(64)}), machine, denied=frozenset({"ab"}))
    assert masked.chip is None
    assert status(masked, "denied") is Status.NOT_VERIFIED


@pytest.mark.parametrize("patches", [{}, {0x1A0: bytes(64)}], ids=["shown", "masked"])
@pytest.mark.parametrize("line", LINES)
def test_a_denied_chip_is_refused_whatever_else_holds(line: str, patches: dict[int, bytes]) -> None:
    machine = SnpMachine(line=line)
    evidence = machine.evidence(DATA, patches=patches)
    assert failed(check(evidence, machine, denied=frozenset({machine.chip_id.hex()}))) == {"denied"}
    assert check(evidence, machine, denied=frozenset({"00" * 64, "ff" * 64})).genuine


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_chip_id_may_stand_bare_or_in_an_octet_string(wrapped: bool) -> None:
    for machine in (MACHINE, SnpMachine(line="Turin")):
        value = machine.chip_id
        odd = machine.but(extensions={"4": bytes((4, len(value))) + value if wrapped else value})
        assert check(odd.evidence(DATA), odd).genuine


# Certificates

_NO_CRL_SIGN = usage("key_cert_sign")


@pytest.mark.parametrize(
    ("machine", "reasons"),
    [
        (MACHINE.but(until=NOW - 1), {"validity"}),
        (MACHINE.but(since=NOW + 1), {"validity"}),
        (MACHINE.but(authority_constraints=None), {"chain"}),
        (MACHINE.but(authority_constraints=BasicConstraints(ca=False, path_length=None)), {"chain"}),
        (MACHINE.but(authority_usage=None), {"chain"}),
        (MACHINE.but(authority_usage=usage("digital_signature", "crl_sign")), {"chain"}),
        (MACHINE.but(leaf_extensions=((usage("key_agreement"), True),)), {"chain"}),
        (MACHINE.but(leaf_extensions=((BasicConstraints(ca=True, path_length=None), True),)), {"chain"}),
        (MACHINE.but(leaf_extensions=((PolicyConstraints(0, None), True),)), {"chain"}),
        (MACHINE.but(leaf_key=ec.generate_private_key(ec.SECP256R1())), {"signature"}),
        (MACHINE.but(authority_name="SEV-Genoa"), {"endorsement"}),
        (MACHINE.but(authority_name="SEV-VLEK-Milan"), {"endorsement"}),
        (MACHINE.but(vlek=True, authority_name="SEV-Milan"), {"endorsement"}),
        (MACHINE.but(extensions={"2": ia5("Naples-B1")}), {"endorsement"}),
        (MACHINE.but(extensions={"2": None}), {"endorsement"}),
        (MACHINE.but(extensions={"2": b"\x0c\x05Milan"}), {"endorsement"}),
        (MACHINE.but(extensions={"2": b"\x16\x05Mil\xe4n"}), {"endorsement"}),
        (MACHINE.but(extensions={"2": ia5("Genoa-B1")}), {"endorsement"}),
        (MACHINE.but(extensions={"4": None}), {"endorsement"}),
        (MACHINE.but(extensions={"5": ia5("provider")}), {"endorsement"}),
        (MACHINE.but(extensions={"4": bytes(63)}), {"endorsement"}),
        (MACHINE.but(extensions={"4": b"\x04\x07" + bytes(7)}), {"endorsement"}),
        (MACHINE.but(extensions={"4": None, "5": ia5("provider")}), {"endorsement"}),
        (MACHINE.but(extensions={"3.8": None}), {"endorsement"}),
        (MACHINE.but(extensions={"3.8": b"\x02\x00"}), {"endorsement"}),
        (MACHINE.but(extensions={"3.8": b"\x02\x01\xff"}), {"endorsement"}),
        (MACHINE.but(extensions={"3.8": b"\x02\x02\x01\x00"}), {"endorsement"}),
        (MACHINE.but(extensions={"3.8": b"\x02\x01\x05\x05"}), {"endorsement"}),
        (MACHINE.but(extensions={"3.8": integer(218)}), {"tcb"}),
        (MACHINE.but(extensions={"3.4": integer(1)}), {"tcb"}),
        (SnpMachine(line="Turin", extensions={"3.9": None}), {"endorsement"}),
        (SnpMachine(line="Turin", extensions={"3.9": integer(0)}), {"tcb"}),
    ],
)
def test_what_certificates_must_not_be(machine: SnpMachine, reasons: set[str]) -> None:
    report = machine.report(DATA) if isinstance(machine.key, ec.EllipticCurvePrivateKey) else MACHINE.report(DATA)
    assert failed(check(make_evidence(report, machine.certificates), machine)) == reasons


def test_reserved_levels_may_be_left_out() -> None:
    machine = MACHINE.but(extensions={"3.4": None, "3.5": None, "3.6": None, "3.7": None})
    assert check(machine.evidence(DATA), machine).genuine


def test_a_serial_number_that_is_not_positive_is_no_reason() -> None:
    """Real VCEKs have the serial number 0; the library that issues test certificates refuses to write it."""
    leaf, *others = MACHINE.certificates
    zero = leaf.replace(b"\x02\x01\x07", b"\x02\x01\x00", 1)
    assert failed(check(make_evidence(MACHINE.report(DATA), [zero, *others]))) == {"chain"}


def test_the_right_key_under_another_name_is_another_issuer() -> None:
    key, root_key = MACHINE.keys
    root = MACHINE.names[2]
    limits = MACHINE.authority_constraints, MACHINE.authority_usage
    renamed = authority("SEV-Other", key, root, root_key, SINCE, UNTIL, *limits, AUTHORITY_SERIAL)
    leaf, _, anchor = MACHINE.certificates
    found = check(make_evidence(MACHINE.report(DATA), [leaf, der(renamed), anchor]))
    assert failed(found) == {"chain", "endorsement"}
    assert "not issued by SEV-Other" in detail(found, "chain")


def test_certificate_files_may_be_pem_or_der(evidence_dir: Path) -> None:
    files = evidence_dir / "snp"
    vcek = (files / VIRTEE[1]).read_bytes()
    assert der_certificates(vcek, "vcek") == [vcek]
    ask, ark = der_certificates((files / "ask_ark_milan.pem").read_bytes(), "ca")
    assert AMD_ARK[sha256_hex(ark)] == "Milan"
    assert ask != ark
    assert der_certificates(DER_cert_to_PEM_cert(vcek).encode(), "vcek") == [vcek]
    with pytest.raises(MalformedError, match="ca"):
        der_certificates(b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "ca")


def test_what_no_signature_covers_has_one_form_only() -> None:
    """The algorithm that stands behind the signed part, and the count of a signature's unused bits."""
    report, (leaf, *others) = MACHINE.report(DATA), MACHINE.certificates
    signed, signature = MACHINE.chain[0].tbs_certificate_bytes, MACHINE.chain[0].signature
    behind = leaf.index(signed) + len(signed)
    salt = leaf.index(b"\x02\x01\x30", behind) + 2
    other_algorithm = leaf[:salt] + b"\x20" + leaf[salt + 1 :]
    even = leaf[: -len(signature)] + signature[:-1] + bytes((signature[-1] & 0xFE,))
    unused_bit = even[: -len(signature) - 1] + b"\x01" + even[-len(signature) :]
    for changed in (other_algorithm, unused_bit):
        assert failed(check(make_evidence(report, [changed, *others]))) == {"certificates"}
    crl = MACHINE.crl()
    salt = crl.rindex(b"\x02\x01\x30") + 2
    assert failed(with_list(crl[:salt] + b"\x20" + crl[salt + 1 :])) == {"revocation"}


def test_a_leaf_key_that_cannot_sign_reports_is_refused() -> None:
    machine = MACHINE.but(leaf_key=rsa_key("an RSA leaf"))
    assert failed(check(make_evidence(MACHINE.report(DATA), machine.certificates), machine)) == {"signature"}


def test_an_authority_below_the_endorsing_one_is_refused() -> None:
    """A VCEK cannot pass as an authority: not even the report's own signer can certify another key."""
    leaf, second, root = MACHINE.certificates
    other = SnpMachine(owner="somebody else")
    forged = make_evidence(other.report(DATA), [other.certificates[0], second, root])
    assert failed(check(forged)) == {"chain"}
    shifted = make_evidence(MACHINE.report(DATA), [second, leaf, root])
    assert {"chain", "signature", "endorsement"} <= failed(check(shifted))


def test_a_vcek_does_not_vouch_for_a_report_that_says_vlek() -> None:
    evidence = MACHINE.evidence(DATA, patches={0x048: bytes((1 << 2, 0, 0, 0))})
    assert failed(check(evidence)) == {"endorsement"}


def test_the_pinned_root_must_be_the_one_of_the_product_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestation.evidence.sev_snp.AMD_ARK", {sha256_hex(MACHINE.root): "Genoa"})
    assert failed(appraise(BOUND, at(NOW))) == {"endorsement"}


# Revocation


def with_list(crl: bytes) -> Appraisal:
    return check({**BOUND, "crl": b64(crl)})


def test_a_current_list_that_names_none_of_them_passes() -> None:
    found = with_list(MACHINE.crl(revoked(99, (CRLReason(ReasonFlags.key_compromise), False), at=SINCE)))
    assert found.genuine
    assert status(found, "revocation") is Status.PASS


def test_a_revoked_authority_is_refused() -> None:
    found = with_list(MACHINE.crl(revoked(AUTHORITY_SERIAL, at=SINCE)))
    assert failed(found) == {"revocation"}
    assert "SEV-Milan is revoked" in detail(found, "revocation")


def indirect(issuer: Name) -> tuple[CertificateIssuer, bool]:
    return CertificateIssuer([DirectoryName(issuer)]), True


def test_the_leaf_is_revoked_by_its_issuer_and_serial_number_together() -> None:
    serial = MACHINE.leaf_serial
    assert with_list(MACHINE.crl(revoked(serial, at=SINCE))).genuine
    entry = revoked(serial, indirect(name("SEV-Milan")), at=SINCE)
    assert failed(with_list(MACHINE.crl(entry))) == {"revocation"}
    inherited = (revoked(98, indirect(name("SEV-Milan")), at=SINCE), revoked(serial, at=SINCE))
    assert failed(with_list(MACHINE.crl(*inherited))) == {"revocation"}


@pytest.mark.parametrize(
    "crl",
    [
        MACHINE.crl(since=SINCE, until=NOW - 1),
        MACHINE.crl(since=NOW + 1, until=UNTIL),
        SnpMachine(owner="somebody else").crl(),
        SnpMachine(line="Genoa").crl(),
        MACHINE.crl(extensions=[(DeltaCRLIndicator(1), True)]),
        MACHINE.crl(revoked(99, (CRLReason(ReasonFlags.superseded), True), at=SINCE)),
        MACHINE.crl()[:-1],
        b"",
    ],
    ids=["outdated", "future", "another signer", "another line", "delta", "critical entry", "cut", "empty"],
)
def test_a_list_that_cannot_be_relied_on_fails(crl: bytes) -> None:
    assert failed(with_list(crl)) == {"revocation"}


def test_a_root_that_may_not_sign_lists_signs_none() -> None:
    machine = MACHINE.but(root_usage=_NO_CRL_SIGN)
    evidence = {**machine.evidence(DATA), "crl": b64(machine.crl())}
    assert failed(check(evidence, machine)) == {"revocation"}


# Measurements

MEASURED = {"measurement": bytes(range(48)).hex(), "host_data": bytes(range(100, 132)).hex()}


@pytest.mark.parametrize(
    ("sets", "passes"),
    [
        ((MEASURED,), True),
        (({"measurement": MEASURED["measurement"]},), True),
        (({"measurement": "00" * 48}, MEASURED), True),
        ((), False),
        (({"measurement": "00" * 48},), False),
        (({**MEASURED, "host_data": "00" * 32},), False),
        (({**MEASURED, "mrtd": "00"},), False),
        (({"host_data": MEASURED["host_data"]},), False),
        (({},), False),
        ((MEASURED, {}), False),
    ],
)
def test_measurements_must_be_on_the_allow_list(sets: tuple[dict[str, str], ...], passes: bool) -> None:
    found = check(BOUND, measurements={"sev_snp": sets, "tdx": ({"mrtd": "00"},)})
    assert failed(found) == (set() if passes else {"measurements"})
    assert check(BOUND, measurements={"tdx": (MEASURED,)}).genuine is False


# Malformed


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"report": "00"}, {"shape"}),
        ({"report": None}, {"shape"}),
        ({"report": BOUND["report"].upper()}, {"shape"}),
        ({"report": b64(bytes.fromhex(BOUND["report"]))}, {"shape"}),
        ({"unknown": 1}, {"shape"}),
        ({"certificates": None}, {"certificates"}),
        ({"certificates": []}, {"certificates"}),
        ({"certificates": BOUND["certificates"][:2]}, {"certificates"}),
        ({"certificates": [*BOUND["certificates"], BOUND["certificates"][0]]}, {"certificates"}),
        ({"certificates": ["", "", ""]}, {"certificates"}),
        ({"certificates": [1, 2, 3]}, {"certificates"}),
        ({"crl": None}, {"revocation"}),
        ({"crl": "AA"}, {"revocation"}),
    ],
)
def test_malformed_parts_are_failed_checks(change: dict[str, Any], reasons: set[str]) -> None:
    found = check({**BOUND, **change})
    assert failed(found) == reasons
    assert (found.report_data is None) == (reasons == {"shape"})


def test_without_readable_certificates_what_needs_them_is_not_verified() -> None:
    found = check({**BOUND, "certificates": []})
    for name_ in ("root", "chain", "validity", "signature", "endorsement", "chip", "tcb"):
        assert status(found, name_) is Status.NOT_VERIFIED
    assert found.chip == MACHINE.chip_id.hex()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_nothing_raises(value: Any) -> None:
    assert not check(value).genuine


@settings(deadline=None)
@given(JSON, st.sampled_from(["report", "certificates", "crl"]))
def test_no_part_raises(value: Any, part: str) -> None:
    assert not check({**BOUND, part: value}).genuine


@settings(deadline=None)
@given(st.binary(max_size=REPORT_BYTES), st.integers(0, 7), st.binary(max_size=64))
def test_no_bytes_raise(start: bytes, version: int, certificate: bytes) -> None:
    report = (bytes((version, 0, 0, 0)) + start).ljust(REPORT_BYTES, b"\xa5")[:REPORT_BYTES]
    assert not check({**BOUND, "report": report.hex()}).genuine
    assert not check(make_evidence(report, [certificate] * 3, certificate)).genuine


def test_the_machine_signs_with_the_key_it_certifies() -> None:
    assert MACHINE.key is not ec_key("another")
    assert MACHINE.chain[0].public_key() == MACHINE.key.public_key()
