"""`tollseal validation`: asks for validations of an agent, and shows what was answered."""

from dataclasses import asdict
from typing import Any

import click
import httpx

from attestation import report
from attestation.account import open_signer
from attestation.agent_change import plan_json, show_plan
from attestation.agent_options import Change, address_callback, change_of, signing_options
from attestation.bundle import parse_bundle
from attestation.checker import ServiceChecker
from attestation.commands import http_url, json_option, print_json, rpc_option, run
from attestation.devstack import local_stack
from attestation.encoding import address
from attestation.errors import MalformedError, TollsealError
from attestation.http_signature import Exchange
from attestation.keyset import ALGO_PAYMENT, parse_keyset
from attestation.onchain import AgentReference
from attestation.payment_proof import address_of
from attestation.policy import Policy
from attestation.publishing import Publisher, content_hash
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.sender import Sender
from attestation.registry.validation import Validation, ValidationReader, ValidationWriter
from attestation.registry_options import (
    Place,
    agent_argument,
    from_block_option,
    place,
    publisher_options,
    validation_option,
)
from attestation.terminal import console, print_fields, printable
from attestation.validation import (
    KeyInQuestion,
    build_request,
    draw_salt,
    inline_key,
    request_validation,
    standing,
)


@click.group()
def validation() -> None:
    """Ask validators about an agent's keys, and read what they answered (ERC-8004)."""


@validation.command("request")
@click.option("--validator", metavar="ADDRESS", callback=address_callback, required=True, help="Whom to ask.")
@click.option("--url", callback=http_url, help="The service whose present key is to be checked; it is asked itself.")
@click.option(
    "--bundle", type=click.File("rb"), help="A purchase under the key, in place of --url. Validators read it."
)
@publisher_options
@rpc_option
@validation_option
@from_block_option
@signing_options
@json_option
@click.pass_context
def request(context: click.Context, /, validator: str, url: str | None, bundle: Any, publisher: Publisher,
            rpc: str | None, validation_registry: str | None, from_block: int, as_json: bool,
            **_: Any) -> None:  # fmt: skip
    """Ask a validator to check a key, once for every key and validator.

    The account that asks must own or operate the agent; its key comes from TOLLSEAL_AGENT_KEY by
    default.
    """
    if (url is None) == (bundle is None):
        raise click.UsageError("name either --url or --bundle")
    if bundle is not None and publisher.inline:
        raise click.UsageError("a bundle is too large for the chain: --document-dir and --document-url")
    change = change_of(context)
    stack = local_stack(url) if url else None
    rpc = rpc or (stack.rpc if stack else None)

    async def work() -> int:
        key = _of_bundle(bundle.read()) if url is None else await _of_service(url)
        where = place(rpc, key.agent.chain_id, identity=key.agent.registry, validation=validation_registry)
        async with IdentityReader(where.rpc, where.chain_id, where.identity, from_block=from_block) as identity:
            reader = ValidationReader(identity, _known(where))
            sender = Sender(identity.chain, await open_signer(change.keys), fees=change.fees,
                            confirmations=change.confirmations)  # fmt: skip
            return await _request(ValidationWriter(reader, sender), validator, key, publisher, where, change,
                                  as_json=as_json)  # fmt: skip

    run(work(), as_json=as_json)


async def _request(
    writer: ValidationWriter,
    validator: str,
    key: KeyInQuestion,
    publisher: Publisher,
    where: Place,
    change: Change,
    *,
    as_json: bool,
) -> int:
    if not await writer.reader.deployed():
        return _absent(where, as_json=as_json)
    told = {"agent": str(key.agent), "keyset_digest": key.keyset_digest, "validator": validator}
    if change.dry_run:
        document = build_request(key, salt=draw_salt())
        call = await writer.request_call(validator, key.agent.agent_id, publisher.uri(document), content_hash(document))
        plan = plan_json((await writer.sender.plan(call, "asking for a validation"),), change.eth_price)
        if as_json:
            print_json({**told, "dry_run": True, **plan})
        else:
            show_plan(plan)
        return 0
    asked = await request_validation(writer, validator, key, publisher=publisher)
    told |= {"request_hash": asked.request_hash}
    if as_json:
        print_json({**told, "dry_run": False, "transaction": asked.transaction})
    else:
        sent = asked.transaction or "none: it was asked before"
        print_fields(console(), [*told.items(), ("transaction", sent)])
    return 0


@validation.command("list")
@click.argument("agent", callback=agent_argument)
@click.option("--trust", multiple=True, metavar="ADDRESS", help="Count this validator's answers; may be repeated.")
@rpc_option
@validation_option
@from_block_option
@json_option
def list_(agent: AgentReference, trust: tuple[str, ...], rpc: str | None, validation_registry: str | None,
          from_block: int, as_json: bool) -> None:  # fmt: skip
    """Show what was asked about AGENT and answered. Nobody is trusted unless --trust names them.

    AGENT is <chain id>:<identity registry>:<agent id>.
    """
    where = place(rpc, agent.chain_id, identity=agent.registry, validation=validation_registry)
    try:
        trusted = frozenset(address(item, "--trust") for item in trust)
    except MalformedError as error:
        raise click.UsageError(str(error)) from error

    async def work() -> int:
        async with IdentityReader(where.rpc, where.chain_id, where.identity, from_block=from_block) as identity:
            reader = ValidationReader(identity, _known(where))
            await identity.owner_of(agent.agent_id)
            if not await reader.deployed():
                return _absent(where, as_json=as_json)
            _show(await reader.of_agent(agent.agent_id), trusted, as_json=as_json)
        return 0

    run(work(), as_json=as_json)


def _show(found: tuple[Validation, ...], trusted: frozenset[str], *, as_json: bool) -> None:
    rows = [_row(one, trusted) for one in found]
    counted = standing(found, trusted)
    if as_json:
        print_json({"deployed": True, "standing": asdict(counted), "validations": rows})
        return
    out = console()
    for row in rows:
        told = "pending" if row["response"] is None else f"{row['response']} ({row['tag']})"
        who = "trusted" if row["trusted"] else "not trusted"
        out.print(printable(f"{told:<20} {row['validator']} ({who})  {row['request_hash']}"), markup=False)
    of_trusted = f"{counted.passed} passed, {counted.failed} failed, {counted.pending} pending"
    print_fields(out, [("trusted", of_trusted), ("simulated", f"{counted.simulated} (no hardware, not counted)")])


def _row(one: Validation, trusted: frozenset[str]) -> dict[str, Any]:
    key, answer = inline_key(one.request), one.answer
    return {
        "request_hash": one.request.request_hash,
        "validator": one.request.validator,
        "trusted": one.request.validator in trusted,
        "keyset_digest": None if key is None else key.keyset_digest,
        "response": None if answer is None else answer.response,
        "tag": None if answer is None else printable(answer.tag)[:64],
        "evidence_uri": None if answer is None else printable(answer.uri)[:2_048],
        "evidence_hash": None if answer is None else answer.content_hash,
        "block": one.request.position.block if answer is None else answer.position.block,
    }


def _absent(where: Place, *, as_json: bool) -> int:
    """That a chain has no such registry is normal."""
    if as_json:
        print_json({"deployed": False, "validations": []})
    else:
        click.echo(f"chain {where.chain_id} has no validation registry at {where.validation}: nobody can be asked")
    return 0


def _known(where: Place) -> str:
    if where.validation is None:
        raise TollsealError(
            f"no validation registry is known on chain {where.chain_id}", hint="Name it with --validation-registry."
        )
    return where.validation


async def _of_service(url: str) -> KeyInQuestion:
    # Whether it deserves a good answer is for the validator to say; here it only tells which key it has.
    async with ServiceChecker(policy=Policy(allow_simulated=True)) as checker:
        found = await checker.attest(httpx.URL(url))
    return _key(found.attestation, endpoint=str(httpx.URL(url).join("/")).rstrip("/"))


def _of_bundle(data: bytes) -> KeyInQuestion:
    bundle = parse_bundle(data)
    return _key(bundle.attestation, bundle=bundle.to_json())


def _key(attestation: Exchange, *, endpoint: str | None = None, bundle: dict[str, Any] | None = None) -> KeyInQuestion:
    keyset = parse_keyset(report.attestation_of(attestation)["workload_keyset"])
    return KeyInQuestion(
        agent=report.agent_of(attestation),
        keyset_digest=keyset.digest,
        payment_key=address_of(keyset.key(ALGO_PAYMENT).public_key),
        key_slot=report.key_slot_of(attestation),
        endpoint=endpoint,
        bundle=bundle,
    )
