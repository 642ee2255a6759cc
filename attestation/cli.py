"""The command `tollseal`: what a buyer and an auditor need. Buying is in `attestation.buyer_cli`.

Commands for operators live in the `service` package and are found through the entry points of the installed
distribution, so that nothing here imports it.

Exit codes: VERIFIED 0, FAILED 1, usage 2, SIMULATED 3 (0 with --allow-simulated), INCOMPLETE 4.
"""

import contextlib
import time
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import httpx

from attestation import purchase as purchases
from attestation import report
from attestation.agent_inspect import (
    BundleOrAgent,
    allow_private_option,
    inspect_agent,
    service_facts,
    show_service,
    url_or_agent,
)
from attestation.bundle import Bundle, parse_bundle
from attestation.buyer_cli import summarize
from attestation.checker import ServiceChecker
from attestation.collateral_source import fetch_collateral
from attestation.commands import (
    allow_simulated_option,
    html_option,
    json_option,
    policy_option,
    rpc_option,
    run,
    show_verdict,
    with_consent,
)
from attestation.devstack import local_stack
from attestation.errors import TollsealError
from attestation.onchain import AgentReference, ChainView
from attestation.policy import Policy
from attestation.registry.view import ChainReader
from attestation.spend_cli import spend
from attestation.verdict import Verdict
from attestation.verifier import Verifier

COMMANDS: Final = "tollseal.commands"
"""Entry-point group of commands that need an extra."""


class _Group(click.Group):
    """A group whose further commands come from entry points, and load only when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group=COMMANDS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for point in entry_points(group=COMMANDS, name=cmd_name):
            try:
                command: click.Command = point.load()
            except ModuleNotFoundError as error:
                return _needs_extra(cmd_name, error.name or "a package")
            return command
        return None


def _needs_extra(name: str, missing: str) -> click.Command:
    def explain() -> NoReturn:
        raise click.ClickException(f"`tollseal {name}` needs {missing}: pip install 'tollseal[service]'")

    return click.Command(
        name,
        callback=explain,
        help=f"Needs {missing}: pip install 'tollseal[service]'.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tollseal")
def main() -> None:
    """Buy LLM answers by the call, and check what you got."""


@main.command()
@click.argument("bundle", type=BundleOrAgent())
@allow_private_option
@click.option("--at", type=int, metavar="UNIX", help="Judge as of this time instead of now.")
@click.option("--offline", is_flag=True, help="Take TDX collateral from the bundle, whatever the policy says.")
@rpc_option
@policy_option
@html_option
@allow_simulated_option
@json_option
def verify(bundle: Any, at: int | None, offline: bool, rpc: str | None, policy: Policy | None, html: Path | None,
           allow_simulated: bool, allow_private: bool, as_json: bool) -> None:  # fmt: skip
    """Check a saved BUNDLE, offline unless --rpc adds what the chain says.

    In place of a bundle, agent:<chain>:<registry>:<id> finds the agent's service from the chain and checks that.
    """
    policy = with_consent(policy, allow_simulated=allow_simulated)
    if isinstance(bundle, AgentReference):
        if at is not None or offline:
            raise click.UsageError("an agent's service is checked now, over the network: no --at, no --offline")
        inspect_agent(bundle, rpc, policy, html, allow_private=allow_private, as_json=as_json)
    if offline:
        policy = replace(policy, collateral_url=None)

    async def work() -> int:
        verdict = await _verify(bundle.read(), at, rpc, policy)
        show_verdict(verdict, as_json=as_json, html=html)
        return verdict.exit_code

    run(work(), as_json=as_json)


async def _verify(data: bytes, at: int | None, rpc: str | None, policy: Policy) -> Verdict:
    view, collateral = None, None
    now = int(time.time()) if at is None else at
    if rpc is not None:
        policy = policy.requiring_chain()
    # What is wrong with a malformed bundle is for the verifier to say.
    with contextlib.suppress(TollsealError):
        parsed = parse_bundle(data)
        if policy.collateral_url is not None:
            collateral = await fetch_collateral(policy.collateral_url, parsed.attestation, now=now)
        if rpc is not None:
            view = await _chain_view(rpc, parsed)
    return Verifier(policy, now=now, chain=view, collateral=collateral).verify_bundle(data)


async def _chain_view(rpc: str, bundle: Bundle) -> ChainView:
    return await ChainReader(rpc).view(
        report.agent_of(bundle.attestation),
        report.key_slot_of(bundle.attestation),
        purchases.parse_payment(bundle.answer),
        purchases.parse_settlement(bundle.answer).transaction,
    )


@main.command()
@click.argument("url", metavar="URL|AGENT", callback=url_or_agent)
@allow_private_option
@rpc_option
@policy_option
@html_option
@allow_simulated_option
@json_option
def inspect(url: str | AgentReference, rpc: str | None, policy: Policy | None, html: Path | None,
            allow_simulated: bool, allow_private: bool, as_json: bool) -> None:  # fmt: skip
    """Show who answers at URL, and check it with a fresh nonce. Nothing is bought.

    AGENT is agent:<chain>:<registry>:<id>: its service is found from the chain.
    """
    if isinstance(url, AgentReference):
        policy = with_consent(policy, allow_simulated=allow_simulated)
        inspect_agent(url, rpc, policy, html, allow_private=allow_private, as_json=as_json)
    stack = local_stack(url)
    rpc = rpc or (stack.rpc if stack else None)
    policy = with_consent(policy, allow_simulated=allow_simulated)
    if rpc is not None:
        policy = policy.requiring_chain()
    checker = ServiceChecker(policy=policy, chain=ChainReader(rpc) if rpc else None)
    run(_inspect(checker, url, html, as_json=as_json), as_json=as_json)


async def _inspect(checker: ServiceChecker, url: str, html: Path | None, *, as_json: bool) -> int:
    async with checker:
        service = await checker.attest(httpx.URL(url))
    show_service({"service": url, **service_facts(service)}, service.verdict, html, as_json=as_json)
    return service.verdict.exit_code


main.add_command(summarize)
main.add_command(spend)
