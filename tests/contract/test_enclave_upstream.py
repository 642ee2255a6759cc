"""The upstream SDKs take our fakes for the real thing: what is true of a fake is true of what it stands for."""

import fcntl
from pathlib import Path
from typing import Any

import cbor2
import pytest

from attestation.digest import digest
from attestation.enclave.dstack import DstackEnclave
from attestation.enclave.nitro import NitroEnclave
from attestation.enclave.rofl import RoflEnclave
from tests.enclaves import (
    APP_ID,
    APP_ID_BYTES,
    RAK,
    FakeDstack,
    FakeNsm,
    FakeRoflAppd,
    listening,
    nitro_document,
    upstream,
)

DATA = bytes(range(64))


@pytest.mark.parametrize("client", ["DstackClient", "AsyncDstackClient"])
async def test_dstack_sdk(client: str, tmp_path: Path) -> None:
    sdk = upstream("dstack_sdk", "dstack-sdk")
    agent = FakeDstack()
    with listening(tmp_path / "dstack.sock", agent):
        enclave = DstackEnclave(f"dstack://{tmp_path}/dstack.sock")
        ours = await enclave.evidence(DATA, now=1)
        theirs = getattr(sdk, client)(str(tmp_path / "dstack.sock"))
        if client.startswith("Async"):
            async with theirs:
                quote, info = await theirs.get_quote(DATA), await theirs.info()
        else:
            with theirs:
                quote, info = theirs.get_quote(DATA), theirs.info()
    assert quote.model_dump() == {
        "quote": ours["quote"],
        "event_log": ours["event_log"],
        "report_data": ours["quote_report_data"],
        "vm_config": ours["vm_config"],
    }
    assert quote.decode_event_log()[0].event == "app-id"
    assert (info.tcb_info.app_compose, info.app_id) == (ours["app_compose"], enclave.app_id)
    requests = [request for request in agent.requests if request[0] == "GetQuote"]
    assert requests[0] == requests[1], "we ask as the SDK asks"


async def test_oasis_rofl_client(tmp_path: Path) -> None:
    sdk = upstream("oasis_rofl_client", "oasis-rofl-client")
    appd = FakeRoflAppd(metadata={"ours": "no"})
    with listening(tmp_path / "appd.sock", appd):
        client = sdk.AsyncRoflClient(str(tmp_path / "appd.sock"))
        await client.set_metadata({"version": "1"})
        evidence = await RoflEnclave(f"rofl://{tmp_path}/appd.sock", poll_seconds=0).evidence(DATA, now=1)
        assert await client.get_app_id() == evidence["app_id"] == APP_ID
        name = evidence["metadata_key"].removeprefix("net.oasis.app.")
        assert await client.get_metadata() == {"version": "1", name: digest(DATA)}
        listed = cbor2.loads(await client.query("rofl.AppInstances", cbor2.dumps({"id": APP_ID_BYTES})))
        assert sdk.RoflClient(str(tmp_path / "appd.sock")).get_app_id() == APP_ID
    mine = next(one for one in listed if one["rak"] == RAK)
    assert mine["metadata"] == {"net.oasis.app.version": "1", evidence["metadata_key"]: digest(DATA)}


async def test_aws_nsm_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = upstream("aws_nsm_interface", "aws-nsm-interface")
    nsm = FakeNsm(tmp_path / "nsm")
    nsm.install(monkeypatch)
    asked: list[tuple[int, int]] = []
    fake = fcntl.ioctl

    def spy(file: Any, request: int, argument: Any) -> Any:
        asked.append((request, memoryview(argument).nbytes))
        return fake(file, request, argument)

    monkeypatch.setattr(fcntl, "ioctl", spy)
    with nsm.device.open("r+") as device:
        theirs = sdk.get_attestation_doc(device, user_data=DATA)["document"]
        assert len(sdk.get_random(device, 12)) == 12
        with pytest.raises(sdk.exceptions.IoctlError, match="InputTooLarge"):
            sdk.get_attestation_doc(device, user_data=bytes(513))
    ours = await NitroEnclave("nitro:", device=nsm.device).evidence(DATA, now=1)
    assert bytes.fromhex(ours["document"]) == theirs == nitro_document(DATA)
    assert nsm.requests[0] == nsm.requests[-1], "we ask as the SDK asks"
    assert len(set(asked)) == 1, "the same ioctl, over as many bytes"


@pytest.mark.parametrize("module", ["dstack_sdk", "oasis_rofl_client", "aws_nsm_interface"])
def test_no_sdk_is_needed_to_run(module: str) -> None:
    for path in (Path(__file__).resolve().parents[2] / "attestation").rglob("*.py"):
        assert module not in path.read_text("utf-8"), path
