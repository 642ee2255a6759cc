"""`tollseal agent find`: agents in the registry's events, and the files behind their URIs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import click

from attestation.agent_inspect import allow_private_option
from attestation.agent_options import Target, address_callback, registry_of, registry_options, short
from attestation.commands import print_json, run
from attestation.errors import TollsealError
from attestation.fetch import FetchLimits, fetch
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import UnknownAgentError
from attestation.registry.find import owned_by, registrations
from attestation.registry.registration import Registration, parse_registration
from attestation.resolve import registration_limits
from attestation.terminal import console, print_fields

FETCHES: Final = 8
"""Registration files that are fetched at the same time."""

Wanted = tuple[str | None, str | None]
"""Names of a service and of a kind of trust; None accepts any."""


@click.command()
@click.option("--owner", metavar="ADDRESS", callback=address_callback, help="Agents that this account holds now.")
@click.option("--registered-by", metavar="ADDRESS", callback=address_callback, help="Agents that it registered.")
@click.option("--service", metavar="NAME", help="Agents whose file lists this service (web, A2A, MCP, ...).")
@click.option("--trust", metavar="NAME", help="Agents whose file lists this kind of trust (tee-attestation, ...).")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Show at most this many.")
@click.option("--scan", type=click.IntRange(1, 10_000), default=500, show_default=True, help="Look at this many.")
@allow_private_option
@registry_options
@click.pass_context
def find(context: click.Context, /, owner: str | None, registered_by: str | None, service: str | None,
         trust: str | None, limit: int, scan: int, allow_private: bool, as_json: bool, **_: Any) -> None:  # fmt: skip
    """Find agents in the registry's events, the newest first: by owner, by who registered them, by what they offer."""
    limits = registration_limits(allow_private=allow_private)
    search = _find(registry_of(context), owner, registered_by, service, trust, limit, scan, limits, as_json=as_json)
    run(search, as_json=as_json)


async def _find(target: Target, owner: str | None, registered_by: str | None, service: str | None, trust: str | None,
                limit: int, scan: int, limits: FetchLimits, *, as_json: bool) -> int:  # fmt: skip
    wanted = None if service is None and trust is None else (service, trust)
    found: list[dict[str, Any]] = []
    looked = 0
    async with target.reader() as reader:
        candidates = _candidates(reader, owner, registered_by)
        batch: list[int] = []
        async for agent_id in candidates:
            batch.append(agent_id)
            looked += 1
            if len(batch) == FETCHES or looked == scan:
                found += await _matching(target, reader, batch, owner, wanted, limits)
                batch = []
            if len(found) >= limit or looked == scan:
                break
        found += await _matching(target, reader, batch, owner, wanted, limits)
    shown = found[:limit]
    if as_json:
        print_json({"agents": shown, "looked_at": looked, "complete": looked < scan and len(found) <= limit})
        return 0
    out = console()
    for item in shown:
        named = short(item.get("name") or item["agent_uri"]) or "no URI"
        print_fields(out, [(item["agent"], f"{item['owner']}  {named}")])
    more = "" if looked < scan else f"; {scan} agents were looked at, --scan looks at more"
    out.print(f"{len(shown)} agent(s){more}", markup=False)
    return 0


async def _candidates(reader: IdentityReader, owner: str | None, registered_by: str | None) -> AsyncIterator[int]:
    if owner is not None:
        for agent_id in reversed(await owned_by(reader, owner)):
            yield agent_id
        return
    async for registered in registrations(reader, registered_by=registered_by):
        yield registered.agent_id


async def _matching(target: Target, reader: IdentityReader, agents: list[int], owner: str | None,
                    wanted: Wanted | None, limits: FetchLimits) -> list[dict[str, Any]]:  # fmt: skip
    looked = await asyncio.gather(*(_look(target, reader, agent_id, wanted, limits) for agent_id in agents))
    return [item for item in looked if item is not None and (owner is None or item["owner"] == owner)]


async def _look(target: Target, reader: IdentityReader, agent_id: int, wanted: Wanted | None,
                limits: FetchLimits) -> dict[str, Any] | None:  # fmt: skip
    try:
        holder, uri = await reader.owner_of(agent_id), await reader.token_uri(agent_id)
    except UnknownAgentError:
        return None  # it was burnt
    item: dict[str, Any] = {"agent": str(target.reference(agent_id)), "owner": holder, "agent_uri": uri}
    if wanted is None:
        return item
    try:
        registration = parse_registration(await fetch(uri, limits))
    except TollsealError:
        return None  # what cannot be read offers nothing
    if not _offers(registration, *wanted):
        return None
    return item | {
        "name": registration.name,
        "services": [service.name for service in registration.services],
        "supported_trust": list(registration.supported_trust),
        "names_itself": registration.names(target.reference(agent_id).registry_id, agent_id),
    }


def _offers(registration: Registration, service: str | None, trust: str | None) -> bool:
    services = {each.name.lower() for each in registration.services}
    return (service is None or service.lower() in services) and (
        trust is None or trust.lower() in {each.lower() for each in registration.supported_trust}
    )
