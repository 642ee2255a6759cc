"""A ROFL replica publishes digests on chain, and says where; it never claims to have a quote."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from attestation.digest import digest
from attestation.enclave.rofl import SLOTS, RoflEnclave
from attestation.errors import EnclaveError
from tests.enclaves import APP_ID, RAK, FakeRoflAppd, listening

DATA = bytes(range(64))
NO_REPLICAS: list[Any] = [
    1,
    None,
    [1],
    {"a": 1},
    [{}],
    [{"rak": 1 << 40}],
    [{"rak": b""}],
    [{"rak": bytes(32), "metadata": 1}],
]


@pytest.fixture
def appd(tmp_path: Path) -> Iterator[FakeRoflAppd]:
    fake = FakeRoflAppd()
    with listening(tmp_path / "appd.sock", fake):
        yield fake


@pytest.fixture
def enclave(appd: FakeRoflAppd, tmp_path: Path) -> RoflEnclave:
    return RoflEnclave(f"rofl://{tmp_path}/appd.sock", confirm_seconds=5, poll_seconds=0)


async def test_the_digest_is_on_chain_when_the_evidence_is_handed_out(appd: FakeRoflAppd, enclave: RoflEnclave) -> None:
    appd.blocks = 3
    evidence = await enclave.evidence(DATA, now=1)
    assert appd.chain[evidence["metadata_key"]] == digest(DATA)
    assert (evidence["app_id"], evidence["rak"], evidence["format"]) == (APP_ID, RAK.hex(), "rofl")


async def test_the_evidence_says_that_it_is_no_quote(enclave: RoflEnclave) -> None:
    evidence = await enclave.evidence(DATA, now=1)
    assert "NOT A QUOTE" in evidence["notice"]
    assert "quote" not in evidence


async def test_what_others_published_stays(appd: FakeRoflAppd, enclave: RoflEnclave) -> None:
    appd.metadata = {"version": "1.0.0"}
    await enclave.evidence(DATA, now=1)
    assert appd.metadata["version"] == "1.0.0"


async def test_what_stands_on_chain_is_not_published_again(appd: FakeRoflAppd, enclave: RoflEnclave) -> None:
    first = await enclave.evidence(DATA, now=1)
    assert await enclave.evidence(DATA, now=2) == first
    assert appd.registrations == 1


async def test_a_registration_that_lost_our_digest_gets_it_again(appd: FakeRoflAppd, enclave: RoflEnclave) -> None:
    await enclave.evidence(DATA, now=1)
    appd.metadata = {}
    evidence = await enclave.evidence(DATA, now=1)
    assert appd.chain[evidence["metadata_key"]] == digest(DATA)


async def test_the_latest_digests_stand_and_the_places_are_bounded(appd: FakeRoflAppd, enclave: RoflEnclave) -> None:
    data = [bytes([n]) * 64 for n in range(SLOTS + 5)]
    for one in data:
        await enclave.evidence(one, now=1)
    assert set(appd.chain.values()) == {digest(one) for one in data[-SLOTS:]}


async def test_a_place_that_still_shows_its_last_digest_does_not_vouch(
    appd: FakeRoflAppd, enclave: RoflEnclave
) -> None:
    appd.blocks = 2
    for n in range(SLOTS + 2):
        data = bytes([n]) * 64
        evidence = await enclave.evidence(data, now=1)
        assert appd.chain[evidence["metadata_key"]] == digest(data)


async def test_a_digest_in_use_keeps_its_place(appd: FakeRoflAppd, enclave: RoflEnclave) -> None:
    for n in range(SLOTS * 2):
        await enclave.evidence(DATA, now=1)
        await enclave.evidence(bytes([n]) * 64, now=1)
    assert digest(DATA) in appd.chain.values()


async def test_too_many_callers_are_turned_away_and_the_others_served(appd: FakeRoflAppd, enclave: RoflEnclave) -> None:
    appd.blocks = 1
    calls = [enclave.evidence(bytes([n]) * 64, now=1) for n in range(SLOTS + 3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    turned_away = [result for result in results if isinstance(result, EnclaveError)]
    assert len(turned_away) == 3
    assert all("already wait" in str(error) for error in turned_away)
    await enclave.evidence(b"\xaa" * 64, now=1)


async def test_two_callers_with_the_same_data_share_a_place(appd: FakeRoflAppd, enclave: RoflEnclave) -> None:
    appd.blocks = 2
    first, second = await asyncio.gather(enclave.evidence(DATA, now=1), enclave.evidence(DATA, now=1))
    assert first == second
    assert appd.registrations == 1


async def test_a_chain_that_does_not_move_is_an_error(appd: FakeRoflAppd, tmp_path: Path) -> None:
    appd.stuck = True
    enclave = RoflEnclave(f"rofl://{tmp_path}/appd.sock", confirm_seconds=0.1, poll_seconds=0.01)
    with pytest.raises(EnclaveError, match=r"did not show our digest within 0\.1 s"):
        await enclave.evidence(DATA, now=1)


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("/rofl/v1/app/id", (200, b"")),
        ("/rofl/v1/app/id", (200, b"\xff")),
        ("/rofl/v1/app/id", (200, APP_ID.upper().encode())),
        ("/rofl/v1/app/id", (200, APP_ID[:-1].encode() + b"q")),
        ("/rofl/v1/app/id", (500, b"")),
        ("/rofl/v1/metadata", (200, b"[]")),
        ("/rofl/v1/metadata", (200, b"{")),
        ("/rofl/v1/metadata", (400, b"invalid argument")),
        ("/rofl/v1/query", (500, b"Query failed")),
        ("/rofl/v1/query", (200, b"[]")),
        ("/rofl/v1/query", (200, b"{}")),
        ("/rofl/v1/query", (200, b'{"data":"XX"}')),
        ("/rofl/v1/query", (200, b'{"data":""}')),
        *(("/rofl/v1/query", (200, b'{"data":"%s"}' % cbor2.dumps(answer).hex().encode())) for answer in NO_REPLICAS),
    ],
)
async def test_an_answer_of_another_shape_goes_nowhere(
    appd: FakeRoflAppd, enclave: RoflEnclave, path: str, reply: tuple[int, bytes]
) -> None:
    appd.replies[path] = reply
    with pytest.raises(EnclaveError):
        await enclave.evidence(DATA, now=1)
    del appd.replies[path]
    assert await enclave.evidence(DATA, now=1), "a failure must not block what comes after it"
