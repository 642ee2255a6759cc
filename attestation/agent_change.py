"""Making a change to an agent, or showing what it would take: what each writing command of `tollseal agent` ends in."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from attestation.account import open_signer
from attestation.agent_options import PRICE_DECIMALS, Change, Target
from attestation.commands import print_json, run
from attestation.money import format_amount, parse_amount
from attestation.registry.plan import PlanEndsError, PlanningWriter
from attestation.registry.publication import Publication
from attestation.registry.sender import Planned
from attestation.registry.writer import IdentityWriter
from attestation.terminal import console, print_fields, printable

WEI_DECIMALS: Final = 18

Act = Callable[[IdentityWriter], Awaitable[Publication | None]]
"""Makes a change with a writer; None when there is nothing to say but that nothing was to be done."""


@asynccontextmanager
async def writing(target: Target, change: Change) -> AsyncIterator[IdentityWriter]:
    """A writer for one command, which only plans in a dry run. The registry is checked before the key is looked at."""
    async with target.reader() as reader:
        await reader.check()
        made = PlanningWriter if change.dry_run else IdentityWriter
        yield made(reader, await open_signer(change.keys), fees=change.fees, confirmations=change.confirmations)


def perform(target: Target, change: Change, act: Act, *, as_json: bool, agent_id: int | None = None) -> None:
    """Make a change, or show what it would take. Ends the program."""

    async def work() -> int:
        done: Publication | None = None
        note = None
        async with writing(target, change) as writer:
            try:
                done = await act(writer)
            except PlanEndsError as end:
                note = str(end)
            planned = tuple(writer.planned) if isinstance(writer, PlanningWriter) else ()
            account = writer.address
        found = done.agent_id if agent_id is None and done is not None else agent_id
        result: dict[str, Any] = {
            "agent": None if found is None or note else str(target.reference(found)),
            "account": account,
            "dry_run": change.dry_run,
        }
        if change.dry_run:
            result |= plan_json(planned, change.eth_price, note)
        else:
            result |= {
                "changed": bool(done is not None and done.transactions),
                "transactions": list(done.transactions) if done else [],
                "gas_used": done.gas_used if done else 0,
            }
            if done is not None and done.withdrawn is not None:
                result["withdrawn"] = done.withdrawn
        if as_json:
            print_json(result)
        else:
            _show(result)
        return 0

    run(work(), as_json=as_json)


def plan_json(planned: tuple[Planned, ...], eth_price: str | None, note: str | None = None) -> dict[str, Any]:
    """What transactions would cost: each, and all of them."""
    cost, most = sum(item.cost for item in planned), sum(item.max_cost for item in planned)
    totals: dict[str, Any] = {
        "changed": bool(planned),
        "transactions": [
            {
                "what": item.what,
                "from": item.sender,
                "to": item.to.lower(),
                "data": item.data,
                "gas": item.gas,
                "gas_limit": item.gas_limit,
                "fee_per_gas_wei": str(item.fee),
                "max_fee_per_gas_wei": str(item.max_fee),
                **_costs(item.cost, item.max_cost, eth_price),
            }
            for item in planned
        ],
        "gas": sum(item.gas for item in planned),
        **_costs(cost, most, eth_price),
    }
    if note is not None:
        totals["note"] = note
    return totals


def _costs(cost: int, most: int, eth_price: str | None) -> dict[str, str]:
    """Costs in wei and, exactly, in US dollars."""
    costs = {"cost_wei": str(cost), "max_cost_wei": str(most)}
    if eth_price is not None:
        price = parse_amount(eth_price, PRICE_DECIMALS, "--eth-price")
        decimals = WEI_DECIMALS + PRICE_DECIMALS
        costs |= {
            "cost_usd": format_amount(cost * price, decimals),
            "max_cost_usd": format_amount(most * price, decimals),
        }
    return costs


def _show(result: dict[str, Any]) -> None:
    out = console()
    if not result["changed"]:
        out.print("nothing to do: the chain shows it already", markup=False)
        return
    if not result["dry_run"]:
        fields = [("agent", str(result["agent"]))] if result["agent"] else []
        fields += [("transaction", str(sent)) for sent in result["transactions"]]
        fields.append(("gas", f"{result['gas_used']:,}"))
        if "withdrawn" in result:
            fields.append(
                ("withdrawn", f"agent {result['withdrawn']}: another process registered one at the same time")
            )
        print_fields(out, fields)
        return
    show_plan(result)


def show_plan(result: dict[str, Any]) -> None:
    """A `plan_json` for people."""
    out = console()
    for item in result["transactions"]:
        print_fields(
            out,
            [
                (item["what"], ""),
                ("  to", item["to"]),
                ("  data", item["data"]),
                ("  gas", f"{item['gas']:,} (limit {item['gas_limit']:,})"),
                ("  cost", _cost_text(item)),
            ],
        )
    print_fields(out, [("total gas", f"{result['gas']:,}"), ("total cost", _cost_text(result))])
    if "note" in result:
        out.print(printable(str(result["note"])), markup=False)
    out.print("dry run: nothing was sent", markup=False)


def _cost_text(item: dict[str, Any]) -> str:
    ether = f"{format_amount(int(item['cost_wei']), WEI_DECIMALS)} ETH"
    most = f"at most {format_amount(int(item['max_cost_wei']), WEI_DECIMALS)} ETH"
    dollars = f", {item['cost_usd']} USD (at most {item['max_cost_usd']})" if "cost_usd" in item else ""
    return f"{ether} ({most}){dollars}"
