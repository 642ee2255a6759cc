"""A node between a facilitator and the real one, which can be made to lie, fail, be slow or say nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

Change = Callable[[str, list[Any], dict[str, Any]], dict[str, Any]]
"""Method, parameters and the real answer object to the answer object that is given."""


class Proxy:
    """What is changed on the way to the node behind it, and what has been asked."""

    def __init__(self) -> None:
        self.url = ""
        self.change: Change | None = None
        self.raw: bytes | None = None
        """Answered to everything instead."""
        self.withheld: set[str] = set()
        """Methods that do not reach the node; the connection breaks."""
        self.open = asyncio.Event()
        """Cleared: requests wait."""
        self.open.set()
        self.requests = 0
        self.asked: list[str] = []


@asynccontextmanager
async def between(rpc: str) -> AsyncIterator[Proxy]:
    """A proxy on a port of its own in front of the node at `rpc`."""
    proxy = Proxy()
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            asked = json.loads(body)
            items = asked if isinstance(asked, list) else [asked]
            proxy.requests += 1
            proxy.asked += [item["method"] for item in items]
            await proxy.open.wait()
            if proxy.raw is not None:
                return web.Response(body=proxy.raw)
            if any(item["method"] in proxy.withheld for item in items):
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            async with session.post(rpc, data=body, headers={"content-type": "application/json"}) as response:
                answers = json.loads(await response.read())
            if proxy.change is not None:
                given = answers if isinstance(answers, list) else [answers]
                changed = [
                    proxy.change(item["method"], item["params"], one) for item, one in zip(items, given, strict=True)
                ]
                answers = changed if isinstance(answers, list) else changed[0]
            return web.Response(text=json.dumps(answers))

        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}/key-of-an-account"
        try:
            yield proxy
        finally:
            proxy.open.set()
            await runner.cleanup()
