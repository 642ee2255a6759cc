"""``/agent``: what the chain says about this agent, next to what it serves; a page for people, JSON for programs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from attestation.feedback_check import summarize
from attestation.html_report import CONTENT_SECURITY_POLICY
from attestation.manifest import PATH as MANIFEST_PATH
from attestation.registry.validation import Validation
from attestation.validation import inline_key, standing
from service.explorer import Explorer, NotRead, OnChain
from service.http import paths
from service.http.agent_page import render
from service.http.openapi import responses
from service.http.state import service_of

if TYPE_CHECKING:
    from service.app import Service

__all__ = ["Explorer", "router"]

SHOWN: Final = 50
"""Ratings and validations that are listed, the newest; all of them are counted."""

_ICON: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">\
<circle cx="32" cy="32" r="28" fill="#0a6b2d"/>\
<circle cx="32" cy="32" r="21" fill="none" stroke="#fff" stroke-width="2"/>\
<path d="M21 33l8 8 15-18" fill="none" stroke="#fff" stroke-width="5"/></svg>
"""

router = APIRouter(tags=["identity"])


@router.get(
    paths.AGENT_PAGE,
    response_model=None,
    responses=responses("The agent, as a page or as JSON.", media_type="text/html"),
)
async def agent_page(request: Request) -> Response:
    """The agent on the chain and as it serves, side by side; JSON where `Accept` asks for that and not for HTML."""
    accept = request.headers.get("accept", "")
    if "application/json" in accept and "text/html" not in accept:
        return await agent_json(request)
    headers = {**_HEADERS, "content-security-policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'"}
    return Response(render(await _document(request)), media_type="text/html; charset=utf-8", headers=headers)


@router.get(paths.AGENT_JSON, responses=responses("The agent, as the chain and the service have it."))
async def agent_json(request: Request) -> JSONResponse:
    """The same as ``/agent``, always as JSON."""
    return JSONResponse(await _document(request), headers=_HEADERS)


@router.get(paths.AGENT_ICON, response_class=Response, responses=responses("The image.", media_type="image/svg+xml"))
async def agent_icon() -> Response:
    """The agent's image, as its registration file names it."""
    return Response(_ICON, media_type="image/svg+xml", headers={"cache-control": "public, max-age=86400"})


_HEADERS: Final = {"cache-control": "public, max-age=5", "vary": "accept", "referrer-policy": "no-referrer"}


async def _document(request: Request) -> dict[str, Any]:
    service = service_of(request)
    explorer: Explorer = request.app.state.explorer
    serves = _serves(service)
    agent = service.identity.agent
    found = NotRead("the agent is not registered yet", service.clock()) if agent is None else await explorer.read(agent)
    document: dict[str, Any] = {
        "agent": None if agent is None else str(agent),
        "as_of": found.read_at,
        "serves": serves,
    }
    if not isinstance(found, OnChain):
        return {**document, "chain": {"reachable": False, "reason": found.reason}, "agrees": None}
    chain = _chain(service, found)
    slot = next((one for one in chain["keys"] if one["slot"] == serves["key_slot"]), None)
    agrees = {
        "manifest": not found.profile.manifest_stale and found.profile.manifest_digest == serves["manifest_digest"],
        "key": slot is not None and not slot["stale"] and slot["keyset_digest"] == serves["keyset_digest"],
    }
    return {**document, "chain": chain, "agrees": agrees}


def _serves(service: "Service") -> dict[str, Any]:
    current = service.keyholder.current
    return {
        "manifest_digest": current.identity.manifest_digest,
        "keyset_digest": current.identity.keyset.digest,
        "payment_key": current.keys.payment_address,
        "key_slot": current.key_slot,
        "expires_at": current.identity.keyset.not_after,
        "tee_type": service.enclave.tee_type,
        "hardware": service.enclave.is_hardware,
        "is_paid": [
            {"network": option.network, "asset": option.asset, "pay_to": option.pay_to}
            for option in service.settings.payment_options
        ],
        "links": {
            "registration": paths.REGISTRATION,
            "manifest": MANIFEST_PATH,
            "attestation": paths.ATTESTATION,
            "json": paths.AGENT_JSON,
        },
    }


def _chain(service: "Service", found: OnChain) -> dict[str, Any]:
    profile = found.profile
    trusted = frozenset(address.lower() for address in service.settings.trusted_validators)
    return {
        "reachable": True,
        "block": profile.block,
        "owner": profile.owner,
        "wallet": profile.wallet,
        "uri": profile.uri[:2_048],
        "manifest": {"digest": profile.manifest_digest, "stale": profile.manifest_stale},
        "keys": [
            {
                "slot": slot.name[:64],
                "payment_key": None if slot.record is None else slot.record.payment_key,
                "keyset_digest": None if slot.record is None else slot.record.keyset_digest,
                "expires_at": None if slot.record is None else slot.record.expires_at,
                "stale": slot.stale,
                "block": slot.block,
            }
            for slot in profile.slots
        ],
        "validations": None
        if found.validations is None
        else {
            "standing": asdict(standing(found.validations, trusted)),
            "list": [_validation(one, trusted) for one in found.validations[: -SHOWN - 1 : -1]],
        },
        "ratings": None
        if found.ratings is None
        else {
            **asdict(summarize(found.ratings)),
            "list": [one.to_json() for one in found.ratings[: -SHOWN - 1 : -1]],
        },
    }


def _validation(one: Validation, trusted: frozenset[str]) -> dict[str, Any]:
    key, answer = inline_key(one.request), one.answer
    return {
        "validator": one.request.validator,
        "trusted": one.request.validator in trusted,
        "request_hash": one.request.request_hash,
        "keyset_digest": None if key is None else key.keyset_digest,
        "response": None if answer is None else answer.response,
        "tag": None if answer is None else answer.tag[:64],
        "evidence_uri": None if answer is None else answer.uri[:2_048],
        "block": one.request.position.block if answer is None else answer.position.block,
    }
