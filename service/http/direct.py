"""The short way to what is sold: a request whose path and method are known goes straight to its endpoint.

What is sold is bound to the exact bytes of a request, so these endpoints take it as it came. The framework's layers,
which look for routes, parameters, dependencies and allowed origins, cost as much as three signatures on every call.
They still describe the endpoints, and serve everything else: other paths, other methods, browsers of other origins.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.problems import Problem

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """Calls endpoints for what they answer, and the application for all the rest.

    Args:
        app: the whole application.
        endpoints: by path; they are asked with POST.
    """

    def __init__(self, app: FastAPI, endpoints: Mapping[str, Endpoint]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        # An answer that goes to another origin needs headers that the application adds.
        if endpoint is None or any(name == b"origin" for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app
        try:
            response = await endpoint(Request(scope, receive, send))
        except Problem as problem:
            response = problem.response()
        await response(scope, receive, send)
