"""``/v1/aci``: the attestation report and the receipts (aci/1 sections 4 and 7.1)."""

import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import JSONResponse

from attestation.errors import EnclaveError, MalformedError
from attestation.keyset import check_nonce, report_data, report_data_slot
from attestation.report import SERVING_DIRECT, build_report
from service.http.health import agent_name
from service.http.openapi import responses
from service.http.problems import Problem, unavailable
from service.http.state import answer_under, service_of
from service.payment.ledger import LedgerUnavailableError

router = APIRouter(prefix="/v1/aci", tags=["attestation"])

# The framework only describes the form; a nonce of another one is refused in our own words.
_NONCE: Final = Query(
    description="64 lower-case hex characters", json_schema_extra={"type": "string", "pattern": "^[0-9a-f]{64}$"}
)


@router.get(
    "/attestation",
    responses=responses(
        "The report.",
        status_400="The nonce is malformed.",
        status_422="A parameter is malformed.",
        status_503="There is no evidence now.",
    ),
)
async def attestation(request: Request, nonce: Annotated[str | None, _NONCE] = None) -> JSONResponse:
    """What workload and which keys serve this API, with evidence over your nonce."""
    service = service_of(request)
    if len(request.query_params.getlist("nonce")) > 1:
        raise Problem(400, "malformed-nonce", "Malformed nonce", "nonce: must be given once", field="nonce")
    try:
        if nonce is not None:
            check_nonce(nonce)
    except MalformedError as error:
        raise Problem(400, "malformed-nonce", "Malformed nonce", str(error), field="nonce") from error
    # The keys may be replaced while evidence is gathered; the report and its signature stay under these.
    credentials = service.keyholder.current
    answer_under(request, credentials)
    keyset = credentials.identity.keyset
    slot = report_data_slot(report_data(keyset.digest, nonce))
    try:
        evidence = await service.enclave.evidence(slot, now=service.clock())
    except EnclaveError as error:
        raise unavailable("no-evidence", "No evidence", str(error), retry_after=5) from error
    settings = service.settings
    report = build_report(
        keyset,
        nonce=nonce,
        tee_type=service.enclave.tee_type,
        evidence=evidence,
        provenance={
            "repo_url": settings.source_url,
            "repo_commit": service.manifest["source"]["commit"],
            "image_digest": settings.image_digest,
            "image_provenance": None,
        },
        serving=SERVING_DIRECT,
        agent_registration={
            "agent": agent_name(service),
            "key_slot": credentials.key_slot,
            "registered": service.keyholder.registered,
            **({} if service.keyholder.problem is None else {"problem": service.keyholder.problem}),
        },
    )
    return JSONResponse(report, headers={"cache-control": "no-store"})


@router.get(
    "/receipts/{identifier}",
    responses=responses(
        "The receipt.",
        status_404="There is none with this id, or it is too old.",
        status_422="The id is malformed.",
        status_503="Receipts cannot be read now.",
    ),
)
async def receipt(request: Request, identifier: str) -> JSONResponse:
    """The signed receipt of a paid answer, by receipt id or answer id."""
    try:
        found = await service_of(request).ledger.receipt(identifier)
    except LedgerUnavailableError as error:
        raise unavailable("ledger", "Ledger unavailable", "Receipts cannot be read now.", retry_after=5) from error
    if found is None:
        raise Problem(404, "not-found", "Not found", "There is no receipt with this id, or it is too old.")
    document: dict[str, Any] = json.loads(found)
    # Whoever has just bought it attested the keyset that it names, which may have been replaced meanwhile.
    for credentials in service_of(request).keyholder.valid:
        if credentials.identity.keyset.digest == document["workload_keyset_digest"]:
            answer_under(request, credentials)
    return JSONResponse(document, headers={"cache-control": "private, no-transform"})
