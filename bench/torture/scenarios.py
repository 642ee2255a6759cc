"""What is done to the world. Each scenario breaks one thing, under load, as often as its size says."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import aiohttp
from eth_account import Account

from bench.process import server
from bench.torture import facilitator as misbehaving
from bench.torture.stage import Stage
from bench.torture.world import new_operator
from bench.torture.worse import WORSE

PATIENCE_SECONDS: Final = 2.0

Scenario = Callable[[Stage], Awaitable[None]]


async def killed_service(on: Stage) -> None:
    """kill -9 of the service at random moments, some of them while it is starting."""
    service = on.service()
    await service.start()
    await on.buyers([service.url])
    found: Counter[str] = Counter()

    async def chaos() -> None:
        for _ in range(on.size.kills):
            draw = on.random.random()
            if draw < 0.1:
                service.kill()
                service.launch()
                await asyncio.sleep(on.random.uniform(0.0, 0.4))
            else:
                if not service.alive:
                    await service.start()
                if draw < 0.4:
                    await asyncio.sleep(on.random.uniform(0.02, 1.0))
                else:
                    await _somebody_is(on, on.random.choice(["RESERVED", "SERVED", "SETTLING", "SETTLED"]))
            service.kill()
            found.update(on.states().keys() & {"RESERVED", "SERVED", "SETTLING", "UNKNOWN"} or {"nobody between steps"})

    await on.under_load(chaos)
    on.notes["kills"] = on.size.kills
    on.notes["kills that found"] = dict(sorted(found.items()))
    on.notes["restart, median s"] = sorted(service.starts)[len(service.starts) // 2]


async def _somebody_is(on: Stage, state: str) -> None:
    """Wait until one more payment than now has got to a state, or until that takes too long."""
    before = on.states()[state]
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while on.states()[state] <= before:  # noqa: ASYNC110 - no database tells
                await asyncio.sleep(0.002)


async def killed_chain(on: Stage) -> None:
    """kill -9 of the node, which forgets what waited for a block."""
    service = on.service()
    await service.start()
    await on.buyers([service.url])

    async def chaos() -> None:
        for _ in range(on.size.rounds):
            await asyncio.sleep(on.random.uniform(0.2, 1.0))
            await on.blockchain.kill_and_restart(away_seconds=on.random.uniform(0.0, 1.0))

    await on.under_load(chaos)
    on.notes["kills of the node"] = on.size.rounds


async def stalled_chain(on: Stage) -> None:
    """A node that answers nothing for seconds, and then goes on as if nothing had been."""
    service = on.service()
    await service.start()
    await on.buyers([service.url])

    async def chaos() -> None:
        for index in range(on.size.rounds):
            await asyncio.sleep(on.random.uniform(0.2, 1.0))
            on.blockchain.stall()
            # Once longer than anybody waits for an answer of a node.
            await asyncio.sleep(14 if index == 1 else on.random.uniform(0.5, 3))
            on.blockchain.resume()

    await on.under_load(chaos)
    on.notes["stalls"] = on.size.rounds


async def dropped_transactions(on: Stage) -> None:
    """Transactions that wait for a block and vanish; blocks every now and then."""
    service = on.service()
    await service.start()
    await on.buyers([service.url])
    dropped = 0

    async def chaos() -> None:
        nonlocal dropped
        for _ in range(on.size.rounds * 3):
            await on.blockchain.ask("evm_setAutomine", False)
            await asyncio.sleep(on.random.uniform(0.05, 0.6))
            if on.random.random() < 0.5:
                dropped += await on.blockchain.pending()
                await on.blockchain.ask("anvil_dropAllTransactions")
            await on.blockchain.ask("evm_setAutomine", True)
            await on.blockchain.ask("evm_mine")
            await asyncio.sleep(on.random.uniform(0.05, 0.3))

    await on.under_load(chaos)
    on.notes["transactions dropped"] = dropped


async def lying_facilitator(on: Stage) -> None:
    """A remote facilitator that does all that `bench.torture.facilitator` can do, but hang."""
    modes = [mode for mode in misbehaving.MODES if not mode.startswith("hang") and mode != "lie-failed-late"]
    await _remote(on, modes + ["honest"] * 6)


async def treacherous_facilitator(on: Stage) -> None:
    """A remote facilitator that refuses a payment for good, and executes it later."""
    await _remote(on, ["lie-failed-late", *["honest"] * 4])


async def hanging_facilitator(on: Stage) -> None:
    """A remote facilitator that takes the payment and never says anything again."""
    await _remote(on, ["hang", "hang-after", *["honest"] * 30])


async def _remote(on: Stage, modes: list[str]) -> None:
    account = Account.create()
    new_operator(on.chain.rpc, account.address)
    arguments = ("--rpc", on.chain.rpc, "--chain-id", str(on.chain.chain_id), "--modes", ",".join(modes))
    key = "0x" + bytes(account.key).hex()
    process = on.closing.enter_context(server("bench.torture.facilitator", *arguments, "--key", key))
    service = on.service(facilitator=process.url)
    await service.start()
    await on.buyers([service.url])
    on.rest_seconds = misbehaving.LATE_SECONDS + 2

    async def chaos() -> None:
        await asyncio.sleep(on.size.seconds)

    await on.under_load(chaos)
    on.notes["drawn"] = await _drawn(process.url)


async def _drawn(url: str) -> object:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/drawn") as response:
        return await response.json()


async def hung_up(on: Stage) -> None:
    """Clients that leave: before the body, in it, after sending, and in the middle of the answer."""
    service = on.service()
    await service.start()
    buyers = await on.buyers([service.url])
    left: Counter[str] = Counter()

    async def leave(point: str) -> None:
        made = buyers.order()
        head = "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
        request = (
            f"POST /v1/summarize HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\n"
            f"Content-Length: {len(made.body)}\r\n{head}\r\n"
        ).encode() + made.body
        end = {
            "in the head": on.random.randrange(1, len(request) - len(made.body) - 1),
            "before the body": len(request) - len(made.body),
            "in the body": len(request) - on.random.randrange(1, len(made.body)),
        }.get(point, len(request))
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(request[:end])
            await writer.drain()
            if point == "while it works":
                await asyncio.sleep(on.random.uniform(0.0, 0.15))
            elif point == "in the answer":
                await reader.read(on.random.randrange(1, 600))
            transport = writer.transport
            transport.abort()
        left[point] += 1

    async def chaos() -> None:
        points = ("in the head", "before the body", "in the body", "after sending", "while it works", "in the answer")
        for _ in range(on.size.rounds * 4):
            async with asyncio.TaskGroup() as group:
                for point in points:
                    group.create_task(leave(point))

    await on.under_load(chaos)
    on.notes["left"] = dict(left)


async def one_authorization_for_many(on: Stage) -> None:
    """64 buyers present the same authorization for the same request at the same instant."""
    service = on.service()
    await service.start()
    buyers = await on.buyers([service.url])
    for _ in range(on.size.rounds):
        made = buyers.order()
        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(buyers.present(made))
        if len(made.answers) != 1:
            buyers.wrong.append(f"64 presentations of one payment came to {len(made.answers)} different answers")
    on.notes["presentations"] = 64 * on.size.rounds


SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        killed_service,
        killed_chain,
        stalled_chain,
        dropped_transactions,
        lying_facilitator,
        treacherous_facilitator,
        hanging_facilitator,
        hung_up,
        one_authorization_for_many,
        *WORSE,
    )
}
