"""Which wallet an agent had when: what was set last, unless the agent was sold since."""

import pytest

from attestation.registry.erc8004 import Position
from attestation.registry.ownership import Ownership

OLD, NEW = "0x" + "01" * 20, "0x" + "02" * 20


def at(block: int) -> Position:
    return Position(block, 0)


@pytest.mark.parametrize(
    ("block", "wallet"),
    [(5, None), (10, None), (11, OLD), (20, OLD), (21, NEW), (30, NEW), (31, None), (50, None), (51, NEW), (60, None)],
)
def test_the_wallet_is_the_last_one_before_that_was_not_cleared_by_a_sale(block: int, wallet: str | None) -> None:
    # Set at 10, replaced at 20, sold at 30 (without an event that clears it), set again at 50, cleared at 55.
    wallets = ((at(10), OLD), (at(20), NEW), (at(50), NEW), (at(55), None))
    past = Ownership(frozenset({"0x" + "aa" * 20}), (at(30),), wallets, {})
    assert past.wallet_at(at(block)) == wallet


def test_every_owner_and_wallet_there_ever_was_is_the_agents_own() -> None:
    past = Ownership(frozenset({"0x" + "aa" * 20}), (), ((at(1), OLD), (at(2), None), (at(3), NEW)), {})
    assert past.accounts == {"0x" + "aa" * 20, OLD, NEW}
