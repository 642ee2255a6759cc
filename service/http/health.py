"""Liveness and readiness. `healthz` says that the process answers, `readyz` that the next paid call would work."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from service.http.openapi import SIGNED, responses
from service.http.state import service_of

if TYPE_CHECKING:
    from service.app import Service

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=responses("The process answers."))
async def healthz() -> dict[str, str]:
    """200 while the process answers."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    responses={
        **responses("The next paid call would work."),
        503: {
            "description": "It would not; the body says why.",
            "headers": SIGNED,
            "content": {"application/json": {}},
        },
    },
)
async def readyz(request: Request) -> JSONResponse:
    """200 when the next paid call would work; 503 with the reasons when it would not."""
    service = service_of(request)
    problems = await unreadiness(service)
    body: dict[str, Any] = {
        "ready": not problems,
        "problems": problems,
        "agent": agent_name(service),
        "registered": service.keyholder.registered,
        "model": service.backend.identity.name,
    }
    return JSONResponse(body, status_code=503 if problems else 200, headers={"cache-control": "no-store"})


async def unreadiness(service: "Service") -> list[str]:
    """What would make the next paid call fail, one sentence each; empty when all is well."""
    return [*unconfirmed(service), *await service.readiness.problems()]


def agent_name(service: "Service") -> str | None:
    """The agent's reference; None while it has none."""
    agent = service.identity.agent
    return None if agent is None else str(agent)


def unconfirmed(service: "Service") -> list[str]:
    """Why nothing may be sold under the present keys, now or any more."""
    current = service.keyholder.current
    if service.keyholder.problem is not None:
        return [service.keyholder.problem]
    if service.keyholder.may_sell(current):
        return []
    left = current.identity.keyset.not_after - service.clock()
    return [f"the keyset expires in {left} s, and could not be replaced so far"]
