"""Routes whose endpoints take the request as it came."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response


class DirectRoute(APIRoute):
    """Calls ``async def endpoint(request) -> Response`` and nothing else.

    What is sold is bound to the exact bytes of a request, so its endpoints read and check the body themselves. Looking
    for parameters and dependencies that are not there costs as much as a signature, on every paid call.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint
