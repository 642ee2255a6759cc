"""`tollseal evidence check` says of captured evidence what a careful expert says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attestation.cli import main

TDX = ["--collateral", "tdx/collateral_B0C06F_2025-06.json"]
MILAN = ["--ca", "snp/ask_ark_milan.pem"]
GOOD_SNP = ["--report", "snp/virtee_milan_v2.report.bin", "--vcek", "snp/virtee_milan.vcek.der", *MILAN]
NITRO = "nitro/dstack_nsmqvl_2025-12-25T131537.cose"
AWS = ["--root", "nitro/AWS_NitroEnclaves_Root-G1.pem"]
NITRO_TIME = 1_766_668_537

ROWS: dict[str, tuple[list[str], int, str, str | None]] = {
    "tdx v4, up to date": (["tdx", "--quote", "tdx/dcapqvl_B0C06F.quote.bin", *TDX], 1_750_400_000, "GENUINE", None),
    "tdx v4 in hex, another platform": (
        ["tdx", "--quote", "tdx/near_20A06F.quote.hex", "--collateral", "tdx/collateral_20A06F_2025-09.json"],
        1_757_000_000,
        "GENUINE",
        None,
    ),
    "tdx without a matching TCB level": (
        ["tdx", "--quote", "tdx/dcapqvl_B0C06F_nomatch.quote.hex", *TDX],
        1_750_400_000,
        "REFUSED",
        "tdx.signature",
    ),
    "tdx with expired collateral": (
        ["tdx", "--quote", "tdx/dcapqvl_B0C06F.quote.bin", *TDX],
        1_752_919_236,
        "REFUSED",
        "tdx.collateral",
    ),
    "dstack": (
        [
            "dstack",
            "--evidence",
            "dstack/nearai_20A06F_getquote.json",
            "--collateral",
            "tdx/collateral_20A06F_2025-09.json",
        ],
        1_757_000_000,
        "GENUINE",
        None,
    ),
    "dstack with another platform's collateral": (
        ["dstack", "--evidence", "dstack/nearai_20A06F_getquote.json", *TDX],
        1_750_400_000,
        "REFUSED",
        "tdx.collateral",
    ),
    "snp milan": (["sev-snp", *GOOD_SNP], 1_750_000_000, "GENUINE", None),
    "snp in debug": (
        ["sev-snp", "--report", "snp/gosev_milan_v2_DEBUG.report.bin", "--vcek", "snp/gosev_milan.vcek.der", *MILAN],
        1_750_000_000,
        "REFUSED",
        "sev_snp.debug",
    ),
    "snp after its certificate": (["sev-snp", *GOOD_SNP], 1_950_000_000, "REFUSED", "sev_snp.validity"),
    "nitro at its own time": (["nitro", "--document", NITRO], NITRO_TIME, "GENUINE", None),
    "nitro under the root file": (["nitro", "--document", NITRO, *AWS], NITRO_TIME, "GENUINE", None),
    "nitro later": (["nitro", "--document", NITRO], 1_780_272_000, "REFUSED", "nitro.validity"),
    "nitro in debug": (
        ["nitro", "--document", "nitro/evervault_DEBUG_2023-09-18T150330.cose"],
        1_695_049_410,
        "REFUSED",
        "nitro.debug",
    ),
}


def run(evidence_dir: Path, arguments: list[str], *more: str) -> Result:
    placed = [str(evidence_dir / item) if "/" in item else item for item in arguments]
    return CliRunner().invoke(main, ["evidence", "check", *placed, *more])


@pytest.mark.parametrize("row", ROWS)
def test_captured_evidence_is_judged_as_an_expert_would(evidence_dir: Path, row: str) -> None:
    arguments, at, verdict, failing = ROWS[row]
    result = run(evidence_dir, arguments, "--at", str(at), "--json")
    document: dict[str, Any] = json.loads(result.stdout)
    statuses = {check["id"]: check["status"] for check in document["checks"]}
    assert document["verdict"] == verdict, statuses
    assert result.exit_code == (0 if verdict == "GENUINE" else 1)
    if failing is None:
        assert "FAIL" not in statuses.values()
        assert len(document["report_data"]) in (128,) or "nitro" in row
    else:
        assert statuses[failing] == "FAIL"
    assert document["measurements"]


def test_tdx_says_status_and_advisories(evidence_dir: Path) -> None:
    arguments, at, _, _ = ROWS["tdx v4, up to date"]
    document = json.loads(run(evidence_dir, arguments, "--at", str(at), "--json").stdout)
    assert (document["tcb_status"], document["advisories"]) == ("UpToDate", [])


def test_measurements_without_a_policy_are_not_verified_and_do_not_change_the_exit(evidence_dir: Path) -> None:
    arguments, at, _, _ = ROWS["snp milan"]
    result = run(evidence_dir, arguments, "--at", str(at), "--json")
    statuses = {check["id"]: check["status"] for check in json.loads(result.stdout)["checks"]}
    assert statuses["sev_snp.measurements"] == "not verified"
    assert result.exit_code == 0


def test_a_policy_decides_about_measurements(evidence_dir: Path, tmp_path: Path) -> None:
    arguments, at, _, _ = ROWS["snp milan"]
    measured = json.loads(run(evidence_dir, arguments, "--at", str(at), "--json").stdout)["measurements"]["measurement"]
    policy = tmp_path / "policy.toml"
    for value, code in ((measured, 0), ("00" * 48, 1)):
        policy.write_text(f'[[measurements.sev_snp]]\nmeasurement = "{value}"\n')
        assert run(evidence_dir, arguments, "--at", str(at), "--policy", str(policy)).exit_code == code


def test_a_quote_without_collateral_is_not_called_genuine(evidence_dir: Path) -> None:
    result = run(evidence_dir, ["tdx", "--quote", "tdx/dcapqvl_B0C06F.quote.bin"], "--at", "1750400000", "--json")
    assert (json.loads(result.stdout)["verdict"], result.exit_code) == ("REFUSED", 1)


@pytest.mark.parametrize("content", [b"", b"\x00" * 5_000, b"aci-stub-quote", b"\xff\xfe", b"{}", b"[" * 100_000])
@pytest.mark.parametrize("kind", ["tdx", "nitro"])
def test_files_of_any_content_are_refused_without_a_traceback(tmp_path: Path, kind: str, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    option = {"tdx": "--quote", "nitro": "--document"}[kind]
    result = CliRunner().invoke(main, ["evidence", "check", kind, option, str(file), "--at", "1"])
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
