"""``/.well-known``: what strangers look for first."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from attestation.http_signature import DIRECTORY_PATH, key_directory
from attestation.keyset import ALGO_HTTP
from attestation.manifest import PATH as MANIFEST_PATH
from service.http import paths
from service.http.openapi import responses
from service.http.state import service_of

router = APIRouter(tags=["identity"])


class KeyDirectory(JSONResponse):
    """A JSON Web Key Set in the media type of its well-known place."""

    media_type = "application/http-message-signatures-directory+json"


@router.get(paths.REGISTRATION, responses=responses("The registration file."))
async def agent_registration(request: Request) -> JSONResponse:
    """The agent's ERC-8004 registration file; served here, it proves that the agent controls this domain."""
    service = service_of(request)
    return JSONResponse(dict(service.registration(service.identity.agent)))


@router.get(
    DIRECTORY_PATH,
    response_class=KeyDirectory,
    responses=responses("The key set.", media_type=KeyDirectory.media_type),
)
async def key_directory_(request: Request) -> KeyDirectory:
    """The keys that sign responses, as a JSON Web Key Set: the current one first, then those that have not expired."""
    keys = [credentials.identity.keyset.key(ALGO_HTTP) for credentials in service_of(request).keyholder.valid]
    return KeyDirectory(key_directory(*keys))


@router.get(MANIFEST_PATH, responses=responses("The manifest."))
async def tee_manifest(request: Request) -> JSONResponse:
    """The build manifest; its RFC 8785 form hashes to the digest that receipts and the chain carry."""
    return JSONResponse(dict(service_of(request).manifest))
