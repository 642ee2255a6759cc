"""A streamed answer is made once, and every reader gets all of it."""

import asyncio

import pytest

from service.broadcast import Broadcast, StreamBrokenError


async def read(body: Broadcast) -> list[bytes]:
    return [piece async for piece in body.read()]


async def test_every_reader_gets_everything_however_late_it_comes() -> None:
    body = Broadcast()
    early = asyncio.create_task(read(body))
    await asyncio.sleep(0)
    body.write(b"one")
    await asyncio.sleep(0)
    between = asyncio.create_task(read(body))
    await asyncio.sleep(0)
    body.write(b"two")
    body.end()
    assert await early == await between == await read(body) == [b"one", b"two"]
    assert body.written == b"onetwo"


async def test_a_reader_gets_a_piece_before_the_next_one_is_made() -> None:
    body = Broadcast()
    reader = body.read()
    body.write(b"one")
    assert await anext(reader) == b"one"
    following = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    assert not following.done()
    body.write(b"two")
    assert await following == b"two"


async def test_what_broke_off_does_not_look_whole() -> None:
    body = Broadcast()
    body.write(b"one")
    body.break_off()
    reader = body.read()
    assert await anext(reader) == b"one"
    with pytest.raises(StreamBrokenError):
        await anext(reader)


async def test_a_reader_who_leaves_takes_nothing_from_the_others() -> None:
    body = Broadcast()
    leaver, stayer = asyncio.create_task(read(body)), asyncio.create_task(read(body))
    body.write(b"one")
    await asyncio.sleep(0)
    leaver.cancel()
    body.write(b"two")
    body.end()
    assert await stayer == [b"one", b"two"]
    assert leaver.cancelled() or await asyncio.wait([leaver])
