"""A node that misbehaves as told, between the product and a real one."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from aiohttp import web

Rewrite = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""Gets a request and the node's answer, gives the answer that is passed on."""


@dataclass
class Node:
    """What the node in between does. All fields may change while it runs."""

    url: str = ""
    down: bool = False
    """It answers every request with status 502."""
    refuse: Callable[[dict[str, Any]], web.Response | None] = lambda _: None
    """Answers a request in the node's place."""
    rewrite: Rewrite = lambda _, answer: answer
    asked: list[str] = field(default_factory=list)
    """The methods it was asked for."""


@asynccontextmanager
async def node_between(rpc: str) -> AsyncIterator[Node]:
    """A node that passes everything on to the one at `rpc`, until it is told otherwise."""
    node = Node()
    async with httpx.AsyncClient(trust_env=False, timeout=30) as upstream:

        async def handle(request: web.Request) -> web.Response:
            asked = await request.json()
            node.asked.append(asked["method"])
            if node.down:
                return web.Response(status=502)
            refused = node.refuse(asked)
            if refused is not None:
                return refused
            answer = (await upstream.post(rpc, json=asked)).json()
            return web.json_response(node.rewrite(asked, answer))

        app = web.Application()
        app.router.add_post("/", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        node.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield node
        finally:
            await runner.cleanup()


def rpc_error(asked: dict[str, Any], code: int, message: str) -> web.Response:
    """A JSON-RPC error."""
    body = {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": code, "message": message}}
    return web.Response(text=json.dumps(body), content_type="application/json")
