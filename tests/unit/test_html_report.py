"""The page draws what the verdict says, fetches nothing, and cannot be written into."""

import re

import pytest

from attestation.html_report import LINKS, PAYMENT, render
from attestation.policy import Policy
from attestation.verdict import Check, Result, Status, Verdict
from attestation.verifier import Verifier
from tests.purchases import NOW, Shop


def link(page: str, name: str) -> str:
    found = re.search(rf'<span class="link (\w+)"[^>]*>{name}</span>', page)
    assert found
    return found[1]


def test_every_check_of_a_purchase_belongs_to_a_link_of_the_chain() -> None:
    verdict = Verifier(Policy(allow_simulated=True), now=NOW).verify_bundle(Shop().bundle())
    drawn = frozenset().union(*(ids for _, ids in (*LINKS, PAYMENT)))
    assert {check.id for check in verdict.checks} == drawn


@pytest.mark.parametrize(
    ("statuses", "drawn"),
    [
        ((Status.PASS, Status.PASS), "pass"),
        ((Status.PASS, Status.NOT_VERIFIED), "open"),
        ((Status.NOT_VERIFIED, Status.FAIL), "fail"),
    ],
)
def test_a_link_is_as_good_as_its_worst_check(statuses: tuple[Status, Status], drawn: str) -> None:
    checks = (Check("keyset.binding", statuses[0], ""), Check("keyset.lifetime", statuses[1], ""))
    page = render(Verdict(Result.FAILED, checks))
    assert link(page, "attested keyset") == drawn
    assert link(page, "receipt") == "open"


def test_texts_from_elsewhere_stay_texts() -> None:
    page = render(Verdict(Result.FAILED, (Check("x", Status.FAIL, "<script>alert(1)</script>\x1b[31m"),)))
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page


def test_the_page_fetches_nothing() -> None:
    page = render(Verdict(Result.VERIFIED, ()))
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)\s*=", page)
    assert "VERIFIED" in page
