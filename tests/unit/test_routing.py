"""Each payment goes to the facilitator of its network, and to nobody where there is none."""

import dataclasses
from collections import deque

import pytest

from service.payment.authorization import Authorization
from service.payment.facilitator import FacilitatorUnavailableError, Settled, Unavailable, Unknown, Unused, Verified
from service.payment.routing import Router
from tests.http.fakes import ScriptedFacilitator
from tests.payments import authorize, offer

BASE, LOCAL = "eip155:84532", "eip155:31337"


def on(network: str) -> Authorization:
    return dataclasses.replace(authorize(offer()), network=network)


@pytest.fixture
def base() -> ScriptedFacilitator:
    return ScriptedFacilitator()


@pytest.fixture
def local() -> ScriptedFacilitator:
    return ScriptedFacilitator()


@pytest.fixture
def router(base: ScriptedFacilitator, local: ScriptedFacilitator) -> Router:
    return Router({BASE: base, LOCAL: local})


async def test_a_payment_goes_to_its_own_network(
    router: Router, base: ScriptedFacilitator, local: ScriptedFacilitator
) -> None:
    authorization = on(LOCAL)
    assert isinstance(await router.outcome(authorization), Unused)
    assert isinstance(await router.verify(authorization), Verified)
    assert isinstance(await router.settle(authorization), Settled)
    assert local.calls == ["outcome", "verify", "settle"]
    assert base.calls == []


async def test_a_payment_of_a_network_that_nobody_serves_stays_as_it_is(router: Router) -> None:
    authorization = on("eip155:1")
    with pytest.raises(FacilitatorUnavailableError, match="no facilitator is configured for eip155:1"):
        await router.verify(authorization)
    assert isinstance(await router.settle(authorization), Unknown)
    assert isinstance(await router.outcome(authorization), Unavailable)


async def test_all_networks_must_be_ready(
    router: Router, base: ScriptedFacilitator, local: ScriptedFacilitator
) -> None:
    assert await router.ready() == []
    local.problems = ["no gas"]
    base.problems = ["no node"]
    assert await router.ready() == ["no node", "no gas"]


async def test_closing_closes_all_of_them_even_when_one_cannot_be(local: ScriptedFacilitator) -> None:
    class Stuck(ScriptedFacilitator):
        async def close(self) -> None:
            raise OSError("stuck")

    class Closing(ScriptedFacilitator):
        async def close(self) -> None:
            closed.append("closed")

    closed: deque[str] = deque()
    with pytest.raises(OSError, match="stuck"):
        await Router({BASE: Stuck(), LOCAL: Closing()}).close()
    assert closed
