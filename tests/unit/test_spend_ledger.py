"""A buyer's processes share one record: it signs once per request, and together they stay within the limits."""

import json
import multiprocessing
import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import SpendingError
from attestation.http_signature import Exchange
from attestation.purchase import Payment, parse_payment
from attestation.spend_ledger import APPLICATION_ID, Entry, PaidRequest, Signed, SpendLedger, State
from attestation.spending import Outgoing, SpendingLimit
from tests.purchases import AMOUNT, NOW, ORIGIN, PAY_TO, TOKEN, TRANSACTION, URL, Shop

SHOP = Shop()
END = NOW + 900


def request(word: object = "") -> PaidRequest:
    return PaidRequest.of(
        service=ORIGIN, method="POST", url=URL, body=f"secret {word}".encode(), payer=SHOP.buyer.address
    )


def signed(number: int = 5) -> Signed:
    header = SHOP.payment(SHOP.terms_document())
    payment: Payment = parse_payment(Exchange("POST", URL, 200, {}, b"", request_headers={"payment-signature": header}))
    changed = {name: getattr(payment, name) for name in Payment.__slots__} | {"nonce": f"0x{number:064x}"}
    return Signed(f"{header}.{number}", Payment(**changed), 6, "eip155:1:0xab:0", "the terms")


def unlimited(_: Sequence[Outgoing]) -> None:
    pass


def never() -> Signed:
    pytest.fail("signed twice")


def pay(ledger: SpendLedger, word: object = "", *, number: int = 5, now: int = NOW) -> Entry:
    return ledger.pay(request(word), check=unlimited, sign=partial(signed, number), now=now)


def answer(ledger: SpendLedger, entry: Entry) -> None:
    ledger.answered(
        entry.id, transaction=TRANSACTION, receipt_id="rcpt-1", verdict="VERIFIED", bundle="/b.json", now=NOW + 1
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tollseal" / "spend.db"


@pytest.fixture
def ledger(path: Path) -> SpendLedger:
    return SpendLedger.open(path)


# One signature for one request


def test_a_payment_is_entered_with_all_that_it_says(ledger: SpendLedger) -> None:
    entry = pay(ledger)
    assert (entry.state, entry.counts) == (State.SIGNED, True)
    assert (entry.service, entry.resource, entry.payer) == (ORIGIN, URL, SHOP.buyer.address.lower())
    assert (entry.network, entry.asset, entry.decimals, entry.pay_to) == ("eip155:84532", TOKEN, 6, PAY_TO)
    assert (entry.amount, entry.nonce, entry.valid_before) == (AMOUNT, f"0x{5:064x}", END)
    assert (entry.signed_at, entry.header, entry.terms) == (NOW, signed().header, "the terms")
    assert ledger.entry(entry.id) == ledger.unfinished(request()) == entry
    assert ledger.entry(entry.id + 1) is None


def test_the_same_request_is_not_signed_for_twice(ledger: SpendLedger, path: Path) -> None:
    first = pay(ledger)
    for one in (ledger, SpendLedger.open(path)):
        assert one.pay(request(), check=unlimited, sign=never, now=NOW + 10_000) == first
    assert pay(ledger, "other", number=6).id != first.id


@pytest.mark.parametrize(
    "change",
    [{"method": "PUT"}, {"url": URL + "?a=1"}, {"body": b"b"}, {"service": "https://b.example"}, {"payer": TOKEN}],
)
def test_another_request_is_another_purchase(ledger: SpendLedger, change: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"service": ORIGIN, "method": "POST", "url": URL, "body": b"a", "payer": SHOP.buyer.address}
    ledger.pay(PaidRequest.of(**asked), check=unlimited, sign=signed, now=NOW)
    assert ledger.unfinished(PaidRequest.of(**asked)) is not None
    assert ledger.unfinished(PaidRequest.of(**{**asked, **change})) is None


def test_once_answered_the_same_request_is_a_new_purchase(ledger: SpendLedger) -> None:
    first = pay(ledger)
    answer(ledger, first)
    done = ledger.entry(first.id)
    assert done is not None
    assert (done.state, done.counts) == (State.ANSWERED, True)
    assert (done.transaction_hash, done.receipt_id, done.verdict, done.bundle) == (
        *(TRANSACTION, "rcpt-1", "VERIFIED"),
        "/b.json",
    )
    assert (done.header, done.terms, done.ended_at) == (None, None, NOW + 1)
    assert ledger.unfinished(request()) is None
    assert pay(ledger, number=6).id != first.id


def test_who_delivers_first_is_on_record(ledger: SpendLedger) -> None:
    entry = pay(ledger)
    answer(ledger, entry)
    ledger.answered(entry.id, transaction="0x", receipt_id="other", verdict="FAILED", bundle=None, now=NOW + 2)
    ledger.note(entry.id, "late")
    assert not ledger.give_up(entry.id, "late", now=NOW)
    ledger.unused(entry.id, now=NOW)
    found = ledger.entry(entry.id)
    assert found is not None
    assert (found.state, found.receipt_id, found.note) == (State.ANSWERED, "rcpt-1", None)


def test_nothing_is_entered_when_signing_fails(ledger: SpendLedger) -> None:
    def fail() -> Signed:
        raise ValueError("no key")

    with pytest.raises(ValueError, match="no key"):
        ledger.pay(request(), check=unlimited, sign=fail, now=NOW)
    assert ledger.entries() == ()
    assert pay(ledger).state is State.SIGNED


def test_a_payment_by_another_account_than_the_buyers_is_not_entered(ledger: SpendLedger) -> None:
    asked = PaidRequest.of(service=ORIGIN, method="POST", url=URL, body=b"", payer=PAY_TO)
    with pytest.raises(SpendingError, match=f"not from {PAY_TO}"):
        ledger.pay(asked, check=unlimited, sign=signed, now=NOW)
    assert ledger.entries() == ()


def test_one_authorization_is_entered_once(ledger: SpendLedger) -> None:
    pay(ledger)
    with pytest.raises(SpendingError, match="UNIQUE"):
        pay(ledger, "other")


# What counts


def test_a_payment_counts_until_the_chain_says_that_it_ended_unused(ledger: SpendLedger) -> None:
    entry = pay(ledger)
    assert ledger.outgoings() == (Outgoing(AMOUNT, 6, NOW),)
    ledger.note(entry.id, "no answer", verdict="FAILED")
    assert ledger.give_up(entry.id, "it ended", now=END)
    given_up = ledger.entry(entry.id)
    assert given_up is not None
    assert (given_up.state, given_up.note, given_up.verdict) == (State.GIVEN_UP, "it ended", "FAILED")
    assert (given_up.header, given_up.ended_at) == (None, END)
    assert ledger.outgoings() == (Outgoing(AMOUNT, 6, NOW),)
    ledger.unused(entry.id, now=END + 60)
    assert ledger.outgoings() == ()
    unused = ledger.entry(entry.id)
    assert unused is not None
    assert (unused.state, unused.ended_at, unused.counts) == (State.UNUSED, END, False)


def test_what_the_chain_has_taken_counts_and_is_not_asked_about_again(ledger: SpendLedger) -> None:
    entry = pay(ledger)
    ledger.taken(entry.id)
    assert ledger.ended_unanswered(now=END) == (entry,), "its answer is still to come"
    ledger.give_up(entry.id, "it ended", now=END)
    ledger.taken(entry.id)
    assert ledger.ended_unanswered(now=END) == ()
    assert ledger.outgoings() == (Outgoing(AMOUNT, 6, NOW),)


def test_only_what_has_ended_unanswered_is_in_doubt(ledger: SpendLedger) -> None:
    first, second = pay(ledger, 1, number=1), pay(ledger, 2, number=2)
    answer(ledger, pay(ledger, 3, number=3))
    assert ledger.ended_unanswered(now=END - 1) == ()
    assert ledger.ended_unanswered(now=END) == (second, first)
    assert ledger.ended_unanswered(now=END, limit=1) == (second,)


def test_the_limits_are_checked_with_all_that_counts(ledger: SpendLedger) -> None:
    limit = SpendingLimit("1", total="0.02")
    for number in (1, 2):
        ledger.pay(
            request(number), check=partial(limit.check, AMOUNT, 6, now=NOW), sign=partial(signed, number), now=NOW
        )
    with pytest.raises(SpendingError, match=r"limit of 0\.02 USD"):
        ledger.pay(request(3), check=partial(limit.check, AMOUNT, 6, now=NOW), sign=never, now=NOW)


def spend_what_you_can(path: Path, first: int, started: Any) -> None:
    ledger = SpendLedger.open(path)
    limit = SpendingLimit("1", total="0.1")
    started.wait()
    for number in range(first, first + 10):
        try:
            ledger.pay(
                request(number), check=partial(limit.check, AMOUNT, 6, now=NOW), sign=partial(signed, number), now=NOW
            )
        except SpendingError as error:
            if "of your limit" not in str(error):
                raise  # nobody may be turned away because another process was writing
            return


def test_processes_together_cannot_overspend(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Barrier(3)
    processes = [context.Process(target=spend_what_you_can, args=(path, 10 * n + 1, started)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sum(entry.amount for entry in SpendLedger.open(path).entries()) == 100_000


def sign_for_one_request(path: Path, number: int, started: Any) -> None:
    ledger = SpendLedger.open(path)
    started.wait()
    pay(ledger, number=number)


def test_processes_together_sign_once_for_one_request(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Barrier(3)
    processes = [context.Process(target=sign_for_one_request, args=(path, n, started)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(SpendLedger.open(path).entries()) == 1


# The list


def test_payments_are_listed_by_time_and_service(ledger: SpendLedger) -> None:
    first, second = pay(ledger, 1, number=1), pay(ledger, 2, number=2, now=NOW + 10)
    assert ledger.entries() == (first, second)
    assert ledger.entries(since=NOW + 1) == (second,)
    assert ledger.entries(service=ORIGIN, since=NOW) == (first, second)
    assert ledger.entries(service="https://b.example") == ()


def test_what_is_shown_of_a_payment_cannot_be_spent(ledger: SpendLedger) -> None:
    shown = pay(ledger).to_json()
    assert (shown["state"], shown["amount"], shown["service"]) == ("SIGNED", str(AMOUNT), ORIGIN)
    assert signed().header not in json.dumps(shown)


# The file


def test_the_file_is_its_owners_alone_and_holds_no_document(ledger: SpendLedger, path: Path) -> None:
    pay(ledger)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert b"secret" not in path.read_bytes()
    path.chmod(0o644)
    SpendLedger.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_entered_is_there_for_the_next_process(path: Path) -> None:
    ledger = SpendLedger.open(path)
    entry = pay(ledger)
    ledger.close()
    assert SpendLedger.open(path).unfinished(request()) == entry


def test_a_ledger_in_memory_is_its_own() -> None:
    pay(SpendLedger.in_memory())
    assert SpendLedger.in_memory().entries() == ()


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE payments (id INTEGER)")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(SpendingError, match="is not a record of spending"):
        SpendLedger.open(path)
    assert path.read_bytes() == before


def test_a_newer_format_is_refused(path: Path) -> None:
    SpendLedger.open(path).close()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        other.execute("PRAGMA user_version = 2")
    with pytest.raises(SpendingError, match="another version of Tollseal"):
        SpendLedger.open(path)


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    content = b"no database at all" * 100
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(SpendingError, match=r"spend\.db.* cannot be used"):
        SpendLedger.open(path)
    assert path.read_bytes() == content


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpendingError, match="cannot be used"):
        SpendLedger.open(tmp_path / "file" / "spend.db")


def test_a_ledger_that_breaks_down_signs_nothing(ledger: SpendLedger) -> None:
    ledger.close()
    with pytest.raises(SpendingError, match="cannot be used"):
        ledger.pay(request(), check=unlimited, sign=never, now=NOW)
    with pytest.raises(SpendingError, match="cannot be used"):
        ledger.unfinished(request())
