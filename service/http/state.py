"""How a resource finds the service it belongs to."""

from typing import TYPE_CHECKING

from starlette.requests import Request

if TYPE_CHECKING:
    from service.app import Service


def service_of(request: Request) -> "Service":
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service
