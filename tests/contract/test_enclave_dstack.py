"""Quotes from the dstack guest agent: every answer is checked, and its socket is the only way in."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from attestation.enclave.dstack import DstackEnclave
from attestation.errors import EnclaveError
from tests.enclaves import FakeDstack, Make, listening, tdx_quote

DATA = bytes(range(64))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeDstack]:
    fake = FakeDstack()
    with listening(tmp_path / "dstack.sock", fake):
        yield fake


@pytest.fixture
def enclave(agent: FakeDstack, tmp_path: Path) -> DstackEnclave:
    return DstackEnclave(f"dstack://{tmp_path}/dstack.sock")


async def test_evidence_has_the_published_shape(agent: FakeDstack, enclave: DstackEnclave) -> None:
    assert await enclave.evidence(DATA, now=1) == {
        "quote": tdx_quote(DATA).hex(),
        "quote_report_data": DATA.hex(),
        "event_log": agent.event_log,
        "vm_config": '{"cpu_count":1}',
        "app_compose": agent.app_compose,
    }
    assert enclave.app_id == agent.app_id
    assert agent.requests[0] == ("GetQuote", {"report_data": DATA.hex()})


async def test_the_compose_text_is_asked_for_once(agent: FakeDstack, enclave: DstackEnclave) -> None:
    texts = [(await enclave.evidence(DATA, now=1))["app_compose"] for _ in range(3)]
    assert texts == [agent.app_compose] * 3
    assert [rpc for rpc, _ in agent.requests].count("Info") == 1


async def test_an_agent_that_hides_its_measurements_gives_no_compose_text(
    agent: FakeDstack, enclave: DstackEnclave
) -> None:
    agent.overrides["Info"] = {"tcb_info": ""}
    assert "app_compose" not in await enclave.evidence(DATA, now=1)
    assert enclave.app_id == agent.app_id


async def test_an_older_agent_names_neither_report_data_nor_configuration(
    agent: FakeDstack, enclave: DstackEnclave
) -> None:
    agent.overrides["GetQuote"] = {"report_data": None, "vm_config": None}
    evidence = await enclave.evidence(DATA, now=1)
    assert (evidence["quote_report_data"], evidence["vm_config"]) == (DATA.hex(), "")


@pytest.mark.parametrize(
    "make", [lambda _: tdx_quote(b"\xee" * 64), lambda _: b"", lambda _: b"aci-stub-quote", lambda d: tdx_quote(d)[:99]]
)
async def test_a_quote_over_other_data_goes_nowhere(agent: FakeDstack, enclave: DstackEnclave, make: Make) -> None:
    agent.make = make
    with pytest.raises(EnclaveError):
        await enclave.evidence(DATA, now=1)


@pytest.mark.parametrize(
    ("rpc", "fields"),
    [
        ("GetQuote", {"report_data": "ee" * 64}),
        ("GetQuote", {"report_data": ""}),
        ("GetQuote", {"report_data": 1}),
        ("GetQuote", {"quote": None}),
        ("GetQuote", {"quote": tdx_quote(DATA).hex().upper()}),
        ("GetQuote", {"quote": "0x" + tdx_quote(DATA).hex()}),
        ("GetQuote", {"quote": 7}),
        ("GetQuote", {"event_log": None}),
        ("GetQuote", {"event_log": []}),
        ("GetQuote", {"event_log": "{}"}),
        ("GetQuote", {"event_log": "["}),
        ("GetQuote", {"vm_config": {}}),
        ("Info", {"app_id": None}),
        ("Info", {"app_id": "x"}),
        ("Info", {"tcb_info": None}),
        ("Info", {"tcb_info": "[]"}),
        ("Info", {"tcb_info": "{}"}),
        ("Info", {"tcb_info": "{"}),
        ("Info", {"tcb_info": '{"app_compose":{}}'}),
    ],
)
async def test_an_answer_of_another_shape_goes_nowhere(
    agent: FakeDstack, enclave: DstackEnclave, rpc: str, fields: dict[str, Any]
) -> None:
    agent.overrides[rpc] = fields
    with pytest.raises(EnclaveError):
        await enclave.evidence(DATA, now=1)
    assert enclave.app_id is None


@pytest.mark.parametrize("rpc", ["GetQuote", "Info"])
@pytest.mark.parametrize(
    "reply",
    [
        (500, b'{"error":"a secret of the agent"}'),
        (404, b""),
        (302, b""),
        (204, b""),
        (200, b""),
        (200, b"\xff"),
        (200, b"null"),
        (200, b'"text"'),
        (200, b"[" * 100_000),
    ],
)
async def test_an_answer_that_is_none_goes_nowhere(
    agent: FakeDstack, enclave: DstackEnclave, rpc: str, reply: tuple[int, bytes]
) -> None:
    agent.replies[rpc] = reply
    with pytest.raises(EnclaveError) as caught:
        await enclave.evidence(DATA, now=1)
    assert "secret" not in str(caught.value)


async def test_an_agent_that_is_gone_is_an_error_and_not_a_fallback(tmp_path: Path) -> None:
    with listening(tmp_path / "dstack.sock", FakeDstack()):
        enclave = DstackEnclave(f"dstack://{tmp_path}/dstack.sock")
    with pytest.raises(EnclaveError, match="did not answer /GetQuote"):
        await enclave.evidence(DATA, now=1)


async def test_an_agent_that_is_silent_is_given_up_on(tmp_path: Path) -> None:
    silent = threading.Event()

    def never(*_: Any) -> tuple[int, bytes]:
        silent.wait(20)
        return 200, b"{}"

    with listening(tmp_path / "dstack.sock", never):
        enclave = DstackEnclave(f"dstack://{tmp_path}/dstack.sock", timeout_seconds=0.05)
        with pytest.raises(EnclaveError, match="did not answer"):
            await enclave.evidence(DATA, now=1)
        silent.set()


async def test_an_agent_that_drips_is_given_up_on(tmp_path: Path) -> None:
    """The limit is on the call, not on the pause between two bytes."""
    connections: list[asyncio.Task[Any] | None] = []

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while not reader.at_eof():
                writer.write(b"x: y\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_unix_server(drip, tmp_path / "dstack.sock"):
        enclave = DstackEnclave(f"dstack://{tmp_path}/dstack.sock", timeout_seconds=0.2)
        async with asyncio.timeout(10):
            with pytest.raises(EnclaveError, match="did not answer"):
                await enclave.evidence(DATA, now=1)
        await asyncio.gather(*(task for task in connections if task is not None))


def test_a_socket_that_nobody_listens_on_is_a_failed_start(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "dstack.sock"))
    with pytest.raises(EnclaveError, match="Connection refused"):
        DstackEnclave(f"dstack://{tmp_path}/dstack.sock")


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "dstack.sock").write_text(json.dumps({}))
    with pytest.raises(EnclaveError, match="is not there"):
        DstackEnclave(f"dstack://{tmp_path}/dstack.sock")


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    with pytest.raises(EnclaveError, match="too long"):
        DstackEnclave("dstack:///" + "x" * 200)
