"""`tollseal evidence check`: hardware evidence alone, offline, at a time of your choosing."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from attestation import encoding
from attestation.commands import json_option, policy_option, print_json
from attestation.errors import TollsealError
from attestation.evidence import appraise
from attestation.evidence.appraisal import Appraisal, Inputs
from attestation.evidence.tdx import read_quote
from attestation.evidence.x509 import der_certificates
from attestation.policy import Policy
from attestation.terminal import console, print_checks, print_fields

GENUINE: Final = "GENUINE"
REFUSED: Final = "REFUSED"

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def evidence() -> None:
    """Hardware evidence, apart from any service."""


@evidence.group()
def check() -> None:
    """Check evidence of one KIND. Exit 0 when it is genuine and acceptable, 1 when it is not.

    Without a policy that names measurements, these are reported as not verified and do not change the outcome.
    """


def _common(command: Callable[..., None]) -> Callable[..., None]:
    at = click.option("--at", type=int, metavar="UNIX", help="Judge as of this time instead of now.")
    return at(policy_option(json_option(command)))


@check.command()
@click.option("--quote", type=_FILE, required=True, help="The quote, binary or hex.")
@click.option("--collateral", type=_FILE, help="Intel's collateral for it, as JSON.")
@_common
def tdx(quote: Path, collateral: Path | None, at: int | None, policy: Policy | None, as_json: bool) -> None:
    """An Intel TDX quote."""
    _check("tdx", lambda: {"quote": read_quote(quote.read_bytes()).hex()}, collateral, at, policy, as_json)


@check.command()
@click.option("--evidence", "file", type=_FILE, required=True, help="The guest agent's answer to GetQuote, as JSON.")
@click.option("--app-compose", type=_FILE, help="The compose text that the measured hash is of.")
@click.option("--collateral", type=_FILE, help="Intel's collateral for the quote, as JSON.")
@_common
def dstack(file: Path, app_compose: Path | None, collateral: Path | None, at: int | None, policy: Policy | None,
           as_json: bool) -> None:  # fmt: skip
    """A dstack guest's quote with its event log."""

    def read() -> dict[str, Any]:
        document = encoding.as_object(encoding.parse_json(file.read_bytes(), "evidence"), "evidence")
        found = {"event_log": document.get("event_log"), "quote": document.get("quote")}
        if app_compose is not None:
            found["app_compose"] = app_compose.read_text("utf-8")
        return found

    _check("tdx", read, collateral, at, policy, as_json)


@check.command("sev-snp")
@click.option("--report", type=_FILE, required=True, help="The attestation report, binary or hex.")
@click.option("--vcek", type=_FILE, required=True, help="The certificate of the key that signed it, DER or PEM.")
@click.option("--ca", type=_FILE, required=True, help="AMD's certificates above it, PEM: ASK and ARK.")
@click.option("--crl", type=_FILE, help="AMD's revocation list, DER.")
@_common
def sev_snp(report: Path, vcek: Path, ca: Path, crl: Path | None, at: int | None, policy: Policy | None,
            as_json: bool) -> None:  # fmt: skip
    """An AMD SEV-SNP attestation report."""

    def read() -> dict[str, Any]:
        found: dict[str, Any] = {
            "report": _bytes(report).hex(),
            "certificates": [encoding.b64(der) for der in (*_certificates(vcek), *_certificates(ca))],
        }
        if crl is not None:
            found["crl"] = encoding.b64(crl.read_bytes())
        return found

    _check("sev_snp", read, None, at, policy, as_json)


@check.command()
@click.option("--document", type=_FILE, required=True, help="The attestation document (COSE_Sign1), binary or hex.")
@click.option("--root", type=_FILE, help="Root certificate to trust instead of AWS's pinned one, PEM or DER.")
@_common
def nitro(document: Path, root: Path | None, at: int | None, policy: Policy | None, as_json: bool) -> None:
    """An AWS Nitro Enclaves attestation document."""
    roots = {} if root is None else {"nitro": _certificates(root)}
    _check("nitro", lambda: {"document": _bytes(document).hex()}, None, at, policy, as_json, roots=roots)


def _check(
    tee_type: str,
    read: Callable[[], dict[str, Any]],
    collateral: Path | None,
    at: int | None,
    policy: Policy | None,
    as_json: bool,
    *,
    roots: Mapping[str, tuple[bytes, ...]] | None = None,
) -> None:
    try:
        inputs = Inputs(
            now=int(time.time()) if at is None else at,
            roots=roots or {},
            policy=(policy or Policy()).evidence,
            collateral=None if collateral is None else _collateral(collateral),
        )
        appraisal = appraise(tee_type, read(), inputs)
    except (TollsealError, UnicodeDecodeError) as error:
        raise click.ClickException(str(error)) from error
    document = _document(appraisal)
    if as_json:
        print_json(document)
    else:
        _show(appraisal, document["verdict"])
    raise click.exceptions.Exit(0 if document["verdict"] == GENUINE else 1)


def _document(appraisal: Appraisal) -> dict[str, Any]:
    # Evidence whose signature could not be checked is not genuine; measurements without a policy are not its fault.
    genuine = appraisal.genuine and appraisal.missing(of_policy=False) is None
    document: dict[str, Any] = {
        "verdict": GENUINE if genuine else REFUSED,
        "checks": [check.to_json() for check in appraisal.checks],
        "measurements": dict(appraisal.measurements),
        "report_data": None if appraisal.report_data is None else appraisal.report_data.hex(),
    }
    if appraisal.tcb_status is not None:
        document |= {"tcb_status": appraisal.tcb_status, "advisories": list(appraisal.advisories)}
    return document


def _show(appraisal: Appraisal, verdict: str) -> None:
    out = console()
    print_fields(out, appraisal.measurements.items())
    print_checks(out, appraisal.checks)
    out.print(verdict, style="bold green" if verdict == GENUINE else "bold red")


def _collateral(path: Path) -> dict[str, Any]:
    return encoding.as_object(encoding.parse_json(path.read_bytes(), "collateral"), "collateral")


def _bytes(path: Path) -> bytes:
    """A file's bytes, or the bytes that it holds as hex text."""
    data = path.read_bytes()
    try:
        return bytes.fromhex(data.decode("ascii").strip().removeprefix("0x"))
    except ValueError:
        return data


def _certificates(path: Path) -> tuple[bytes, ...]:
    """The certificates of a PEM or DER file, as DER."""
    try:
        return tuple(der_certificates(path.read_bytes(), str(path)))
    except TollsealError as error:
        raise click.ClickException(str(error)) from error
