"""`tollseal spend`: what was paid to whom, and what may still be spent."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx

from attestation.buyer_cli import ledger_option, total_options
from attestation.checker import unix_now
from attestation.commands import http_url, json_option, print_json, rpc_option, run
from attestation.errors import SpendingError
from attestation.money import format_amount
from attestation.registry.view import ChainReader
from attestation.spend_check import clear_doubts
from attestation.spend_ledger import Entry, SpendLedger, State, utc_text
from attestation.spending import SpendingLimit
from attestation.terminal import console, print_fields


@click.group(invoke_without_command=True)
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), metavar="DATE", help="From here on, UTC."
)
@click.option("--service", callback=http_url, metavar="URL", help="Of this service only.")
@total_options
@ledger_option
@rpc_option
@json_option
@click.pass_context
def spend(context: click.Context, since: datetime | None, service: str | None, max_per_day: str,
          max_total: str | None, ledger: Path, rpc: str | None, as_json: bool) -> None:  # fmt: skip
    """Show what was paid to whom, and what the limits leave.

    A payment that was signed and not answered counts as spent. With --rpc the chain is asked about those that have
    ended: what was never taken no longer counts.
    """
    context.obj = ledger
    if context.invoked_subcommand is not None:
        return

    async def work() -> int:
        book, now = SpendLedger.open(ledger), unix_now()
        if rpc is not None:
            await clear_doubts(book, ChainReader(rpc), now=now)
        from_ = None if since is None else int(since.replace(tzinfo=UTC).timestamp())
        origin = None if service is None else str(httpx.URL(service).join("/")).rstrip("/")
        entries = book.entries(since=from_, service=origin)
        limit = SpendingLimit("0", per_day=max_per_day, total=max_total)
        left = limit.left(book.outgoings(), now=now)
        if as_json:
            print_json({"payments": [entry.to_json() for entry in entries], "totals": _totals(entries), "left": left})
        else:
            _show(entries, left)
        return 0

    run(work(), as_json=as_json)


@spend.command()
@click.argument("entry_id", type=int, metavar="ID")
@json_option
@click.pass_obj
def show(ledger: Path, entry_id: int, as_json: bool) -> None:
    """Show everything about one payment."""

    async def work() -> int:
        entry = _entry(SpendLedger.open(ledger), entry_id)
        if as_json:
            print_json(entry.to_json())
        else:
            _show_entry(entry)
        return 0

    run(work(), as_json=as_json)


@spend.command()
@click.argument("entry_id", type=int, metavar="ID")
@click.pass_obj
def close(ledger: Path, entry_id: int) -> None:
    """Give up a payment that has bought no answer.

    It is not sent again, and the same request is a new purchase. Until it ends it can still be taken, so it keeps
    counting as spent.
    """

    async def work() -> int:
        book = SpendLedger.open(ledger)
        _entry(book, entry_id)
        if not book.give_up(entry_id, "given up by its owner", now=unix_now()):
            raise SpendingError(f"payment {entry_id} is not waiting for an answer")
        click.echo(f"payment {entry_id} is given up")
        return 0

    run(work())


def _entry(ledger: SpendLedger, entry_id: int) -> Entry:
    entry = ledger.entry(entry_id)
    if entry is None:
        raise SpendingError(f"there is no payment {entry_id}")
    return entry


def _show(entries: Sequence[Entry], left: dict[str, str | None]) -> None:
    out = console()
    for entry in entries:
        _show_entry(entry)
        out.print()
    for total in _totals(entries):
        words = f"{total['answered']} USD for answers"
        if total["unanswered"] != "0":
            words += f", {total['unanswered']} USD signed without one"
        print_fields(out, [("total", f"{words} (asset {total['asset']} on {total['network']})")])
    names = {"per_day": "left for 24 hours", "total": "left in all"}
    print_fields(out, [(names[name], "no limit" if usd is None else f"{usd} USD") for name, usd in left.items()])


def _show_entry(entry: Entry) -> None:
    result = " ".join(word for word in (entry.state.value, entry.verdict) if word)
    shown = [
        ("payment", str(entry.id)),
        ("signed", utc_text(entry.signed_at)),
        ("amount", f"{format_amount(entry.amount, entry.decimals)} USD ({entry.amount} units)"),
        ("result", result if entry.note is None else f"{result}: {entry.note}"),
        ("service", entry.resource),
        ("agent", entry.agent),
        ("payee", entry.pay_to),
        ("payer", entry.payer),
        ("asset", f"{entry.asset} on {entry.network}"),
        ("nonce", entry.nonce),
        ("valid until", utc_text(entry.valid_before)),
        ("transaction", entry.transaction_hash),
        ("receipt", entry.receipt_id),
        ("bundle", entry.bundle),
    ]
    print_fields(console(), [(name, value) for name, value in shown if value is not None])


def _totals(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What was spent, per asset; US dollars as decimal text."""
    sums: dict[tuple[str, str, int], dict[bool, int]] = {}
    for entry in entries:
        if entry.counts:
            found = sums.setdefault((entry.network, entry.asset, entry.decimals), {True: 0, False: 0})
            found[entry.state is State.ANSWERED] += entry.amount
    return [
        {
            "network": network,
            "asset": asset,
            "answered": format_amount(found[True], decimals),
            "unanswered": format_amount(found[False], decimals),
        }
        for (network, asset, decimals), found in sums.items()
    ]
