"""The ledger in an SQLite file: who may read it, what a full or broken disk does, and what waits for what."""

import asyncio
import resource
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.payment.ledger import Ledger, LedgerUnavailableError, Moved, Reserved, Retention, State
from service.payment.ledger_sqlite import SqliteSession
from tests.http.bench import bench_settings
from tests.ledgers import LEASE, OWNER, REQUEST, in_state, reserved
from tests.payments import authorize


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def ledger(file: Path) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(f"sqlite:///{file}", owner=OWNER)
    yield opened
    await opened.close()


async def test_only_the_owner_may_read_the_files(ledger: Ledger, file: Path) -> None:
    await reserved(ledger)
    files = sorted(file.parent.glob("ledger.db*"))
    assert [each.name for each in files] == ["ledger.db", "ledger.db-shm", "ledger.db-wal"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}


@pytest.mark.parametrize(
    "url", ["sqlite:///{0}/text", "sqlite:///{0}/no/such/ledger.db", "sqlite://", "mysql://u:secret@h/d", "secret"]
)
async def test_what_cannot_be_a_ledger_is_refused_in_a_sentence(tmp_path: Path, url: str) -> None:
    (tmp_path / "text").write_text("hello " * 1000)
    with pytest.raises(LedgerUnavailableError, match="the ledger cannot be opened: ") as failure:
        await Ledger.open(url.format(tmp_path), owner=OWNER)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("owner", ["", "x" * 65])
async def test_a_replica_has_a_name(file: Path, owner: str) -> None:
    with pytest.raises(ValueError, match="owner"):
        await Ledger.open(f"sqlite:///{file}", owner=owner)


def test_the_settings_bound_what_is_kept(file: Path) -> None:
    limits: dict[str, object] = {
        "payment_retention_days": 2,
        "receipt_retention_days": 3,
        "max_receipts": 4,
        "max_answer_megabytes": 5,
    }
    assert bench_settings(file, **limits).retention == Retention(
        max_receipts=4,
        receipt_max_age_seconds=3 * 86_400,
        payment_max_age_seconds=2 * 86_400,
        max_answer_bytes=5_000_000,
    )


async def test_the_event_loop_runs_while_the_database_is_busy_and_so_do_reads(ledger: Ledger, file: Path) -> None:
    row = await reserved(ledger)
    blocker = sqlite3.connect(file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(ledger.reserve(authorize(), REQUEST, 1, lease_seconds=LEASE))
    for _ in range(20):
        assert await ledger.find(row.authorization.key) == row
    assert not waiting.done()
    blocker.execute("COMMIT")
    blocker.close()
    assert isinstance(await waiting, Reserved)


async def test_what_was_asked_for_while_a_transaction_ran_shares_the_next_one(ledger: Ledger, file: Path) -> None:
    """Otherwise the disk would be waited for once for each payment."""
    blocker = sqlite3.connect(file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    waiting = [asyncio.create_task(ledger.reserve(authorize(), REQUEST, 1, lease_seconds=LEASE)) for _ in range(100)]
    await ledger.find(authorize().key)
    watcher = sqlite3.connect(file, isolation_level=None)
    before = commits(watcher)
    blocker.execute("COMMIT")
    blocker.close()
    await asyncio.gather(*waiting)
    assert commits(watcher) - before <= 3
    watcher.close()


def commits(connection: sqlite3.Connection) -> int:
    """Frames in the write-ahead log that end a transaction (SQLite file format, section 4.1: size after commit)."""
    name = connection.execute("PRAGMA database_list").fetchone()[2]
    log = Path(f"{name}-wal").read_bytes()
    frame = 24 + int.from_bytes(log[8:12], "big")
    return sum(log[at + 4 : at + 8] != bytes(4) for at in range(32, len(log), frame))


@contextmanager
def full_disk(file: Path) -> Iterator[None]:
    """No file may grow any more, as when there is no space left."""
    size = max(each.stat().st_size for each in file.parent.glob(f"{file.name}*"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_on_a_full_disk_calls_fail_and_with_space_again_they_do_not(ledger: Ledger, file: Path) -> None:
    row, answer = await in_state(ledger, State.RESERVED), bytes(1_000_000)
    with full_disk(file):
        results = await asyncio.gather(
            ledger.start_settlement(row, now=102, result=answer),
            ledger.reserve(authorize(), REQUEST, 1, lease_seconds=LEASE),
            return_exceptions=True,
        )
        assert isinstance(results[0], LedgerUnavailableError)
        assert await ledger.find(row.authorization.key) == row
    assert isinstance(await ledger.start_settlement(row, now=102, result=answer), Moved)


def damage(file: Path) -> None:
    """Overwrite everything but the first page."""
    with file.open("r+b") as damaged:
        damaged.seek(4096)
        damaged.write(b"\xa5" * (file.stat().st_size - 4096))


async def test_in_a_damaged_file_calls_fail_and_the_service_lives_on(file: Path) -> None:
    ledger = await Ledger.open(f"sqlite:///{file}", owner=OWNER)
    rows = [await in_state(ledger, State.SETTLED) for _ in range(20)]
    await ledger.close()
    ledger = await Ledger.open(f"sqlite:///{file}", owner=OWNER)
    damage(file)
    for _ in range(2):
        with pytest.raises(LedgerUnavailableError):
            await ledger.find(rows[0].authorization.key)
        with pytest.raises(LedgerUnavailableError):
            await reserved(ledger)
    await ledger.close()


def test_a_file_that_vanished_is_not_begun_anew(file: Path) -> None:
    asyncio.run(make(file))
    session = SqliteSession(file, writes=True)
    file.unlink()
    with pytest.raises(LedgerUnavailableError, match="unable to open"):
        session.run([])
    assert not file.exists()


async def make(file: Path) -> None:
    await (await Ledger.open(f"sqlite:///{file}", owner=OWNER)).close()
