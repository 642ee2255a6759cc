"""The HTTP application: which resource answers where, and the layers around them all."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from attestation.enclave import Enclave
from attestation.onchain import AgentReference
from service.call import PaidCalls
from service.credentials import Identity, Keyholder
from service.http import aci, agent, chat, facilitator, health, paths, problems, summarize, well_known
from service.http.direct import Direct
from service.http.signing import SigningMiddleware
from service.inference.admission import Admission
from service.inference.backend import Backend
from service.inference.summary import Summarizer
from service.payment.facilitator import Facilitator
from service.payment.ledger import Ledger
from service.payment.local import LocalFacilitator
from service.publication import AgentPublication
from service.readiness import Readiness
from service.rotation import Rotation
from service.settings import Settings

EXPOSED_HEADERS: Final = (
    "payment-required",
    "payment-response",
    "retry-after",
    "content-digest",
    "signature",
    "signature-input",
    "x-aci-version",
    "x-aci-keyset-digest",
    "x-receipt",
    "x-receipt-id",
)
"""What a browser may read of our answers besides the body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything that answers a request. Made by `service.boot`, handed to the resources as `app.state.service`."""

    settings: Settings
    enclave: Enclave
    keyholder: Keyholder
    rotation: Rotation
    publication: AgentPublication | None = None
    """None where no chain stands behind the service."""
    manifest: Mapping[str, Any]
    registration: Callable[[AgentReference | None], Mapping[str, Any]]
    """The registration file of an agent."""
    backend: Backend
    summarizer: Summarizer
    admission: Admission
    facilitator: Facilitator
    readiness: Readiness
    ledger: Ledger
    calls: PaidCalls
    tls: ssl.SSLContext | None
    """Serves HTTPS with the enclave's key; None where a proxy ends TLS."""
    clock: Callable[[], int]
    served: tuple[LocalFacilitator, ...] = ()
    """The facilitators that others may use too, one for each network."""

    @property
    def identity(self) -> Identity:
        """Who answers now."""
        return self.keyholder.current.identity


def create_app(service: Service) -> ASGIApp:
    """The application that serves `service`, with every response signed."""
    app = FastAPI(
        title="Tollseal",
        summary="Summaries, paid by the call with x402, with proof of who answered.",
        version=service.settings.replica,
        # A redirect is an answer whose Location no signature covers. A path is right or it is unknown.
        redirect_slashes=False,
        # FastAPI's own telemetry would keep the bodies of refused requests, and exceptions with what they quote.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.service = service
    app.state.explorer = agent.Explorer(service.settings, clock=service.clock)
    problems.install(app)
    offers = (summarize, chat) if service.settings.chat else (summarize,)
    for resource in (*offers, aci, agent, well_known, health):
        app.include_router(resource.router)
    if service.served:
        app.include_router(facilitator.router_for(service.served))
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST"],
        # OpenAI's client in a browser names a dozen of its own; no request is trusted for its headers.
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
    sold = {paths.SUMMARIZE: summarize.summarize}
    if service.settings.chat:
        sold[paths.CHAT] = chat.chat_completions
    return SigningMiddleware(
        Direct(app, sold),
        keyholder=service.keyholder,
        public_origin=service.settings.public_url,
        clock=service.clock,
    )
