"""From an agent's id to a service that can be checked: the chain, the file behind its URI, the domain's proof.

Nothing here is believed because the agent says it. The URI may lead anywhere, so it is followed with a guard
(`attestation.fetch`); the file must name the agent; the endpoint's domain must serve a file that names it too; and at
least one replica must have a key that the present owner has published. What the service itself can prove is for
`attestation.checker` to ask.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import httpx

from attestation.errors import EvidenceError, TollsealError
from attestation.evidence.appraisal import NotVerified
from attestation.fetch import FetchLimits, fetch
from attestation.onchain import AgentReference
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import RpcError
from attestation.registry.history import Entry, history
from attestation.registry.registration import (
    MAX_REGISTRATION_SIZE,
    WELL_KNOWN_PATH,
    Registration,
    parse_registration,
)
from attestation.verdict import Check, Result, Status, Verdict

PREFERRED: Final = ("web", "x402")
"""Names of services in a registration file that are looked at first, in lower case; then any that is on the web."""


def registration_limits(*, allow_private: bool) -> FetchLimits:
    """What fetching a registration file may take."""
    return FetchLimits(max_bytes=MAX_REGISTRATION_SIZE, allow_private=allow_private)


@dataclass
class Resolved:
    """What was found of an agent; what is None or empty was not found, and `checks` say why.

    endpoint: origin of the service, such as https://summaries.example.
    keys: its key records that stand, the oldest first.
    """

    agent: AgentReference
    owner: str | None = None
    agent_uri: str | None = None
    registration: Registration | None = None
    endpoint: httpx.URL | None = None
    keys: tuple[Entry, ...] = ()
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(check.status is not Status.PASS for check in self.checks)


async def resolve(reader: IdentityReader, agent: AgentReference, limits: FetchLimits, *, now: int) -> Resolved:
    """Follows an agent's id to its endpoint. Never raises for what chain, file or host say.

    Args:
        reader: the registry that `agent` names, through a node of the relying party's own choice.
        limits: see `registration_limits`.
        now: unix seconds.
    """
    found = Resolved(agent)
    steps: tuple[tuple[str, Callable[[], Awaitable[str]]], ...] = (
        ("agent.exists", lambda: _exists(reader, found)),
        ("agent.keys", lambda: _keys(reader, found, now)),
        ("agent.registration", lambda: _registration(found, limits)),
        ("agent.domain", lambda: _domain(found, limits)),
    )
    for check_id, step in steps:
        try:
            check = Check(check_id, Status.PASS, await step())
        except (NotVerified, RpcError) as outcome:
            check = Check(check_id, Status.NOT_VERIFIED, str(outcome))
        except TollsealError as error:
            check = Check(check_id, Status.FAIL, str(error))
        found.checks.append(check)
    return found


def joined(found: Resolved, service: Verdict | None) -> Verdict:
    """One verdict for the agent and its service; without the service's, the agent's checks alone decide."""
    checks = (*found.checks, *(service.checks if service else ()))
    if any(check.status is Status.FAIL for check in checks):
        result = Result.FAILED
    elif service is None or found.failed:
        result = Result.INCOMPLETE
    else:
        result = service.result
    return Verdict(result, checks, simulated_allowed=service.simulated_allowed if service else False)


async def _exists(reader: IdentityReader, found: Resolved) -> str:
    found.owner = await reader.owner_of(found.agent.agent_id)
    found.agent_uri = await reader.token_uri(found.agent.agent_id)
    return f"agent {found.agent.agent_id} belongs to {found.owner}"


async def _keys(reader: IdentityReader, found: Resolved, now: int) -> str:
    if found.owner is None:
        raise NotVerified("needs agent.exists")
    entries = [entry for entry in await history(reader, found.agent.agent_id) if entry.record is not None]
    shown = [entry for entry in entries if entry.until is None]
    standing = [entry for entry in shown if entry.lapsed is None]
    found.keys = tuple(standing)
    valid = [entry for entry in standing if entry.record is not None and entry.record.expires_at > now]
    if valid:
        return "; ".join(
            f"{entry.key} since block {entry.written.block}, until {entry.record.expires_at}"
            for entry in valid
            if entry.record is not None
        )
    if standing:
        raise EvidenceError("every key that the owner has published has expired")
    if shown:
        sold = max(entry.lapsed.block for entry in shown if entry.lapsed is not None)
        raise EvidenceError(
            f"the agent changed hands in block {sold}, after its keys were written; the new owner has confirmed none"
        )
    raise EvidenceError("no key is published" + (": all were emptied" if entries else ""))


async def _registration(found: Resolved, limits: FetchLimits) -> str:
    if found.agent_uri is None:
        raise NotVerified("needs agent.exists")
    if not found.agent_uri:
        raise EvidenceError("the agent has no URI")
    registration = parse_registration(await fetch(found.agent_uri, limits))
    if not registration.names(found.agent.registry_id, found.agent.agent_id):
        raise EvidenceError("the file behind the agent's URI does not name this agent")
    found.registration = registration
    found.endpoint = _endpoint(registration)
    if not registration.active:
        raise EvidenceError("the agent's own file says that it is not active")
    return f"{registration.name!r}, {len(registration.services)} service(s), at {found.endpoint or 'no web address'}"


def _endpoint(registration: Registration) -> httpx.URL | None:
    """Origin of the service that is to be asked."""
    on_the_web: list[tuple[int, httpx.URL]] = []
    for service in registration.services:
        try:
            url = httpx.URL(service.endpoint)
        except httpx.InvalidURL:
            continue
        if url.scheme in ("https", "http") and url.host and not url.userinfo:
            name = service.name.lower()
            order = PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
            on_the_web.append((order, url))
    if not on_the_web:
        return None
    _, chosen = min(on_the_web, key=lambda entry: entry[0])
    return chosen.copy_with(raw_path=b"/", fragment=None)


async def _domain(found: Resolved, limits: FetchLimits) -> str:
    if found.registration is None:
        raise NotVerified("needs agent.registration")
    if found.endpoint is None:
        raise EvidenceError("the agent's file names no service on the web")
    served = parse_registration(await fetch(str(found.endpoint.join(WELL_KNOWN_PATH)), limits))
    if not served.names(found.agent.registry_id, found.agent.agent_id):
        raise EvidenceError(f"{found.endpoint.host} serves the file of another agent")
    return f"{found.endpoint.host} says that it is this agent"
