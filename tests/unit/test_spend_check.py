"""What the chain says settles what counts as spent; what it does not say changes nothing."""

import pytest

from attestation.spend_check import clear_doubts
from attestation.spend_ledger import SpendLedger, State
from tests.sellers import Clock, FakeChain, Seller
from tests.unit.test_spend_ledger import END, pay


@pytest.fixture
def chain() -> FakeChain:
    return FakeChain(Seller(Clock(now=END + 60)))


async def state_after(chain: FakeChain, *, give_up: bool = True, at: int = END + 60) -> State:
    ledger = SpendLedger.in_memory()
    entry = pay(ledger)
    if give_up:
        ledger.give_up(entry.id, "no answer", now=END)
    chain.taken = {entry.nonce} if chain.taken else set()
    await clear_doubts(ledger, chain, now=at)
    found = ledger.entry(entry.id)
    assert found is not None
    return found.state


async def test_what_was_never_used_no_longer_counts(chain: FakeChain) -> None:
    assert await state_after(chain) is State.UNUSED
    assert await state_after(chain, give_up=False) is State.UNUSED


async def test_what_was_taken_counts_for_ever(chain: FakeChain) -> None:
    chain.taken = {"this one"}
    assert await state_after(chain) is State.TAKEN
    assert await state_after(chain, give_up=False) is State.SIGNED, "its answer is still to come"


async def test_a_payment_that_has_not_ended_is_not_asked_about(chain: FakeChain) -> None:
    assert await state_after(chain, at=END - 1) is State.GIVEN_UP


async def test_the_newest_blocks_may_still_be_replaced(chain: FakeChain) -> None:
    chain.behind = 1
    assert await state_after(chain) is State.GIVEN_UP


async def test_a_node_that_says_nothing_changes_nothing(chain: FakeChain) -> None:
    chain.silent = True
    assert await state_after(chain) is State.GIVEN_UP
