"""`tollseal feedback`: rates an agent with the proof of a payment, and tells paid ratings from the others."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from attestation import report
from attestation.account import open_signer
from attestation.agent_change import plan_json, show_plan
from attestation.agent_inspect import allow_private_option
from attestation.agent_options import Change, signing_options
from attestation.bundle import parse_bundle
from attestation.buyer_cli import BUYER_KEY
from attestation.checker import unix_now
from attestation.commands import json_option, print_json, rpc_option, run
from attestation.devstack import local_stack
from attestation.encoding import address
from attestation.errors import MalformedError, TollsealError
from attestation.feedback import MAX_FEEDBACK_BYTES, Score, build_feedback, parse_feedback, parse_score
from attestation.feedback_check import CheckedRating, FeedbackChecker, summarize
from attestation.fetch import FetchLimits, data_content, fetch
from attestation.onchain import AgentReference
from attestation.publishing import Publisher, content_hash
from attestation.purchase import parse_payment
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.payments import PaymentReader
from attestation.registry.reputation import ReputationReader, ReputationWriter, decimal_text
from attestation.registry.sender import Planned, Sender
from attestation.registry.signer import Signer
from attestation.registry_options import (
    Place,
    agent_argument,
    change_as,
    from_block_option,
    place,
    publisher_options,
    reputation_option,
)
from attestation.spending import KNOWN_ASSETS
from attestation.terminal import console, print_fields, printable


@click.group()
def feedback() -> None:
    """Rate agents, and read ratings (ERC-8004). A rating is paid when the chain shows what was paid for it."""


def _score(_context: click.Context, _parameter: click.Parameter, value: str) -> Score:
    try:
        return parse_score(value)
    except MalformedError as error:
        raise click.BadParameter(str(error)) from error


@feedback.command()
@click.argument("bundle", type=click.File("rb"))
@click.option(
    "--score", required=True, callback=_score, metavar="N", help="0 (useless) to 100 (perfect), decimals allowed."
)
@click.option("--tag", "tags", multiple=True, metavar="WORD", help="What the score is about; at most two.")
@publisher_options
@rpc_option
@reputation_option
@from_block_option
@partial(signing_options, key_env=BUYER_KEY)
@json_option
@click.pass_context
def give(context: click.Context, /, bundle: Any, score: Score, tags: tuple[str, ...], publisher: Publisher,
         rpc: str | None, reputation_registry: str | None, from_block: int, as_json: bool,
         **_: Any) -> None:  # fmt: skip
    """Rate the agent that a saved BUNDLE was bought from.

    The rating points at a file with the proof of payment, and nothing of the document or the answer. Without
    --document-dir the file goes onto the chain itself. The account that paid must rate; its key comes from
    TOLLSEAL_BUYER_KEY, and it needs gas.
    """
    if len(tags) > 2:
        raise click.UsageError("at most two tags")
    change = change_as(context, BUYER_KEY)

    async def work() -> int:
        purchase = parse_bundle(bundle.read())
        payer, agent = parse_payment(purchase.answer).payer, report.agent_of(purchase.attestation)
        signer = await open_signer(change.keys)
        if signer.address != payer:
            raise TollsealError(
                f"{payer} paid for this, and {signer.address} would rate it: the rating would not count"
            )
        first, second = (*tags, "", "")[:2]
        document = build_feedback(purchase, score, tags=(first, second), now=unix_now())
        where = place(rpc, agent.chain_id, identity=agent.registry, reputation=reputation_registry)
        async with IdentityReader(where.rpc, where.chain_id, where.identity, from_block=from_block) as identity:
            writer = _writer(identity, where, signer, change)
            await _refuse_second(writer, agent, document)
            uri = publisher.uri(document)
            rating: dict[str, Any] = {
                "tags": (first, second),
                "endpoint": purchase.answer.url,
                "uri": uri,
                "content_hash": content_hash(document),
            }
            if change.dry_run:
                call = await writer.give_call(agent.agent_id, score.value, score.decimals, **rating)
                _show_plan(await writer.sender.plan(call, "rating the agent"), change, as_json=as_json)
                return 0
            publisher.publish(document)
            sent = await writer.give(agent.agent_id, score.value, score.decimals, **rating)
        told = {
            "agent": str(agent),
            "score": decimal_text(score.value, score.decimals),
            "hash": rating["content_hash"],
            "transaction": sent.transaction,
        }
        if as_json:
            print_json({**told, "uri": uri, "gas_used": sent.gas_used, "dry_run": False})
        else:
            place_ = f"on the chain, {len(document)} bytes" if publisher.inline else uri
            print_fields(console(), [*told.items(), ("file", place_), ("gas", f"{sent.gas_used:,}")])
        return 0

    run(work(), as_json=as_json)


def _writer(identity: IdentityReader, where: Place, signer: Signer, change: Change) -> ReputationWriter:
    sender = Sender(identity.chain, signer, fees=change.fees, confirmations=change.confirmations)
    return ReputationWriter(ReputationReader(identity, _known(where)), sender)


def _show_plan(planned: Planned, change: Change, *, as_json: bool) -> None:
    plan = plan_json((planned,), change.eth_price)
    if as_json:
        print_json({"dry_run": True, "transaction": None, **plan})
    else:
        show_plan(plan)


async def _refuse_second(writer: ReputationWriter, agent: AgentReference, document: bytes) -> None:
    """One payment, one rating: a second one costs gas and does not count."""
    nonce = _nonce(document)
    for one in await writer.reader.ratings(agent.agent_id, client=writer.sender.address):
        if one.revoked:
            continue
        try:
            given = data_content(one.uri, max_bytes=MAX_FEEDBACK_BYTES)
            used = _nonce(given)
        except TollsealError:
            continue
        if used == nonce:
            raise TollsealError(
                f"this payment was used for rating {one.index} already ({one.number}): a second one would not count",
                hint=f"`tollseal feedback revoke {agent} {one.index}` takes that one back.",
            )


def _nonce(document: bytes) -> str | None:
    signed = parse_feedback(document).signed
    return None if signed is None else signed.nonce


@feedback.command()
@click.argument("agent", callback=agent_argument)
@click.argument("index", type=click.IntRange(min=1))
@rpc_option
@reputation_option
@from_block_option
@partial(signing_options, key_env=BUYER_KEY)
@json_option
@click.pass_context
def revoke(context: click.Context, /, agent: AgentReference, index: int, rpc: str | None,
           reputation_registry: str | None, from_block: int, as_json: bool, **_: Any) -> None:  # fmt: skip
    """Take back the rating of AGENT that this account gave as its INDEX-th; the key comes from TOLLSEAL_BUYER_KEY."""
    change = change_as(context, BUYER_KEY)
    where = place(rpc, agent.chain_id, identity=agent.registry, reputation=reputation_registry)

    async def work() -> int:
        async with IdentityReader(where.rpc, where.chain_id, where.identity, from_block=from_block) as identity:
            writer = _writer(identity, where, await open_signer(change.keys), change)
            if change.dry_run:
                call = await writer.revoke_call(agent.agent_id, index)
                _show_plan(await writer.sender.plan(call, "revoking a rating"), change, as_json=as_json)
                return 0
            sent = await writer.revoke(agent.agent_id, index)
        if as_json:
            print_json({"transaction": sent.transaction, "gas": sent.gas_used})
        else:
            print_fields(console(), [("transaction", sent.transaction)])
        return 0

    run(work(), as_json=as_json)


def _assets(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> frozenset[tuple[int, str]]:
    found = set()
    for item in value:
        network, _, token = item.removeprefix("eip155:").rpartition(":")
        try:
            found.add((int(network), address(token, "--asset")))
        except (MalformedError, ValueError) as error:
            raise click.BadParameter("must be eip155:<chain id>:<token address>") from error
    return frozenset(found)


def _nodes(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> dict[int, str]:
    found = {}
    for item in value:
        chain, _, url = item.partition("=")
        if not chain.isdecimal() or not url.startswith(("http://", "https://")):
            raise click.BadParameter("must be <chain id>=<http or https URL>")
        found[int(chain)] = url
    return found


asset_option = click.option(
    "--asset", "assets", multiple=True, callback=_assets, metavar="NETWORK:ADDRESS",
    help="Also count payments in this token, such as eip155:84532:0x036C...",
)  # fmt: skip
payment_rpc_option = click.option(
    "--payment-rpc", "nodes", multiple=True, callback=_nodes, metavar="CHAIN=URL",
    help="Node of another chain on which payments were made; may be repeated.",
)  # fmt: skip


@feedback.command("list")
@click.argument("agent", callback=agent_argument)
@rpc_option
@reputation_option
@from_block_option
@asset_option
@payment_rpc_option
@allow_private_option
@json_option
def list_(agent: AgentReference, as_json: bool, **how: Any) -> None:
    """Show the ratings of AGENT, which of them were paid for, and why the others were not.

    AGENT is <chain id>:<identity registry>:<agent id>.
    """

    async def work() -> int:
        async with _checker(agent, **how) as checker:
            ratings = await checker.check(agent.agent_id)
        if as_json:
            print_json({"agent": str(agent), "ratings": [one.to_json() for one in ratings]})
            return 0
        out = console()
        for one in ratings:
            out.print(printable(_line(one)), markup=False)
        if not ratings:
            out.print(f"nobody has rated {agent}", markup=False)
        return 0

    run(work(), as_json=as_json)


@feedback.command()
@click.argument("agent", callback=agent_argument)
@click.option("--tag", metavar="WORD", help="Count only ratings with this first tag.")
@rpc_option
@reputation_option
@from_block_option
@asset_option
@payment_rpc_option
@allow_private_option
@json_option
def summary(agent: AgentReference, tag: str | None, as_json: bool, **how: Any) -> None:
    """Show what the ratings of AGENT come to: all of them, and beside them those that were paid for."""

    async def work() -> int:
        async with _checker(agent, **how) as checker:
            found = summarize(await checker.check(agent.agent_id), tag=tag)
        if as_json:
            print_json({"agent": str(agent), "tag": tag, **asdict(found)})
            return 0
        rows = [("all", found.all), ("paid", found.paid)]
        print_fields(
            console(),
            [(name, f"{numbers.count} ratings, mean {numbers.mean or 'none'}") for name, numbers in rows],
        )
        return 0

    run(work(), as_json=as_json)


@asynccontextmanager
async def _checker(
    agent: AgentReference,
    *,
    rpc: str | None,
    reputation_registry: str | None,
    from_block: int,
    assets: frozenset[tuple[int, str]],
    nodes: dict[int, str],
    allow_private: bool,
) -> AsyncIterator[FeedbackChecker]:
    where = place(rpc, agent.chain_id, identity=agent.registry, reputation=reputation_registry)
    limits = FetchLimits(max_bytes=MAX_FEEDBACK_BYTES, allow_private=allow_private or where.local)
    known = {(int(one.network.removeprefix("eip155:")), one.address) for one in KNOWN_ASSETS}
    stack = local_stack() if where.local else None
    if stack is not None:
        known.add((stack.chain_id, stack.token.lower()))
    async with AsyncExitStack() as resources:
        identity = IdentityReader(where.rpc, where.chain_id, where.identity, from_block=from_block)
        await resources.enter_async_context(identity)
        readers = {
            chain: await resources.enter_async_context(PaymentReader(url, chain))
            for chain, url in {where.chain_id: where.rpc, **nodes}.items()
        }
        reader = ReputationReader(identity, _known(where))
        if not await reader.deployed():
            raise TollsealError(f"chain {where.chain_id} has no reputation registry at {reader.address}")
        yield FeedbackChecker(reader, readers, known | assets, lambda uri: fetch(uri, limits))


def _line(one: CheckedRating) -> str:
    rating = one.rating
    about = " ".join(tag[:32] for tag in (rating.tag1, rating.tag2) if tag)
    state = "paid" if one.paid else "unpaid"
    return f"{state:<8}{rating.number:>8}  {rating.client} #{rating.index}  {about}  {one.reason}"


def _known(where: Place) -> str:
    if where.reputation is None:
        raise TollsealError(
            f"no reputation registry is known on chain {where.chain_id}", hint="Name it with --reputation-registry."
        )
    return where.reputation
