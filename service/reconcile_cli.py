"""`tollseal reconcile`: finish what a stopped service left in its ledger, without starting one."""

from typing import Final

import click

from attestation.commands import json_option, print_json
from attestation.terminal import console, print_fields
from service.boot import unix_now
from service.cli import read_settings, run_to_exit
from service.facilitators import open_facilitator
from service.payment.ledger import Ledger, State
from service.payment.reconcile import ReconcileReport, reconcile
from service.settings import Settings

INCOMPLETE: Final = 4
"""Exit code where something could not be done now, as of the other commands."""

OWNER: Final = "tollseal reconcile"
"""No replica can be called so: what this command takes up is nobody's when it has ended."""


@click.command(name="reconcile")
@click.option(
    "--owner",
    metavar="REPLICA",
    help="Also what this replica left behind, before its leases are over. Only while it is stopped.",
)
@json_option
def reconcile_command(owner: str | None, as_json: bool) -> None:
    """Settle or end the payments that a stopped service left unfinished. Exits 4 when some have to wait.

    Settings are TOLLSEAL_* environment variables, as for `serve`. Replicas may be running: a payment that one of them
    works on is left alone."""
    run_to_exit(_reconcile(read_settings(), owner, as_json=as_json))


async def _reconcile(settings: Settings, owner: str | None, *, as_json: bool) -> int:
    ledger = await Ledger.open(settings.ledger_url, owner=OWNER)
    try:
        facilitator = open_facilitator(settings)
        try:
            report = await reconcile(ledger, facilitator, unix_now, owner=owner)
        finally:
            await facilitator.close()
        counts = await ledger.counts()
    finally:
        await ledger.close()
    _show(report, counts, as_json=as_json)
    return INCOMPLETE if report.waiting else 0


def _show(report: ReconcileReport, counts: dict[State, int], *, as_json: bool) -> None:
    done = {"settled": report.settled, "rejected": report.rejected, "released": report.released}
    if as_json:
        payments = {state.value: number for state, number in counts.items()}
        print_json({**done, "waiting": list(report.waiting), "payments": payments})
        return
    fields = [(name, str(number)) for name, number in done.items()]
    fields += [("waiting", sentence) for sentence in report.waiting] or [("waiting", "0")]
    fields += [("ledger", ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "empty")]
    print_fields(console(), fields)
