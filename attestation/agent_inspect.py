"""`tollseal inspect` and `tollseal verify` of an agent: from its id to its service, and a check of both."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click
import httpx

from attestation import report
from attestation.agent_options import parse_agent, short
from attestation.checker import Attested, ServiceChecker, unix_now
from attestation.commands import http_url, print_json, run, show_verdict, write_page
from attestation.devstack import local_stack
from attestation.digest import jcs_digest
from attestation.encoding import parse_json
from attestation.errors import MalformedError, TollsealError
from attestation.fetch import FetchLimits, GuardedTransport
from attestation.manifest import manifest_digest, parse_manifest
from attestation.onchain import AgentReference
from attestation.policy import Policy
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.view import ChainReader
from attestation.resolve import Resolved, joined, registration_limits, resolve
from attestation.terminal import console, print_fields
from attestation.verdict import Check, Status, Verdict

MAX_SERVICE_ANSWER = 4 << 20
"""Bytes of a report or a manifest from a service that nobody has vouched for."""

allow_private_option = click.option(
    "--allow-private",
    is_flag=True,
    help="Follow an agent's URI also to this machine and to private networks, and over plain HTTP.",
)


class BundleOrAgent(click.ParamType[Any]):
    """A file to read, or an agent's reference."""

    name = "BUNDLE|AGENT"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, str) and value.startswith("agent:"):
            return _reference(value)
        return click.File("rb").convert(value, param, context)


def url_or_agent(context: click.Context, parameter: click.Parameter, value: str) -> str | AgentReference | None:
    """An http or https URL, or an agent's reference."""
    return _reference(value) if value.startswith("agent:") else http_url(context, parameter, value)


def _reference(value: str) -> AgentReference:
    try:
        found = parse_agent(value)
    except MalformedError as error:
        raise click.BadParameter("must be agent:<chain id>:<registry address>:<agent id>") from error
    if isinstance(found, int):
        raise click.BadParameter("must name chain and registry too: agent:<chain id>:<registry address>:<agent id>")
    return found


def inspect_agent(
    agent: AgentReference, rpc: str | None, policy: Policy, html: Path | None, *, allow_private: bool, as_json: bool
) -> NoReturn:
    """Find an agent's service from the chain, and check agent and service. Ends the program."""
    if policy.agent not in (None, agent):
        raise click.UsageError(f"the policy accepts {policy.agent} only")
    if rpc is None:
        stack = local_stack()
        if stack is None or stack.chain_id != agent.chain_id:
            raise click.UsageError("an agent is found through a node of your choice: --rpc or TOLLSEAL_RPC")
        rpc = stack.rpc
    run(_inspect(agent, rpc, policy, html, allow_private=allow_private, as_json=as_json), as_json=as_json)


async def _inspect(
    agent: AgentReference, rpc: str, policy: Policy, html: Path | None, *, allow_private: bool, as_json: bool
) -> int:
    async with IdentityReader(rpc, agent.chain_id, agent.registry) as reader:
        await reader.check()
        found = await resolve(reader, agent, registration_limits(allow_private=allow_private), now=unix_now())
    facts = _agent_facts(found)
    verdict: Verdict | None = None
    if found.endpoint is not None and not found.failed:
        try:
            service = await _service(found, rpc, policy, allow_private=allow_private)
        except (TollsealError, httpx.HTTPError) as error:
            found.checks.append(Check("service.reachable", Status.NOT_VERIFIED, str(error) or type(error).__name__))
        else:
            verdict = service.verdict
            facts |= service_facts(service)
    whole = joined(found, verdict)
    show_service(facts, whole, html, as_json=as_json)
    return whole.exit_code


async def _service(found: Resolved, rpc: str, policy: Policy, *, allow_private: bool) -> Attested:
    limits = FetchLimits(max_bytes=MAX_SERVICE_ANSWER, allow_private=allow_private)
    checker = ServiceChecker(
        policy=replace(policy, agent=found.agent).requiring_chain(),
        chain=ChainReader(rpc),
        connect=lambda context: GuardedTransport(limits, tls=context),
    )
    async with checker:
        return await checker.attest(found.endpoint or httpx.URL())


def _agent_facts(found: Resolved) -> dict[str, str]:
    facts = {"agent": str(found.agent)}
    if found.owner is not None:
        facts["owner"] = found.owner
    if found.agent_uri:
        facts["uri"] = short(found.agent_uri)
    if found.registration is not None:
        facts["name"] = short(found.registration.name)
    if found.endpoint is not None:
        facts["service"] = str(found.endpoint)
    return facts


def service_facts(service: Attested) -> dict[str, str]:
    """What a service shows of itself; empty when it is malformed, and then the verdict says how."""
    try:
        attestation = report.attestation_of(service.attestation)
        manifest = parse_manifest(parse_json(service.manifest.body, "manifest"))
        return {
            "tee": str(attestation["tee_type"]),
            "keyset": jcs_digest(attestation["workload_keyset"]),
            "agent": str(attestation["workload_keyset"].get("subject")),
            "build": manifest_digest(manifest),
            "source": str(manifest["source"].get("commit")),
            "model": str(manifest["model"].get("name")),
            "weights": f"{manifest['model'].get('weights_sha256')} ({manifest['model'].get('weights_origin')})",
            "price": f"{manifest['payment'].get('price_rule', {}).get('per_call')} USD per call",
        }
    except (TollsealError, AttributeError):
        return {}


def show_service(facts: Mapping[str, str], verdict: Verdict, html: Path | None, *, as_json: bool) -> None:
    """Facts and verdict, for people or as JSON."""
    if as_json:
        write_page(verdict, html)
        print_json({**facts, **verdict.to_json()})
        return
    print_fields(console(), facts.items())
    show_verdict(verdict, as_json=False, html=html)
