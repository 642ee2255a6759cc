"""A facilitator that misbehaves, in a process of its own: it settles on the chain, sometimes, and says what it likes.

``--modes`` names what it draws from, request by request; `MODES` says what each does. Prints ``listening PORT``.
"""

import argparse
import asyncio
import json
import logging
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import uvloop
from aiohttp import web
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from bench.process import serve_until_terminated

MODES: Final = {
    "honest": "settles and says so",
    "error-before": "answers 500 and does nothing",
    "error-after": "settles and answers 500",
    "garbage-before": "answers with what is not JSON, and does nothing",
    "garbage-after": "settles and answers with what is not JSON",
    "silent-before": "does nothing, and ends the connection without an answer after a while",
    "silent-after": "settles, and ends the connection without an answer after a while",
    "late": "ends the connection without an answer, and settles some seconds later",
    "reset-after": "settles and cuts the connection",
    "lie-nothing": "says that it has settled, with a transaction that does not exist",
    "lie-other": "says that it has settled, with the transaction of another payment",
    "lie-network": "settles and says so for another network",
    "lie-payer": "settles and says so for another payer",
    "lie-failed": "settles and says that the payer has not enough money",
    "lie-failed-late": "says that the payer has not enough money, and settles some seconds later",
    "twice": "settles twice and answers twice",
    "hang": "does nothing and says nothing, ever",
    "hang-after": "settles and says nothing, ever",
}
SILENCE_SECONDS: Final = 1.0
LATE_SECONDS: Final = 3.0

_SELECTOR: Final = keccak(text="transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)")[:4]
_TYPES: Final = ("address", "address", "uint256", "uint256", "uint256", "bytes32", "bytes")


class Relayer:
    """Executes authorizations on the chain, one transaction each, whatever the outcome."""

    def __init__(self, rpc: str, key: str, chain_id: int) -> None:
        self._rpc = rpc
        self._account: LocalAccount = Account.from_key(key)
        self._chain_id = chain_id
        self._turn = asyncio.Lock()
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20))

    async def execute(self, asked: dict[str, Any]) -> str:
        """The transaction's hash, once it is in a block."""
        token = asked["paymentRequirements"]["asset"]
        signed = asked["paymentPayload"]["payload"]
        one = signed["authorization"]
        arguments = (
            one["from"],
            one["to"],
            int(one["value"]),
            int(one["validAfter"]),
            int(one["validBefore"]),
            bytes.fromhex(one["nonce"][2:]),
            bytes.fromhex(signed["signature"][2:]),
        )
        data = "0x" + (_SELECTOR + encode(_TYPES, arguments)).hex()
        async with self._turn:
            nonce = int(await self._ask("eth_getTransactionCount", self._account.address, "pending"), 16)
            transaction: dict[str, Any] = {
                "to": to_checksum_address(token),
                "data": data,
                "gas": 200_000,
                "nonce": nonce,
                "chainId": self._chain_id,
                "maxFeePerGas": 10**10,
                "maxPriorityFeePerGas": 10**9,
                "value": 0,
            }
            raw = self._account.sign_transaction(transaction).raw_transaction
            sent = str(await self._ask("eth_sendRawTransaction", "0x" + raw.hex()))
        await until_mined(lambda: self._ask("eth_getTransactionReceipt", sent))
        return sent

    async def close(self) -> None:
        await self._http.close()

    async def _ask(self, method: str, *params: object) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with self._http.post(self._rpc, json=request) as response:
            return (await response.json())["result"]


async def until_mined(receipt: Callable[[], Awaitable[Any]]) -> None:
    """Return once there is a receipt; a node announces none over HTTP."""
    while await receipt() is None:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


class Misbehaving:
    """The HTTP side.

    Args:
        modes: what settlements draw from; a verification is honest, or one time in ten answers 500 or garbage.
    """

    def __init__(self, relayer: Relayer, modes: list[str], network: str) -> None:
        self._relayer = relayer
        self._modes = modes
        self._network = network
        self._last = "0x" + "00" * 32
        self._later: set[asyncio.Task[str]] = set()
        self.drawn: Counter[str] = Counter()

    async def supported(self, _request: web.Request) -> web.Response:
        kinds = [{"x402Version": 2, "scheme": "exact", "network": self._network}]
        return web.json_response({"kinds": kinds, "extensions": [], "signers": {}})

    async def verify(self, request: web.Request) -> web.Response:
        asked = await request.json()
        draw = random.random()  # noqa: S311 - not a secret
        if draw < 0.05 and len(self._modes) > 1:
            return web.Response(status=500, text="out of order")
        if draw < 0.1 and len(self._modes) > 1:
            return web.Response(text="<html>", content_type="text/html")
        return web.json_response(
            {"isValid": True, "payer": asked["paymentPayload"]["payload"]["authorization"]["from"]}
        )

    async def settle(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        mode = random.choice(self._modes)  # noqa: S311 - not a secret
        self.drawn[mode] += 1
        transport = request.transport
        if mode in {"late", "lie-failed-late"}:
            task = asyncio.create_task(self._much_later(asked))
            self._later.add(task)
            task.add_done_callback(self._later.discard)
        if mode in {"silent-before", "late"}:
            await asyncio.sleep(SILENCE_SECONDS)
            return _cut(transport)
        if mode == "error-before":
            return web.Response(status=500, text="out of order")
        if mode == "garbage-before":
            return web.Response(text="{'success': maybe", content_type="application/json")
        if mode == "hang":
            await asyncio.Event().wait()
        if mode == "lie-nothing":
            return self._yes(asked, "0x" + secrets.token_hex(32))
        if mode == "lie-other":
            return self._yes(asked, self._last)
        if mode == "lie-failed-late":
            return self._no()
        transaction = await self._relayer.execute(asked)
        answer = self._yes(asked, transaction)
        if mode == "honest":
            self._last = transaction
        elif mode == "error-after":
            answer = web.Response(status=500, text="out of order")
        elif mode == "garbage-after":
            answer = web.Response(text="\x00\x01\x02", content_type="application/json")
        elif mode == "silent-after":
            await asyncio.sleep(SILENCE_SECONDS)
            return _cut(transport)
        elif mode == "reset-after":
            return _cut(transport)
        elif mode == "hang-after":
            await asyncio.Event().wait()
        elif mode == "lie-network":
            answer = self._yes(asked, transaction, network="eip155:1")
        elif mode == "lie-payer":
            answer = self._yes(asked, transaction, payer="0x" + "ee" * 20)
        elif mode == "lie-failed":
            answer = self._no()
        elif mode == "twice":
            await self._relayer.execute(asked)
            body = json.dumps({"success": True, "transaction": transaction, "network": self._network}).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            if transport is not None:
                transport.write(head + body)
        return answer

    async def _much_later(self, asked: dict[str, Any]) -> str:
        await asyncio.sleep(LATE_SECONDS)
        return await self._relayer.execute(asked)

    def _yes(self, asked: dict[str, Any], transaction: str, **instead: str) -> web.Response:
        payer = asked["paymentPayload"]["payload"]["authorization"]["from"]
        said = {"success": True, "transaction": transaction, "network": self._network, "payer": payer, **instead}
        return web.json_response(said)

    def _no(self) -> web.Response:
        said = {"success": False, "errorReason": "insufficient_funds", "transaction": "", "network": self._network}
        return web.json_response(said)


def _cut(transport: asyncio.Transport | None) -> web.Response:
    if transport is not None:
        transport.abort()
    return web.Response()


async def main(rpc: str, key: str, chain_id: int, modes: list[str]) -> None:
    relayer = Relayer(rpc, key, chain_id)
    facilitator = Misbehaving(relayer, modes, f"eip155:{chain_id}")

    async def drawn(_request: web.Request) -> web.Response:
        return web.json_response(dict(facilitator.drawn))

    app = web.Application()
    app.add_routes(
        [
            web.get("/supported", facilitator.supported),
            web.post("/verify", facilitator.verify),
            web.post("/settle", facilitator.settle),
            web.get("/drawn", drawn),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"listening {runner.addresses[0][1]}", flush=True)
    await serve_until_terminated()
    await runner.cleanup()
    await relayer.close()


if __name__ == "__main__":
    # Callers are killed here by the hundred; that they went in the middle of a request is not news.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--rpc", required=True)
    parser.add_argument("--key", required=True, help="of an account with gas money on the local chain")
    parser.add_argument("--chain-id", required=True, type=int)
    parser.add_argument("--modes", required=True, help=f"comma-separated: {', '.join(MODES)}")
    given = parser.parse_args()
    uvloop.run(main(given.rpc, given.key, given.chain_id, given.modes.split(",")))
