"""The count at the end of a torture notices everything that may not be."""

from bench.orders import Signed
from bench.torture.buyers import Answer, Purchase
from bench.torture.tally import Charges, Tally, count

PRICE = 10_000
ONE, TWO = "0x" + "01" * 32, "0x" + "02" * 32


def bought(nonce: str, *transactions: str, refused: str | None = None) -> Purchase:
    """A purchase with a verified answer for each of these transactions."""
    answers = [Answer("sha256:aa", b"{}", transaction) for transaction in transactions]
    return Purchase(b"{}", Signed("", nonce), "0x11", answers, refused)


def charged(*nonces: str, transfers: int | None = None, twice: int = 0) -> Charges:
    number = len(nonces) if transfers is None else transfers
    return Charges({nonce: f"tx of {nonce}" for nonce in nonces}, number, number * PRICE, twice)


def tally(purchases: list[Purchase], charges: Charges) -> Tally:
    return count(purchases, charges, price=PRICE)


def test_charges_that_are_answers_are_right() -> None:
    found = tally([bought(ONE, f"tx of {ONE}"), bought(TWO, refused="too late")], charged(ONE))
    assert found.wrong == []
    assert (found.payments, found.charged, found.answered, found.refused) == (2, 1, 1, 1)


def test_a_charge_without_an_answer_is_lost_money_even_when_the_buyer_was_refused() -> None:
    assert tally([bought(ONE)], charged(ONE)).lost == 1
    assert tally([bought(ONE, refused="not accepted")], charged(ONE)).wrong


def test_an_answer_without_a_charge_is_wrong() -> None:
    found = tally([bought(ONE, f"tx of {ONE}")], charged())
    assert found.unpaid == 1
    assert found.wrong


def test_a_payment_that_came_to_nothing_is_wrong() -> None:
    assert tally([bought(ONE)], charged()).wrong


def test_two_transfers_for_one_payment_are_wrong() -> None:
    purchase = bought(ONE, f"tx of {ONE}")
    assert tally([purchase], charged(ONE, transfers=2)).wrong
    assert tally([purchase], charged(ONE, twice=1)).twice == 1
    assert tally([purchase], charged(ONE, twice=1)).wrong


def test_a_receipt_for_another_transaction_is_wrong() -> None:
    assert tally([bought(ONE, "tx of somebody else")], charged(ONE)).wrong


def test_a_charge_that_nobody_signed_is_wrong() -> None:
    assert tally([bought(ONE, f"tx of {ONE}")], charged(ONE, TWO)).wrong


def test_another_amount_than_the_price_is_wrong() -> None:
    charges = Charges({ONE: f"tx of {ONE}"}, 1, PRICE - 1, 0)
    assert tally([bought(ONE, f"tx of {ONE}")], charges).wrong
