"""`tollseal validator`: checks the agents that ask for it, and answers on the chain."""

import asyncio
import json
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from attestation.account import open_signer
from attestation.agent_change import plan_json, show_plan
from attestation.agent_options import Change, signing_options
from attestation.commands import (
    allow_simulated_option,
    complain,
    json_option,
    policy_option,
    print_json,
    rpc_option,
    run,
    with_consent,
)
from attestation.policy import Policy
from attestation.publishing import Publisher
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import RegistryError
from attestation.registry.sender import Sender
from attestation.registry.validation import ValidationReader, ValidationWriter
from attestation.registry.view import ChainReader
from attestation.registry_options import (
    Place,
    change_as,
    from_block_option,
    identity_option,
    network_option,
    place,
    publisher_options,
    validation_option,
)
from attestation.terminal import console, printable
from attestation.validator import Journal, Outcome, Round, Validator
from attestation.validator_judge import Judge

VALIDATOR_KEY: Final = "TOLLSEAL_VALIDATOR_KEY"
JOURNALS: Final = Path.home() / ".cache" / "tollseal" / "validator"
MAX_PAUSE_SECONDS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Everything that the command was told."""

    place: Place
    change: Change
    policy: Policy
    agents: tuple[int, ...]
    from_block: int
    allow_private: bool
    publisher: Publisher
    journal: Path | None
    every: int
    once: bool
    as_json: bool


@click.command()
@rpc_option
@network_option
@identity_option
@validation_option
@from_block_option
@click.option("--agent", "agents", type=click.IntRange(min=0), multiple=True, metavar="ID",
              help="Answer for this agent only; may be repeated. Every answer costs gas.")  # fmt: skip
@policy_option
@allow_simulated_option
@click.option("--allow-private", is_flag=True, help="Also ask private addresses, for a chain on this machine.")
@publisher_options
@click.option("--journal", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to go on after a restart; may be lost.")  # fmt: skip
@click.option("--every", type=click.IntRange(min=1), default=15, show_default=True, metavar="SECONDS",
              help="How often to look.")  # fmt: skip
@click.option("--once", is_flag=True, help="Look once and end.")
@partial(signing_options, key_env=VALIDATOR_KEY)
@json_option
@click.pass_context
def validator(context: click.Context, /, rpc: str | None, network: int | None, registry: str | None,
              validation_registry: str | None, policy: Policy | None, allow_simulated: bool, allow_private: bool,
              publisher: Publisher, once: bool, agents: tuple[int, ...], from_block: int, journal: Path | None,
              every: int, as_json: bool, **_: Any) -> None:  # fmt: skip
    """Check every agent that asks this account for a validation (ERC-8004), and answer 100 or 0 on the chain.

    The key of the account comes from TOLLSEAL_VALIDATOR_KEY. An answer's tag names the TEE; a simulated enclave scores
    0, or 100 under the tag "simulated" where --allow-simulated was given and the chain carries nothing of value. What
    cannot be decided stays pending. Nothing is answered twice, however often this is stopped and started.
    """
    where = place(rpc, network, identity=registry, validation=validation_registry)
    if where.validation is None:
        raise click.UsageError(
            f"no validation registry is known on chain {where.chain_id}: name it with --validation-registry"
        )
    change = change_as(context, VALIDATOR_KEY)
    work = _Work(
        place=where,
        change=change,
        policy=with_consent(policy, allow_simulated=allow_simulated),
        allow_private=allow_private or where.local,
        publisher=publisher,
        once=once or change.dry_run,
        agents=agents,
        from_block=from_block,
        journal=journal,
        every=every,
        as_json=as_json,
    )
    run(_validate(work), as_json=work.as_json)


async def _validate(work: _Work) -> int:
    where = work.place
    async with IdentityReader(where.rpc, where.chain_id, where.identity, from_block=work.from_block) as identity:
        reader = ValidationReader(identity, where.validation or "")
        change = work.change
        signer = await open_signer(change.keys)
        sender = Sender(identity.chain, signer, fees=change.fees, confirmations=change.confirmations)
        subject = f"eip155:{where.chain_id}:{reader.address}:{sender.address}"
        path = work.journal or JOURNALS / f"{where.chain_id}-{reader.address}-{sender.address}.json"
        journal = Journal.read(path, subject)
        chain = ChainReader(where.rpc, from_block=work.from_block)
        progress = console(stderr=True)
        validator = Validator(
            ValidationWriter(reader, sender),
            Judge(work.policy, chain, where.chain_id, allow_private=work.allow_private),
            work.publisher,
            journal,
            confirmations=change.confirmations,
            agents=work.agents or None,
            progress=lambda words: progress.print(f"[dim]{printable(words)} ...[/dim]"),
        )
        with journal.alone():
            if work.once:
                _show(await validator.round(dry_run=change.dry_run), work)
                return 0
            progress.print(f"watching for requests to {sender.address} on chain {where.chain_id}", markup=False)
            return await _watch(validator, work)


async def _watch(validator: Validator, work: _Work) -> int:
    """Rounds until a signal comes. Being cut off in one is harmless: the chain knows what was answered."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        if task is not None:
            loop.add_signal_handler(number, task.cancel)
    pause, absent = work.every, False
    with suppress(asyncio.CancelledError):
        while True:
            try:
                found = await validator.round()
                if found.deployed or not absent:
                    _show(found, work, quiet=True)
                absent, pause = not found.deployed, work.every
            except RegistryError as error:
                complain(error)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            await asyncio.sleep(pause)
    return 0


def _show(found: Round, work: _Work, *, quiet: bool = False) -> None:
    chain = work.place.chain_id
    planned = tuple(one.planned for one in found.outcomes if one.planned is not None)
    plan = plan_json(planned, work.change.eth_price) if work.change.dry_run else {}
    if work.as_json:
        if not quiet:
            outcomes = [outcome.to_json() for outcome in found.outcomes]
            document = {"chain_id": chain, "deployed": found.deployed, "block": found.block, "requests": outcomes}
            print_json({**document, "dry_run": work.change.dry_run, **plan})
            return
        for outcome in found.outcomes:
            click.echo(json.dumps(outcome.to_json()))
        return
    if not found.deployed:
        click.echo(f"chain {chain} has no validation registry at {work.place.validation}, so nobody can ask")
    elif not found.outcomes and not quiet:
        click.echo(f"nothing is to be answered as of block {found.block}")
    for outcome in found.outcomes:
        click.echo(printable(_line(outcome)))
    if plan:
        show_plan(plan)


def _line(outcome: Outcome) -> str:
    score = "" if outcome.response is None else f" {outcome.response} ({outcome.tag})"
    sent = f", transaction {outcome.transaction}, {outcome.gas_used} gas" if outcome.transaction else ""
    about = f"agent {outcome.agent_id}, request {outcome.request_hash}"
    return f"{outcome.status.value}{score}: {about}: {outcome.reason}{sent}"
