"""`tollseal policy`: policies as files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import httpx

from attestation import report
from attestation.checker import Attested, ServiceChecker
from attestation.commands import allow_simulated_option, http_url, rpc_option, run
from attestation.devstack import local_stack
from attestation.encoding import parse_json
from attestation.errors import ServiceError
from attestation.evidence import appraise
from attestation.evidence.appraisal import EvidencePolicy, Inputs
from attestation.manifest import manifest_digest, parse_manifest
from attestation.onchain import AgentReference
from attestation.policy import CHAIN_CHECKS, Policy
from attestation.policy_file import dump_policy
from attestation.registry.view import ChainReader
from attestation.terminal import console
from attestation.verdict import Status

TRUST_ON_FIRST_USE = """TRUST ON FIRST USE: written from what {url} said of itself, which nobody has checked.
Whoever answered there then is what this policy accepts from now on. Compare the measurements and the manifest
digest with a build of your own before you rely on it."""


@click.group()
def policy() -> None:
    """Policies: what you demand of a service before you believe it."""


@policy.command()
@click.option("--from", "url", required=True, callback=http_url, help="The service to take as the example.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead of stdout.")
@rpc_option
@allow_simulated_option
def init(url: str, out: Path | None, rpc: str | None, allow_simulated: bool) -> None:
    """Write a policy that accepts exactly what a service shows today (trust on first use)."""
    stack = local_stack(url)
    rpc = rpc or (stack.rpc if stack else None)
    run(_init(url, out, rpc, allow_simulated=allow_simulated))


async def _init(url: str, out: Path | None, rpc: str | None, *, allow_simulated: bool) -> int:
    chain = ChainReader(rpc) if rpc else None
    async with ServiceChecker(policy=Policy(allow_simulated=allow_simulated), chain=chain) as checker:
        service = await checker.attest(httpx.URL(url))
    failed = [
        check for check in service.verdict.checks if check.status is Status.FAIL and check.id != "evidence.policy"
    ]
    if failed:
        raise ServiceError(f"{url} is not to be trusted, not even on first use: {failed[0].id}: {failed[0].detail}")
    text = dump_policy(_as_shown(service, allow_simulated=allow_simulated), comment=TRUST_ON_FIRST_USE.format(url=url))
    if out is None:
        click.echo(text, nl=False)
    else:
        _write(out, text)
    console(stderr=True).print(TRUST_ON_FIRST_USE.format(url=url), style="yellow", markup=False)
    return 0


def _write(out: Path, text: str) -> None:
    out.write_text(text, encoding="utf-8")


def _as_shown(service: Attested, *, allow_simulated: bool) -> Policy:
    """The policy that accepts what was shown, and nothing else."""
    attestation = report.attestation_of(service.attestation)
    shown = appraise(attestation["tee_type"], attestation["evidence"], Inputs(now=service.at))
    manifest = parse_manifest(parse_json(service.manifest.body, "manifest"))
    agent: AgentReference = report.agent_of(service.attestation)
    accepted: dict[str, Any] = {}
    if shown.is_hardware:
        accepted["tee_types"] = frozenset({shown.tee_type})
        accepted["evidence"] = EvidencePolicy(measurements={shown.tee_type: (shown.measurements,)})
    chain_was_asked = service.verdict.check("registry.key").status is Status.PASS
    return replace(
        Policy(allow_simulated=allow_simulated and not shown.is_hardware),
        manifest_digests=frozenset({manifest_digest(manifest)}),
        agent=agent,
        optional=Policy().optional - (CHAIN_CHECKS if chain_was_asked else frozenset()),
        **accepted,
    )
