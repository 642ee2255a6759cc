"""How a resource finds the service it belongs to, and says under which keys its answer leaves."""

from typing import TYPE_CHECKING, Final

from starlette.requests import Request

if TYPE_CHECKING:
    from service.app import Service
    from service.credentials import Credentials

CREDENTIALS: Final = "credentials"
"""Where the credentials that an answer is to be signed under stand in the ASGI scope's `state`."""


def service_of(request: Request) -> "Service":
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


def answer_under(request: Request, credentials: "Credentials") -> None:
    """Have the answer to this request signed under these credentials; without, it is signed under the current ones."""
    request.scope["state"][CREDENTIALS] = credentials
