"""Keys are replaced while the service runs: nobody waits, nothing is lost, and each purchase stays under one keyset."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from eth_account import Account

from attestation import manifest as manifests
from attestation import purchase as purchases
from attestation import report
from attestation.bundle import PAYMENT_HEADER, Bundle
from attestation.checker import ServiceChecker
from attestation.client import PURCHASE, PayingTransport, Purchase
from attestation.errors import EnclaveError
from attestation.policy import Policy
from attestation.receipt import check_signature, parse_receipt
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import ReadBackError, UnknownAgentError
from attestation.registry.publication import Published, published
from attestation.registry.records import KeyRecord
from attestation.registry.view import ChainReader
from attestation.registry.writer import IdentityWriter
from attestation.verdict import Status, Verdict
from attestation.verifier import Verifier
from service import credentials, rotation
from service.boot import unix_now
from service.credentials import Credentials, Keyholder
from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer
from service.payment.local import LocalFacilitator
from service.payment.routing import Router
from tests.http.bench import Bench, bench
from tests.http.conftest import Stack, buyer_of, running
from tests.http.fakes import Clock
from tests.http.world import (
    DOCUMENT,
    FAR,
    NOW,
    PRICE,
    SUMMARIZE,
    Caller,
    check_response,
    distinct_body,
    exchange_of,
    problem_of,
    request_body,
)

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

POLICY = Policy(allow_simulated=True).requiring_chain()
DAY = 86_400

Moment = Callable[[httpx.Request], bool]


@pytest_asyncio.fixture(loop_scope="session")
async def own(anvil: Anvil, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack whose keys may be replaced."""
    async with running(anvil, tmp_path, slots="4") as stack:
        yield stack


def local_facilitator(stack: Stack) -> LocalFacilitator:
    """The facilitator that settles on the chain of this stack."""
    router = stack.service.facilitator
    assert isinstance(router, Router)
    facilitator = router.on(f"eip155:{stack.chain.chain_id}")
    assert isinstance(facilitator, LocalFacilitator)
    return facilitator


class RotatesOnce(httpx.AsyncHTTPTransport):
    """Has the service replace its keys just before a request of the buyer's reaches it."""

    def __init__(self, stack: Stack, when: Moment) -> None:
        super().__init__()
        self._stack, self._when, self.rotated = stack, when, False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.rotated and self._when(request):
            self.rotated = True
            await self._stack.service.rotation.rotate()
        return await super().handle_async_request(request)


async def purchase(stack: Stack, transport: PayingTransport) -> Purchase:
    async with httpx.AsyncClient(transport=transport, timeout=30) as http:
        response = await http.post(stack.url + SUMMARIZE, json={"document": DOCUMENT})
    found = response.extensions[PURCHASE]
    assert isinstance(found, Purchase)
    return found


def digest_of(bundle: Bundle) -> str:
    return str(bundle.answer.headers["x-aci-keyset-digest"])


def now_of(stack: Stack) -> str:
    return stack.service.identity.keyset.digest


async def verify_later(stack: Stack, bundle: Bundle, *, now: int | None = None) -> Verdict:
    """What somebody finds who has nothing but the bundle and a node."""
    view = await ChainReader(stack.chain.rpc).view(
        report.agent_of(bundle.attestation),
        report.key_slot_of(bundle.attestation),
        purchases.parse_payment(bundle.answer),
        purchases.parse_settlement(bundle.answer).transaction,
    )
    verifier = Verifier(POLICY, now=unix_now() if now is None else now, chain=view)
    return verifier.verify_bundle(bundle.dumps().encode())


async def on_chain(stack: Stack, slot: str) -> Published:
    chain = stack.chain
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        with pytest.raises(UnknownAgentError):
            await reader.owner_of(1)  # there never is a second agent
        return await published(reader, 0, slot)


async def keyset_in(stack: Stack, slot: str) -> str | None:
    key = (await on_chain(stack, slot)).key
    return None if key is None else key.keyset_digest


def under_current(stack: Stack) -> Caller:
    return replace(stack.caller, keyset=stack.service.identity.keyset, seen=[])


def sent(stack: Stack) -> int:
    operator = Deployer(stack.chain.rpc, Account.from_key(stack.chain.operator_key))
    return int(operator.w3.eth.get_transaction_count(operator.account.address))


# On a chain


@pytest.mark.parametrize(
    ("when", "keyset"),
    [
        (lambda request: request.url.path == manifests.PATH, "new"),
        (lambda request: request.url.path == SUMMARIZE, "new"),
        (lambda request: PAYMENT_HEADER in request.headers, "old"),
    ],
    ids=["between report and manifest", "between report and terms", "between terms and payment"],
)
async def test_a_purchase_during_a_rotation_verifies_in_full(own: Stack, when: Moment, keyset: str) -> None:
    old = now_of(own)
    transport = RotatesOnce(own, when)
    bought = await purchase(own, PayingTransport(buyer_of(own, POLICY), transport))
    assert transport.rotated
    assert digest_of(bought.bundle) == {"old": old, "new": now_of(own)}[keyset]
    assert bought.verdict.exit_code == 0
    for check in ("keyset.binding", "answer.signature", "receipt.signature", "registry.key", "payment.onchain"):
        assert bought.verdict.check(check).status is Status.PASS
    assert await own.earned() == PRICE
    assert own.ledger.states() == ["SETTLED"]


async def test_a_receipt_is_served_under_the_keyset_that_it_names(own: Stack) -> None:
    """The buyer of a streamed answer fetches it at the end, and has attested the keyset of the beginning."""
    bought = await own.caller.buy()
    path = f"/v1/aci/receipts/{bought.headers['x-receipt-id']}"
    await own.service.rotation.rotate()
    assert (await own.caller.get(path)).status_code == 200, "checked under the keyset of the purchase"
    await own.service.rotation.rotate()
    gone = await under_current(own).get(path)
    assert gone.json()["workload_keyset_digest"] != now_of(own), "its own keyset has left the chain"


async def test_an_old_purchase_verifies_until_its_keyset_expires(own: Stack) -> None:
    transport = RotatesOnce(own, lambda request: PAYMENT_HEADER in request.headers)
    bundle = (await purchase(own, PayingTransport(buyer_of(own, POLICY), transport))).bundle
    assert (await verify_later(own, bundle)).exit_code == 0
    await own.service.rotation.rotate()
    assert await keyset_in(own, "main") == now_of(own), "the old record has gone"
    assert (await verify_later(own, bundle)).exit_code == 0
    end = parse_report_end(bundle)
    assert (await verify_later(own, bundle, now=end - 1)).exit_code == 0
    assert (await verify_later(own, bundle, now=end)).check("keyset.lifetime").status is Status.FAIL


def parse_report_end(bundle: Bundle) -> int:
    return int(report.attestation_of(bundle.attestation)["workload_keyset"]["not_after"])


async def test_a_buyer_who_knows_the_service_learns_its_new_keys(own: Stack) -> None:
    transport = PayingTransport(buyer_of(own, POLICY))
    old = await transport.establish(httpx.URL(own.url))
    await own.service.rotation.rotate()
    bought = await purchase(own, transport)
    assert bought.verdict.exit_code == 0
    assert old.keyset_digest != digest_of(bought.bundle) == now_of(own)
    assert await own.earned() == PRICE


async def test_keysets_take_two_slots_in_turn(own: Stack) -> None:
    first = now_of(own)
    before = await asyncio.to_thread(sent, own)
    async with ServiceChecker(policy=POLICY, chain=ChainReader(own.chain.rpc)) as checker:
        for slot, other in (("main--2", "main"), ("main", "main--2")):
            old = now_of(own)
            await own.service.rotation.rotate()
            found = await checker.attest(httpx.URL(own.url))
            assert found.verdict.acceptable
            assert found.keyset_digest == now_of(own) != old
            assert report.key_slot_of(found.attestation) == f"tee.key.{slot}"
            assert (await keyset_in(own, slot), await keyset_in(own, other)) == (now_of(own), old)
    assert first not in (now_of(own), await keyset_in(own, "main--2"))
    assert await asyncio.to_thread(sent, own) == before + 2, "one transaction for each keyset"


async def test_calls_that_run_during_a_rotation_are_answered_and_charged_once(own: Stack) -> None:
    """Settlements and the publication come from one account at the same time."""
    own.model.hold = asyncio.Event()
    bodies = [distinct_body(f"running {number}") for number in range(8)]
    payments = [await own.caller.payment(body) for body in bodies]
    before = await asyncio.to_thread(sent, own)
    calls = [
        asyncio.create_task(own.caller.ask(body, payment=payment))
        for body, payment in zip(bodies, payments, strict=True)
    ]
    await own.model.started.wait()
    rotating = asyncio.create_task(own.service.rotation.rotate())
    own.model.hold.set()
    answers = await asyncio.gather(*calls)  # the caller checks each against the keyset of its terms
    await rotating
    assert [answer.status_code for answer in answers] == [200] * 8
    assert set(own.ledger.states()) == {"SETTLED"}
    assert await own.earned() == 8 * PRICE
    # One transaction publishes the key; the eight payments may share theirs.
    assert before + 2 <= await asyncio.to_thread(sent, own) <= before + 9
    assert (await under_current(own).buy(distinct_body("after"))).status_code == 200
    assert await keyset_in(own, "main--2") == now_of(own)


async def test_nothing_is_settled_while_somebody_else_sends(own: Stack) -> None:
    facilitator = local_facilitator(own)
    payment = await own.caller.payment()
    before = await asyncio.to_thread(sent, own)
    async with facilitator.exclusive():
        call = asyncio.create_task(own.caller.ask(payment=payment))
        await asyncio.wait([call], timeout=1)
        assert own.ledger.states() == ["SETTLING"]
        assert await asyncio.to_thread(sent, own) == before
        assert not call.done()
    assert (await call).status_code == 200


async def test_no_key_is_published_while_somebody_else_sends(own: Stack) -> None:
    facilitator = local_facilitator(own)
    before = await asyncio.to_thread(sent, own)
    async with facilitator.exclusive():
        rotating = asyncio.create_task(own.service.rotation.rotate())
        await asyncio.wait([rotating], timeout=1)
        assert not rotating.done()
        assert await asyncio.to_thread(sent, own) == before
    await rotating
    assert await asyncio.to_thread(sent, own) == before + 1


async def test_whoever_stops_waiting_for_the_account_does_not_keep_it(own: Stack) -> None:
    facilitator = local_facilitator(own)

    async def publish() -> None:
        async with facilitator.exclusive():
            pytest.fail("it was held by somebody else")

    async with facilitator.exclusive():
        waiting = asyncio.create_task(publish())
        await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(5):
        assert (await own.caller.buy()).status_code == 200


async def test_keys_that_cannot_be_published_are_not_used(own: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unseen(*_: object) -> None:
        raise ReadBackError("the transaction was mined, but the record does not show what was written")

    old = now_of(own)
    with monkeypatch.context() as patched:
        patched.setattr(IdentityWriter, "set_metadata", unseen)
        with pytest.raises(ReadBackError):
            await own.service.rotation.rotate()
        assert now_of(own) == old
        assert (await own.caller.get("/readyz")).json()["ready"] is True, "there is time to try again"
        assert (await own.caller.buy()).status_code == 200
    await own.service.rotation.rotate()
    assert await keyset_in(own, "main--2") == now_of(own) != old


async def test_connections_and_pins_outlast_a_rotation(anvil: Anvil, tmp_path: Path) -> None:
    """The TLS key stays: a buyer who pinned it goes on, and attests the new keys over it."""
    async with running(anvil, tmp_path, tls="enclave") as own:
        transport = PayingTransport(buyer_of(own, POLICY.requiring("channel.tls")))
        pinned = await transport.establish(httpx.URL(own.url))
        await own.service.rotation.rotate()
        bought = await purchase(own, transport)
        assert bought.verdict.check("channel.tls").status is Status.PASS
        assert digest_of(bought.bundle) == now_of(own) != pinned.keyset_digest


async def test_a_running_service_rotates_by_itself_and_gives_its_keys_up_at_the_end(
    anvil: Anvil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, really = asyncio.Event(), Keyholder.replace

    def replace_(self: Keyholder, new: Credentials) -> None:
        really(self, new)
        replaced.set()

    monkeypatch.setattr(Keyholder, "replace", replace_)
    monkeypatch.setattr(rotation, "CHECK_SECONDS", 0.01)
    clock = Clock(unix_now())
    async with running(anvil, tmp_path, clock=clock, keyset_lifetime_seconds="600") as own:
        replaced.clear()  # those of the start
        old = own.service.keyholder.current
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(replaced.wait(), 0.2)  # there is plenty of time
        clock.now += 300
        await asyncio.wait_for(replaced.wait(), 20)
        new = own.service.keyholder.current
        assert await keyset_in(own, "main--2") == new.identity.keyset.digest
    for given_up in (old, new):
        with pytest.raises(EnclaveError, match="given up"):
            given_up.keys.sign_http(b"")


# Without a chain: when, and under which keys


async def answered_under(shop: Bench, response: httpx.Response, keyset: Credentials) -> None:
    """The response and all that is in it is under this keyset."""
    check_response(exchange_of(response), keyset.identity.keyset, now=shop.clock())
    if response.status_code == 200 and "x-receipt-id" in response.headers:
        kept = await shop.caller.http.get(f"/v1/aci/receipts/{response.headers['x-receipt-id']}")
        check_signature(parse_receipt(kept.json()), keyset.identity.keyset)


async def ask(shop: Bench, payment: str | None = None, body: bytes | None = None) -> httpx.Response:
    headers = {"content-type": "application/json", **({} if payment is None else {"payment-signature": payment})}
    return await shop.caller.http.post(SUMMARIZE, content=body or request_body(), headers=headers)


async def test_terms_and_what_follows_them_are_under_one_keyset(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        old = shop.service.keyholder.current
        payment = await shop.caller.payment(valid_before=FAR)
        new = await shop.service.rotation.rotate()
        wrong = await shop.caller.http.post(
            SUMMARIZE,
            content=request_body(),
            headers={"content-type": "application/json", "payment-signature": "bm8="},
        )
        await answered_under(shop, wrong, old)
        await answered_under(shop, await ask(shop, payment), old)
        await answered_under(shop, await ask(shop, body=distinct_body("another request")), new)
        await answered_under(shop, await shop.caller.http.get("/healthz"), new)


async def test_an_answer_that_is_fetched_under_later_keys_has_a_receipt_of_its_own(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        old = shop.service.keyholder.current
        payment = await shop.caller.payment(valid_before=FAR)
        first = await ask(shop, payment)
        new = await shop.service.rotation.rotate()
        await answered_under(shop, await ask(shop), new)
        second = await ask(shop, payment)
        await answered_under(shop, second, new)
        await answered_under(shop, first, old)
        assert second.content == first.content
        assert second.headers["x-receipt-id"] != first.headers["x-receipt-id"]
        assert (shop.backend.completions, shop.facilitator.count("settle")) == (1, 1)


async def test_callers_who_share_a_call_get_it_under_the_keys_that_it_began_with(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        old = shop.service.keyholder.current
        payment = await shop.caller.payment(valid_before=FAR)
        shop.backend.hold = asyncio.Event()
        one = asyncio.create_task(ask(shop, payment))
        await shop.backend.working.wait()
        await shop.service.rotation.rotate()
        assert (await ask(shop)).status_code == 402  # under the new keys, and the later terms count
        two = asyncio.create_task(ask(shop, payment))
        await asyncio.wait([two], timeout=0.1)
        shop.backend.hold.set()
        for answer in (await one, await two):
            assert answer.status_code == 200
            await answered_under(shop, answer, old)


async def test_terms_of_a_keyset_at_its_end_are_answered_under_the_new_one(ledger_path: Path) -> None:
    async with bench(ledger_path, not_after=NOW + 1_000) as shop:
        payment = await shop.caller.payment(valid_before=FAR)
        new = await shop.service.rotation.rotate()
        shop.clock.now += 800
        await answered_under(shop, await ask(shop, payment), new)


async def test_requests_that_are_forgotten_are_answered_under_the_new_keys(
    ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "MAX_REMEMBERED", 2)
    async with bench(ledger_path) as shop:
        old = shop.service.keyholder.current
        bodies = [distinct_body(f"forgotten {number}") for number in range(3)]
        payments = [await shop.caller.payment(body, valid_before=FAR) for body in bodies]
        new = await shop.service.rotation.rotate()
        for body, payment, expected in zip(bodies, payments, (new, old, old), strict=True):
            await answered_under(shop, await ask(shop, payment, body), expected)


async def test_a_report_is_signed_by_the_keys_that_it_is_about(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        old, enclave = shop.service.keyholder.current, shop.service.enclave
        evidence = enclave.evidence

        async def slow(*arguments: bytes, now: int) -> object:
            await shop.service.rotation.rotate()
            return await evidence(*arguments, now=now)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(enclave), "evidence", lambda _, slot, *, now: slow(slot, now=now))
            response = await shop.caller.http.get("/v1/aci/attestation")
        await answered_under(shop, response, old)
        assert response.json()["workload_keyset_digest"] == old.identity.keyset.digest


async def test_the_key_directory_lists_every_key_that_is_still_good(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:

        async def listed() -> list[str]:
            path = "/.well-known/http-message-signatures-directory"
            return [key["kid"] for key in (await shop.caller.http.get(path)).json()["keys"]]

        assert await listed() == ["http"]
        await shop.service.rotation.rotate()
        assert await listed() == ["http-2", "http"]
        signed = await shop.caller.http.get("/healthz")
        assert 'keyid="http-2"' in signed.headers["signature-input"]
        shop.clock.now += DAY
        assert await listed() == ["http-2"], "the first has expired"
        await shop.service.rotation.rotate()
        assert await listed() == ["http-3", "http-2"]


async def test_a_failure_is_told_when_time_runs_out_and_ends_with_success(
    ledger_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = True

    async def publish(slot: str, record: KeyRecord) -> None:
        if failing:
            raise ReadBackError("http://node.example/?key=secret does not show it")

    async with bench(ledger_path, publish=publish) as shop:
        old, due = shop.service.keyholder.current, shop.service.rotation.rotate_when_due
        assert not await due()
        assert caplog.text == "", "it was not tried"
        shop.clock.now += DAY - 400
        assert not await due()
        assert "ReadBackError" in caplog.text
        assert "secret" not in caplog.text
        assert shop.service.keyholder.current is old
        assert (await shop.caller.get("/readyz")).status_code == 200
        shop.clock.now += 200
        assert not await due()
        (problem,) = (await shop.caller.get("/readyz")).json()["problems"]
        assert "expires in 200 s, and could not be replaced" in problem
        problem_of(await shop.caller.ask(), 503, "not-ready")
        failing = False
        assert await due()
        assert (await ask(shop)).status_code == 402
        assert (await shop.caller.http.get("/readyz")).status_code == 200


async def test_an_authorization_is_for_one_request_whatever_the_keys(ledger_path: Path) -> None:
    """A payment made under the old terms buys nothing else under the new ones."""
    async with bench(ledger_path) as shop:
        payment = await shop.caller.payment(valid_before=FAR)
        await shop.service.rotation.rotate()
        assert (await ask(shop, payment)).status_code == 200
        assert (await ask(shop, payment, distinct_body("other"))).status_code == 409
