"""A model server in a process of its own: OpenAI's protocol, an answer that says what it was asked, some milliseconds.

Prints ``listening PORT``. ``--delay`` is the longest time an answer takes, in seconds; every answer draws its own.
"""

import argparse
import asyncio
import json
import logging
import random
from typing import Any, Final

import uvloop
from aiohttp import web

from attestation.digest import digest
from bench.process import serve_until_terminated

MODEL: Final = "torture-1"


def application(delay: float) -> web.Application:
    """Chat completions and exact token counts, as llama-server has them."""

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def count(request: web.Request) -> web.Response:
        return web.json_response({"object": "response.input_tokens", "input_tokens": _tokens(await request.json())})

    async def complete(request: web.Request) -> web.Response:
        asked = await request.json()
        await asyncio.sleep(random.uniform(0, delay))  # noqa: S311 - not a secret
        text = f"A summary of {digest(json.dumps(asked['messages']).encode())}"
        return web.json_response(
            {
                "object": "chat.completion",
                "model": MODEL,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": _tokens(asked), "completion_tokens": 12},
            }
        )

    app = web.Application(client_max_size=16 << 20)
    app.add_routes(
        [
            web.get("/v1/models", models),
            web.post("/v1/chat/completions", complete),
            web.post("/v1/chat/completions/input_tokens", count),
        ]
    )
    return app


def _tokens(asked: dict[str, Any]) -> int:
    return sum(len(message["content"].split()) for message in asked["messages"])


async def main(delay: float) -> None:
    runner = web.AppRunner(application(delay), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"listening {runner.addresses[0][1]}", flush=True)
    await serve_until_terminated()
    await runner.cleanup()


if __name__ == "__main__":
    # Callers are killed here by the hundred; that they went in the middle of a request is not news.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.05)
    uvloop.run(main(parser.parse_args().delay))
