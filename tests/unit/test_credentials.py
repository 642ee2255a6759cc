"""When keys are replaced, and what a renewed key ring keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.enclave.keyring import KeyRing
from attestation.errors import EnclaveError
from attestation.keyset import PublicKey
from service.credentials import Credentials, Keyholder, expiry_margin
from service.rotation import rotation_lead
from tests.http.bench import identity_of
from tests.http.fakes import Clock
from tests.http.world import NOW

DAY = 86_400
OVERHEAD = 60
"""Seconds that may pass between a rotation's being due and the new keys' being used."""


@given(
    lifetime=st.integers(600, 31 * DAY),
    timeout=st.integers(30, DAY),
    delays=st.lists(st.integers(0, OVERHEAD), min_size=6, max_size=20),
)
def test_no_keyset_takes_the_slot_of_a_valid_one_and_none_gets_too_old_to_sell(
    lifetime: int, timeout: int, delays: list[int]
) -> None:
    lead = rotation_lead(lifetime, timeout)
    ends, current = [lifetime, 0], 0
    for delay in delays:
        now = ends[current] - lead + delay
        assert ends[current] - now >= expiry_margin(lifetime), "nothing could be sold"
        current = 1 - current
        assert ends[current] <= now, "the record of a valid keyset would be overwritten"
        ends[current] = now + lifetime


@pytest.mark.parametrize(
    ("lifetime", "timeout", "lead"),
    [(600, 900, 300), (3_600, 900, 1_200), (7 * DAY, 900, 60_480), (7 * DAY, DAY, 86_700), (31 * DAY, 30, 267_840)],
)
def test_the_lead_leaves_time_to_pay_where_the_lifetime_allows_it(lifetime: int, timeout: int, lead: int) -> None:
    assert rotation_lead(lifetime, timeout) == lead


def test_a_renewed_ring_signs_with_new_keys_and_opens_what_was_stored() -> None:
    old = KeyRing.generate()
    new = old.renew()
    assert [key.key_id for key in new.public_keys()] == ["receipt-2", "http-2", "payment-2"]
    assert [key.key_id for key in new.renew().public_keys()] == ["receipt-3", "http-3", "payment-3"]

    def secrets(keys: tuple[PublicKey, ...]) -> set[str]:
        return {key.public_key for key in keys}

    assert not secrets(old.public_keys()) & secrets(new.public_keys())
    assert old.payment_address != new.payment_address
    assert new.unseal(old.seal(b"answer", context=b"payment"), context=b"payment") == b"answer"
    keys = [ring.tls_server(host="127.0.0.1", now=NOW)[0] for ring in (old, new)]
    assert keys[0] == keys[1]


def test_a_ring_that_was_given_up_does_nothing_any_more() -> None:
    ring = KeyRing.generate()
    sealed = ring.seal(b"answer", context=b"payment")
    ring.forget()
    for use in (
        lambda: ring.sign_receipt(b""),
        lambda: ring.sign_http(b""),
        lambda: ring.seal(b"", context=b""),
        lambda: ring.unseal(sealed, context=b"payment"),
        lambda: ring.tls_server(host="127.0.0.1", now=NOW),
        ring.renew,
    ):
        with pytest.raises(EnclaveError, match="given up"):
            use()
    assert len(ring.public_keys()) == 3, "what is public stays known"


def holder(clock: Clock, not_after: int) -> Keyholder:
    return Keyholder(credentials("main", not_after), margin_seconds=300, clock=clock)


def credentials(slot: str, not_after: int) -> Credentials:
    keys = KeyRing.generate()
    return Credentials(keys, identity_of(keys, not_after=not_after), f"tee.key.{slot}")


def test_credentials_are_good_until_they_expire_or_lose_their_slot() -> None:
    clock = Clock()
    keyholder = holder(clock, NOW + 1_000)
    first, second, third = keyholder.current, credentials("main--2", NOW + 2_000), credentials("main", NOW + 3_000)
    keyholder.give_terms("request")
    keyholder.replace(second)
    assert list(keyholder.valid) == [second, first]
    assert keyholder.terms_given("request") is first
    clock.now += 701
    assert keyholder.terms_given("request") is second, "too little time is left to check an answer"
    clock.now -= 701
    keyholder.replace(third)
    assert list(keyholder.valid) == [third, second], "the third has taken the first one's place on the chain"
    assert keyholder.terms_given("request") is third
    clock.now += 2_000
    assert list(keyholder.valid) == [third]


def test_of_two_who_ask_the_same_the_later_terms_count() -> None:
    keyholder = holder(Clock(), NOW + 1_000)
    keyholder.give_terms("request")
    second = credentials("main--2", NOW + 2_000)
    keyholder.replace(second)
    assert keyholder.give_terms("request") is second
    assert keyholder.terms_given("request") is second
