"""The command `tollseal`: what a buyer and an auditor need.

Commands for operators live in the `service` package and are found through the entry points of the installed
distribution, so that nothing here imports it.

Exit codes: VERIFIED 0, FAILED 1, usage 2, SIMULATED 3 (0 with --allow-simulated), INCOMPLETE 4.
"""

import contextlib
import os
import time
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount

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
from attestation.checker import ServiceChecker, problem_text
from attestation.client import PURCHASE, Buyer, NotAcceptedError, PayingTransport, Purchase
from attestation.collateral_source import fetch_collateral
from attestation.commands import (
    allow_simulated_option,
    complain,
    html_option,
    http_url,
    json_option,
    policy_option,
    print_json,
    rpc_option,
    run,
    show_verdict,
)
from attestation.devstack import local_stack
from attestation.encoding import address
from attestation.errors import MalformedError, TollsealError
from attestation.money import format_amount, parse_amount
from attestation.onchain import AgentReference, ChainView
from attestation.policy import Policy
from attestation.registry.view import ChainReader
from attestation.spending import KNOWN_ASSETS, Asset, SpendingLimit
from attestation.terminal import console, print_fields, print_verdict, printable
from attestation.verdict import Verdict
from attestation.verifier import Verifier

COMMANDS: Final = "tollseal.commands"
"""Entry-point group of commands that need an extra."""

BUYER_KEY: Final = "TOLLSEAL_BUYER_KEY"
DEFAULT_MAX_PRICE: Final = "0.10"
ANSWER_TIMEOUT_SECONDS: Final = 900


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


def _place(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not os.access(value.parent, os.W_OK | os.X_OK):
        raise click.BadParameter(f"nothing can be written into {value.parent}")
    return value


@main.command()
@click.argument("file", type=click.File("rb"))
@click.option("--url", required=True, callback=http_url, help="Where the service is.")
@click.option("--max-price", default=DEFAULT_MAX_PRICE, show_default=True, metavar="USD", help="Pay at most this much.")
@click.option("--style", type=click.Choice(["paragraph", "bullets", "headline"]), help="Form of the summary.")
@click.option("--max-words", type=int, help="Limit that the model is told.")
@click.option("--language", help="ISO 639-1 code of the summary's language.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=_place,
    metavar="BUNDLE",
    help="Keep the proof here.",
)
@click.option(
    "--asset", "assets", multiple=True, metavar="NETWORK:ADDRESS", help="Also pay in this 6-decimal USD token."
)
@rpc_option
@policy_option
@allow_simulated_option
@json_option
def summarize(file: Any, url: str, max_price: str, save: Path | None, assets: tuple[str, ...], rpc: str | None,
              policy: Policy | None, allow_simulated: bool, as_json: bool, **options: Any) -> None:  # fmt: skip
    """Buy a summary of FILE ("-" for standard input).

    The service is checked before anything is sent to it, its terms before anything is paid, and the answer before it is
    shown. The key that pays comes from TOLLSEAL_BUYER_KEY.
    """
    try:
        document = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError("FILE is not UTF-8 text") from error
    stack = local_stack(url)
    known = [*KNOWN_ASSETS, *([Asset(f"eip155:{stack.chain_id}", stack.token.lower())] if stack else [])]
    try:
        known += [_asset(item) for item in assets]
        parse_amount(max_price, 6)
    except MalformedError as error:
        raise click.UsageError(str(error)) from error
    rpc = rpc or (stack.rpc if stack else None)
    progress = console(stderr=True)
    buyer = Buyer(
        account=_buyer_account(),
        limit=SpendingLimit(max_price, tuple(known)),
        policy=_policy(policy, allow_simulated=allow_simulated).requiring_chain(),
        chain=ChainReader(rpc) if rpc else None,
        progress=lambda words: None if as_json else progress.print(f"[dim]{words} ...[/dim]"),
    )
    body = {"document": document, **{name: value for name, value in options.items() if value is not None}}
    run(_summarize(buyer, url, body, save, as_json=as_json), as_json=as_json)


async def _summarize(buyer: Buyer, url: str, body: dict[str, Any], save: Path | None, *, as_json: bool) -> int:
    try:
        async with httpx.AsyncClient(transport=PayingTransport(buyer), timeout=ANSWER_TIMEOUT_SECONDS) as http:
            response = await http.post(f"{url.rstrip('/')}/v1/summarize", json=body)
    except NotAcceptedError as error:
        if as_json:
            print_json({"error": str(error), **error.verdict.to_json()})
        else:
            print_verdict(console(), error.verdict)
            complain(error)
        if error.bundle is not None:
            _keep(error.bundle, save)
        return error.verdict.exit_code
    purchase = response.extensions.get(PURCHASE)
    if not isinstance(purchase, Purchase):
        message = f"the service refused: {problem_text(response.status_code, response.content)}"
        if as_json:
            print_json({"error": message, "status": response.status_code})
        else:
            complain(message)
        return 1
    # Shown first: a full disk must not cost the buyer what was paid for.
    _show_purchase(purchase, response.json(), save, as_json=as_json)
    _keep(purchase.bundle, save)
    return purchase.verdict.exit_code


def _keep(bundle: Bundle, save: Path | None) -> None:
    if save is not None:
        save.write_text(bundle.dumps(), encoding="utf-8")


def _show_purchase(purchase: Purchase, answer: dict[str, Any], save: Path | None, *, as_json: bool) -> None:
    payment = purchases.parse_payment(purchase.bundle.answer)
    transaction = purchases.parse_settlement(purchase.bundle.answer).transaction
    if as_json:
        paid = {
            "network": payment.network,
            "asset": payment.asset,
            "pay_to": payment.pay_to,
            "payer": payment.payer,
            "amount": str(payment.amount),
            "transaction": transaction,
        }
        saved = None if save is None else str(save)
        print_json({"answer": answer, "payment": paid, "bundle": saved, **purchase.verdict.to_json()})
        return
    out = console()
    out.print(printable(str(answer.get("summary", "")), lines=True), markup=False)
    out.print()
    print_fields(out, [("paid", f"{format_amount(payment.amount, 6)} USD"), ("transaction", transaction)])
    print_verdict(out, purchase.verdict)


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
    policy = _policy(policy, allow_simulated=allow_simulated)
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


def _policy(policy: Policy | None, *, allow_simulated: bool) -> Policy:
    """The policy of the file, or the default; the flag may only add the consent to simulated evidence."""
    chosen = policy or Policy()
    return replace(chosen, allow_simulated=chosen.allow_simulated or allow_simulated)


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
        policy = _policy(policy, allow_simulated=allow_simulated)
        inspect_agent(url, rpc, policy, html, allow_private=allow_private, as_json=as_json)
    stack = local_stack(url)
    rpc = rpc or (stack.rpc if stack else None)
    policy = _policy(policy, allow_simulated=allow_simulated)
    if rpc is not None:
        policy = policy.requiring_chain()
    checker = ServiceChecker(policy=policy, chain=ChainReader(rpc) if rpc else None)
    run(_inspect(checker, url, html, as_json=as_json), as_json=as_json)


async def _inspect(checker: ServiceChecker, url: str, html: Path | None, *, as_json: bool) -> int:
    async with checker:
        service = await checker.attest(httpx.URL(url))
    show_service({"service": url, **service_facts(service)}, service.verdict, html, as_json=as_json)
    return service.verdict.exit_code


def _buyer_account() -> LocalAccount:
    key = os.environ.get(BUYER_KEY)
    if not key:
        raise click.UsageError(f"set {BUYER_KEY} to the private key that pays (0x and 64 hex digits)")
    try:
        account: LocalAccount = Account.from_key(key)
    except Exception:
        # The library's message may quote the key.
        raise click.UsageError(f"{BUYER_KEY} is not a private key (0x and 64 hex digits)") from None
    return account


def _asset(text: str) -> Asset:
    network, _, token = text.rpartition(":")
    return Asset(network, address(token, "--asset"))
