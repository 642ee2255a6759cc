"""Every sentence of a verdict: what a check says when a service, a buyer or a chain deviates in one point only."""

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from attestation import verifier
from attestation.bundle import Bundle
from attestation.digest import digest
from attestation.enclave.simulated import SimulatedEnclave
from attestation.encoding import b64
from attestation.errors import EvidenceError, MalformedError, TollsealError
from attestation.evidence.appraisal import EvidencePolicy
from attestation.http_signature import Exchange
from attestation.onchain import AgentOnChain, ChainView, PaymentOnChain, Record, Unreadable
from attestation.payment_proof import EXTENSION
from attestation.policy import Policy
from attestation.pricing import EXTENSION as EXTENSION_OF_PRICE
from attestation.pricing import PriceBasis, PriceRule, request_digest
from attestation.purchase import Payment
from attestation.registry.records import KeyRecord, encode_key
from attestation.verdict import Check, Result, Status, Verdict
from attestation.verifier import NO_TLS, Verifier
from tests.evidence_tdx import NOW as TDX_NOW
from tests.evidence_tdx import TestIntel
from tests.purchases import (
    AMOUNT,
    BODY,
    KEY_SLOT,
    NONCE,
    NOW,
    ORIGIN,
    PAY_TO,
    TOKEN,
    URL,
    Shop,
    manifest_document,
    payment_terms,
)

SIMULATED = Policy(allow_simulated=True)
SPKI, OTHER_SPKI = "11" * 32, "22" * 32


def judge(
    bundle: Bundle,
    *,
    policy: Policy = SIMULATED,
    now: int = NOW,
    chain: ChainView | None = None,
    channel: str | None = None,
) -> Verdict:
    return Verifier(policy, now=now, chain=chain, channel=channel).verify_bundle(bundle)


def failures(verdict: Verdict) -> dict[str, str]:
    return {check.id: check.detail for check in verdict.checks if check.status is Status.FAIL}


def sell(**changes: Any) -> Bundle:
    return Shop().bundle(**changes)


def built(**changes: Any) -> Shop:
    return Shop(manifest=manifest_document(**changes))


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope="module")
def honest(shop: Shop) -> Bundle:
    return shop.bundle()


# Before anything is sent


def test_a_service_can_be_judged_before_anything_is_sent_to_it(shop: Shop) -> None:
    verdict = Verifier(SIMULATED, now=NOW).verify_service(shop.attestation(), shop.manifest_exchange(), nonce=NONCE)
    assert (verdict.result, verdict.exit_code) == (Result.SIMULATED, 0)
    assert {check.id for check in verdict.checks}.isdisjoint({"offer.signature", "receipt.signature"})
    replayed = Verifier(SIMULATED, now=NOW).verify_service(
        shop.attestation(), shop.manifest_exchange(), nonce="cd" * 32
    )
    assert "another nonce than ours" in failures(replayed)["keyset.binding"]


def before_paying(shop: Shop, document: dict[str, Any], *, url: str = URL) -> Verdict:
    terms = shop.signed(replace(shop.terms(document), url=url, headers=unsigned(shop.terms(document))))
    return Verifier(SIMULATED, now=NOW).verify_terms(shop.attestation(), shop.manifest_exchange(), terms, nonce=NONCE)


def unsigned(exchange: Exchange) -> dict[str, str]:
    signing = {"content-digest", "signature-input", "signature"}
    return {name: value for name, value in exchange.headers.items() if name not in signing}


def test_an_offer_without_an_end_does_not_end(shop: Shop) -> None:
    document = shop.terms_document(extensions={EXTENSION: {"info": {"offers": [shop.offer(valid_until=0)]}}})
    assert failures(before_paying(shop, document)) == {}


def test_an_offer_ends_in_the_second_that_it_names(shop: Shop) -> None:
    for end, refused in ((NOW + 1, False), (NOW, True)):
        document = shop.terms_document(extensions={EXTENSION: {"info": {"offers": [shop.offer(valid_until=end)]}}})
        assert bool(failures(before_paying(shop, document))) is refused


def test_terms_for_another_place_than_was_asked_are_refused(shop: Shop) -> None:
    verdict = before_paying(shop, shop.terms_document(), url=f"{ORIGIN}/v1/other")
    assert failures(verdict) == {"offer.signature": f"the terms are for {URL}, the request went to {ORIGIN}/v1/other"}


def test_every_way_to_pay_must_have_a_signed_offer() -> None:
    dearer = {**payment_terms(), "amount": str(AMOUNT + 1)}
    shop = built(payment={"accepts": [payment_terms(), dearer], "facilitator": "local"})
    accepts = [{**terms, "maxTimeoutSeconds": 900} for terms in (payment_terms(), dearer)]
    half = shop.terms_document(accepts=accepts)
    assert failures(before_paying(shop, half)) == {"offer.signature": "some of the terms have no signed offer"}
    second = shop.offer(accept_index=1, amount=str(AMOUNT + 1))
    both = {**half, "extensions": {EXTENSION: {"info": {"offers": [shop.offer(), second]}}}}
    assert failures(before_paying(shop, both)) == {}


# Evidence and keyset


@dataclass
class Repeater(SimulatedEnclave):
    """An enclave that has evidence for one statement only, whatever it is asked to bind."""

    uri: str = "simulated:"

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:
        return await SimulatedEnclave("simulated:").evidence(bytes(64), now=now)


def test_evidence_for_other_keys_is_refused_whatever_is_written_beside_it() -> None:
    bundle = Shop(enclave=Repeater()).bundle()
    assert failures(judge(bundle)) == {"keyset.binding": "the evidence does not bind this keyset and nonce"}
    assert judge(bundle).check("receipt.signature").detail == "needs keyset.binding"


def test_a_report_cannot_write_another_binding_beside_its_evidence(shop: Shop, honest: Bundle) -> None:
    document = json.loads(honest.attestation.body)["attestation"]
    other = shop.attestation(attestation={**document, "report_data": "00" * 32})
    assert "beside the evidence" in failures(judge(replace(honest, attestation=other)))["keyset.binding"]


def test_a_report_that_names_another_keyset_than_it_holds_is_refused(shop: Shop, honest: Bundle) -> None:
    named = shop.attestation(workload_keyset_digest="sha256:" + "0" * 64)
    verdict = judge(replace(honest, attestation=named))
    assert "its keyset is " + shop.keyset.digest in failures(verdict)["keyset.binding"]


@dataclass
class WithoutCollateral:
    """A TDX machine whose host hands out no collateral."""

    vendor: TestIntel = field(default_factory=TestIntel)
    uri = "test:"
    tee_type = "tdx"
    is_hardware = True

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:
        return {"quote": self.vendor.quote(report_data).hex()}


def test_hardware_that_cannot_be_looked_up_is_neither_believed_nor_refused() -> None:
    machine = WithoutCollateral()
    bundle = Shop(enclave=machine, now=TDX_NOW, manifest=manifest_document(tee="tdx")).bundle()
    verifier = Verifier(Policy(), now=TDX_NOW, roots={"tdx": (machine.vendor.root,)})
    verdict = verifier.verify_bundle(bundle)
    genuine = verdict.check("evidence.genuine")
    assert genuine.status is Status.NOT_VERIFIED
    assert "collateral" in genuine.detail
    assert (verdict.result, verdict.exit_code) == (Result.INCOMPLETE, 4)
    brought = Verifier(
        Policy(evidence=EvidencePolicy()),
        now=TDX_NOW,
        roots={"tdx": (machine.vendor.root,)},
        collateral=machine.vendor.collateral(),
    ).verify_bundle(bundle)
    assert brought.check("evidence.genuine").status is Status.PASS


def test_a_number_that_readers_do_not_agree_on_is_a_failed_check() -> None:
    with pytest.raises(MalformedError, match="exceeds"):
        Shop(not_after=2**60).bundle()
    bundle = sell()
    document = json.loads(bundle.attestation.body)
    document["attestation"]["workload_keyset"]["not_after"] = 2**60
    changed = replace(bundle, attestation=replace(bundle.attestation, body=json.dumps(document).encode()))
    assert "document: has no canonical form (RFC 8785)" in failures(judge(changed))["keyset.binding"]


# The build


@pytest.mark.parametrize(
    "manifest",
    [
        lambda shop: replace(shop.manifest_exchange(), status=404),
        lambda shop: replace(shop.manifest_exchange(), url=f"{ORIGIN}/elsewhere.json"),
        lambda shop: replace(shop.manifest_exchange(), request_body=b"{}"),
    ],
)
def test_only_a_200_of_its_path_is_the_manifest(
    shop: Shop, honest: Bundle, manifest: Callable[[Shop], Exchange]
) -> None:
    verdict = judge(replace(honest, manifest=manifest(shop)))
    assert "this is not a 200 of" in failures(verdict)["build.manifest"]


@pytest.mark.parametrize("name", ["repo_commit", "image_digest"])
def test_report_and_manifest_come_from_the_same_sources(shop: Shop, honest: Bundle, name: str) -> None:
    document = json.loads(honest.attestation.body)["attestation"]
    other = {**document, "source_provenance": {**document["source_provenance"], name: "sha256:" + "9" * 64}}
    verdict = judge(replace(honest, attestation=shop.attestation(attestation=other)))
    assert failures(verdict) == {"build.manifest": failures(verdict)["build.manifest"]}
    assert f"the report's {name} is sha256:{'9' * 64}, the manifest says" in failures(verdict)["build.manifest"]


def test_a_manifest_without_a_commit_is_a_failed_check() -> None:
    verdict = judge(built(source={}).bundle())
    assert failures(verdict)["build.manifest"] == "manifest.source.commit: is missing"


def test_weights_that_nobody_measured_are_called_a_claim() -> None:
    claimed = {**manifest_document()["model"], "weights_origin": "claimed"}
    assert "nobody measured them" in judge(built(model=claimed).bundle()).check("receipt.build").detail
    assert "weights sha256:" + "4" * 64 in judge(sell()).check("receipt.build").detail


# The agent on chain


def test_an_agent_of_another_owner_is_refused(shop: Shop, honest: Bundle) -> None:
    ours, other = "0x" + "0a" * 20, "0x" + "0b" * 20
    assert failures(judge(honest, policy=replace(SIMULATED, owner=ours), chain=shop.chain_view())) == {}
    verdict = judge(honest, policy=replace(SIMULATED, owner=other), chain=shop.chain_view())
    assert failures(verdict) == {"registry.key": f"the agent belongs to {ours}, the policy accepts {other} only"}


def test_what_the_registry_lacks_or_says_otherwise_is_told(shop: Shop, honest: Bundle) -> None:
    def told(view: ChainView) -> dict[str, str]:
        return failures(judge(honest, chain=view))

    absent = shop.chain_view()
    assert isinstance(absent.agent, AgentOnChain)
    nothing = replace(absent, agent=replace(absent.agent, keys=(), manifests=()))
    for view in (nothing, shop.chain_view(key=b"", manifest=b"")):
        assert told(view)["registry.key"] == f"the registry holds no {KEY_SLOT} for this agent"
        assert "tee.manifest on chain is not set" in told(view)["registry.manifest"]
    longer = KeyRecord(shop.keys.payment_address, shop.keyset.digest, shop.not_after + 1)
    assert told(shop.chain_view(key=encode_key(longer))) == {
        "registry.key": f"{KEY_SLOT} on chain is expires_at {shop.not_after + 1}, attested is {shop.not_after}"
    }
    sold = told(shop.chain_view(by_owner=False))
    assert sold["registry.key"] == (
        f"the agent was sold after {KEY_SLOT} was written; its new owner has not confirmed the key"
    )
    assert sold["registry.manifest"] == (
        "the agent was sold after tee.manifest was written; its new owner has not confirmed it"
    )


def test_a_slot_that_was_emptied_or_taken_over_after_the_payment_says_nothing_against_it(
    shop: Shop, honest: Bundle
) -> None:
    view = shop.chain_view()
    assert isinstance(view.agent, AgentOnChain)
    then = view.agent.keys[0]
    emptied, other = Record(b"", by_owner=True, block_number=11), Record(b"junk", by_owner=True, block_number=10)
    later = replace(view, agent=replace(view.agent, keys=(emptied, other, then)))
    assert (
        judge(honest, chain=later)
        .check("registry.key")
        .detail.endswith("(written in block 7, emptied in block 11, after the payment)")
    )
    taken = replace(view, agent=replace(view.agent, keys=(other, then)))
    assert judge(honest, chain=taken).check("registry.key").detail.endswith("(written in block 7)")


def test_a_transfer_that_is_not_there_is_told_in_the_chains_words(shop: Shop, honest: Bundle) -> None:
    view = replace(shop.chain_view(), payment=PaymentOnChain(confirmed=False, detail="no such transfer"))
    assert failures(judge(honest, chain=view)) == {"payment.onchain": "no such transfer"}
    unread = replace(shop.chain_view(), payment=Unreadable("timed out"))
    assert judge(honest, chain=unread).check("payment.onchain").detail == "the chain could not be asked: timed out"


# The connection


@pytest.mark.parametrize(
    ("listed", "seen", "status", "words"),
    [
        ((), SPKI, Status.NOT_VERIFIED, "does not end TLS inside the enclave"),
        ((), NO_TLS, Status.NOT_VERIFIED, "does not end TLS inside the enclave"),
        ((SPKI,), None, Status.NOT_VERIFIED, "only the buyer saw the connection"),
        ((SPKI,), NO_TLS, Status.FAIL, "this connection is not encrypted"),
        ((SPKI,), OTHER_SPKI, Status.FAIL, f"the server's TLS key is {OTHER_SPKI}"),
        ((SPKI, OTHER_SPKI), OTHER_SPKI, Status.PASS, f"TLS ends inside the enclave, with key {OTHER_SPKI}"),
    ],
)
def test_a_connection_ends_at_an_attested_key_or_not_at_all(
    listed: tuple[str, ...], seen: str | None, status: Status, words: str
) -> None:
    check = judge(Shop(tls=listed).bundle(), channel=seen).check("channel.tls")
    assert check.status is status
    assert words in check.detail


def test_a_connection_that_nobody_saw_leaves_a_verdict_open_where_it_is_required() -> None:
    bundle = Shop(tls=(SPKI,)).bundle()
    assert judge(bundle).exit_code == 0
    assert judge(bundle, policy=SIMULATED.requiring("channel.tls")).result is Result.INCOMPLETE
    assert judge(bundle, policy=SIMULATED.requiring("channel.tls"), channel=SPKI).exit_code == 0


# The answer and its receipt


def logged(change: Callable[[list[dict[str, Any]]], object]) -> Bundle:
    """A purchase whose receipt has another log, and is signed all the same."""
    shop = Shop()
    events = shop.receipt(shop.bundle().answer.body)["event_log"]
    change(events)
    return shop.bundle(receipt={"events": events})


def other_receipt(**changes: Any) -> Callable[[], Bundle]:
    return lambda: sell(receipt=changes)


def without_json(body: bytes) -> Bundle:
    shop = Shop()
    honest = shop.bundle()
    receipt = shop.receipt(body)
    answer = shop.answer(shop.terms_document(), receipt, honest.payment_receipt, body)
    return replace(honest, answer=answer, receipt=receipt)


DEVIATIONS: list[tuple[str, Callable[[], Bundle], str, str]] = [
    ("an error instead of an answer", lambda: sell(status=500), "answer.signature", "the answer's status is 500"),
    ("an answer under another keyset's name", lambda: sell(headers={"x-aci-keyset-digest": "sha256:" + "0" * 64}),
     "answer.signature", "the answer names another keyset"),
    ("an answer that names another receipt", lambda: sell(headers={"x-receipt-id": "rcpt-2"}),
     "receipt.signature", "the answer names another receipt"),
    ("an answer that names no receipt", lambda: sell(headers={"x-receipt-id": None}),
     "receipt.signature", "the answer names another receipt"),
    ("an answer that carries another receipt", lambda: sell(headers={"x-receipt": "e30"}),
     "receipt.signature", "the answer carries another receipt"),
    ("an answer that carries a broken receipt", lambda: sell(headers={"x-receipt": "e30="}),
     "receipt.signature", "x-receipt: must be base64url"),
    ("a receipt from after the keyset's end", other_receipt(served_at=NOW + 86_400),
     "receipt.signature", "after its keyset expired"),
    ("a receipt for another method", other_receipt(method="PUT"), "receipt.request", "the receipt is for PUT"),
    ("a receipt for another place", other_receipt(endpoint="/v1/other"),
     "receipt.request", "the receipt is for POST /v1/other"),
    ("a receipt for another answer's id", other_receipt(chat_id="sum-2"),
     "receipt.response", "the receipt is for another answer id"),
    ("a receipt for no answer's id", other_receipt(chat_id=None),
     "receipt.response", "the receipt is for another answer id"),
    ("an answer that is no JSON", lambda: without_json(b"Short."), "receipt.response", "answer: must be JSON"),
    ("an answer that is no object", lambda: without_json(b'["sum-1"]'), "receipt.response", "must be a JSON object"),
    ("events in another order", lambda: logged(lambda events: events.insert(1, events.pop(2))),
     "receipt.build", "the events are request.received, build.identified, agent.identified"),
    ("an event that is left out", lambda: logged(lambda events: events.pop(4)), "receipt.build", "the events are"),
    ("an event of another kind", lambda: logged(lambda events: events.insert(4, {"type": "request.cached"})),
     "receipt.build", "request.cached"),
    ("an agent that is named twice", lambda: logged(lambda events: events.insert(2, events[1])),
     "receipt.build", "exactly one agent.identified, holds 2"),
    ("a build that is named twice", lambda: logged(lambda events: events.insert(3, events[2])),
     "receipt.build", "exactly one build.identified, holds 2"),
    ("another model", lambda: Shop(events={"inference.completed": {"model": "large"}}).bundle(),
     "receipt.build", "the receipt's model is large, the manifest says tiny"),
    ("completeness that is not said in JSON's words",
     lambda: Shop(events={"response.returned": {"complete": 1}}).bundle(), "receipt.response", "was not complete"),
    ("another nonce", lambda: Shop(events={"payment.settled": {"nonce": "0x" + "06" * 32}}).bundle(),
     "receipt.payment", "the receipt's payment nonce is"),
    ("a transaction that is no hash", lambda: Shop(events={"payment.settled": {"transaction": "0x7f"}}).bundle(),
     "receipt.payment", "payment.transaction"),
    ("another x402 receipt", lambda: sell(proof={"transaction": "0x" + "1" * 64}),
     "payment.receipt", "the x402 receipt is for another payment"),
    ("an x402 receipt for another resource", lambda: sell(proof={"resource_url": f"{ORIGIN}/v1/other"}),
     "payment.receipt", "the x402 receipt is for another payment"),
    ("a settlement on another network", lambda: sell(settlement={"network": "eip155:8453"}),
     "payment.receipt", "the settlement response is for another payment"),
    ("a settlement of another payer", lambda: sell(settlement={"payer": PAY_TO}),
     "payment.receipt", "the settlement response is for another payment"),
    ("a settlement in another transaction", lambda: sell(settlement={"transaction": "0x" + "1" * 64}),
     "payment.receipt", "the settlement response is for another payment"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "check_id", "words"), [pytest.param(m, c, w, id=n) for n, m, c, w in DEVIATIONS])
def test_one_deviation_is_told_by_its_own_check(make: Callable[[], Bundle], check_id: str, words: str) -> None:
    verdict = judge(make())
    assert set(failures(verdict)) == {check_id}
    assert words in failures(verdict)[check_id]
    assert verdict.exit_code == 1


def test_a_receipt_may_come_beside_the_answer_instead_of_in_its_header() -> None:
    assert judge(sell(headers={"x-receipt": None})).exit_code == 0


def test_one_call_may_ask_the_model_several_times() -> None:
    assert judge(logged(lambda events: events.insert(3, events[3]))).exit_code == 0


def test_an_answer_rests_on_a_report_of_its_own_time() -> None:
    for age, refused in ((600, False), (601, True)):
        verdict = judge(sell(created=NOW + age), now=NOW + age)
        assert bool(failures(verdict)) is refused
        if refused:
            assert failures(verdict) == {
                "answer.signature": "the answer came 601 s after the report, at most 600 s are accepted"
            }


def test_an_answer_from_before_its_report_is_refused() -> None:
    assert judge(sell(created=NOW - 60)).exit_code == 0
    assert "the answer came -61 s after" in failures(judge(sell(created=NOW - 61)))["answer.signature"]


def test_an_answer_to_another_document_than_was_priced_is_refused(shop: Shop, honest: Bundle) -> None:
    other = replace(honest.terms, request_body=b'{"document":"Another text."}')
    verdict = judge(replace(honest, terms=other))
    assert failures(verdict) == {"receipt.request": "the terms were given for another request body"}


@pytest.mark.parametrize("change", [{"url": f"{ORIGIN}/v1/other"}, {"method": "PUT"}])
def test_terms_and_answer_belong_to_one_request(honest: Bundle, change: dict[str, Any]) -> None:
    verdict = judge(replace(honest, terms=replace(honest.terms, **change)))
    assert "its terms and its answer are for different requests" in failures(verdict)["bundle.format"]


def test_another_x402_receipt_than_the_answers_is_refused(shop: Shop, honest: Bundle) -> None:
    later = replace(honest, payment_receipt=shop.payment_receipt(issued_at=NOW + 1))
    assert failures(judge(later)) == {"payment.receipt": "the answer carries another x402 receipt than the bundle"}


# The payment


def test_a_payer_and_a_service_cannot_agree_on_less_than_the_offer() -> None:
    shop = Shop(events={"payment.settled": {"amount": "1"}})
    bundle = shop.bundle(payment=shop.payment(shop.terms_document(), message={"value": 1}))
    words = "the payment is not the one that the offer asks for"
    assert failures(judge(bundle)) == {"receipt.payment": words}


def test_a_payer_and_a_service_cannot_agree_on_another_payee() -> None:
    shop = Shop(events={"payment.settled": {"pay_to": TOKEN}})
    bundle = shop.bundle(payment=shop.payment(shop.terms_document(), message={"to": TOKEN}))
    words = "the payment is not the one that the offer asks for"
    assert failures(judge(bundle)) == {"receipt.payment": words}


WALLET_SIGNATURES = {
    "longer than a key's": "0x" + "ab" * 96,
    "of 65 bytes, by nobody": "0x" + "ab" * 65,
    "of 65 bytes, by the wallet's owner": None,
    "of no byte": "0x",
}


@pytest.mark.parametrize("form", WALLET_SIGNATURES)
def test_a_contract_wallets_payment_is_left_to_the_chain(form: str) -> None:
    shop, owner = Shop(), Shop()
    signature = WALLET_SIGNATURES[form]
    if signature is None:
        by_owner = owner.payment(owner.terms_document(), message={"from": shop.buyer.address})
        signature = json.loads(b64decode(by_owner))["payload"]["signature"]
    bundle = shop.bundle(payment=shop.payment(shop.terms_document(), signature=signature))
    for unasked in (judge(bundle), judge(bundle, chain=ChainView(payment=Unreadable("no node")))):
        assert failures(unasked) == {}
        assert unasked.check("receipt.payment").status is Status.NOT_VERIFIED
        assert "contract wallet" in unasked.check("receipt.payment").detail
        assert (unasked.result, unasked.exit_code) == (Result.INCOMPLETE, 4)
    confirmed = judge(bundle, chain=shop.chain_view())
    assert confirmed.check("receipt.payment").status is Status.PASS
    assert "contract wallet" in confirmed.check("receipt.payment").detail
    assert confirmed.exit_code == 0
    denied = judge(bundle, chain=replace(shop.chain_view(), payment=PaymentOnChain(confirmed=False, detail="unknown")))
    assert denied.check("receipt.payment").status is Status.NOT_VERIFIED
    assert failures(denied) == {"payment.onchain": "unknown"}


@pytest.mark.parametrize("changed", [{"validAfter": 1}, {"validBefore": NOW + 901}])
def test_no_part_of_the_payment_can_be_changed_afterwards(shop: Shop, changed: dict[str, int]) -> None:
    """Not even when a contract wallet may have signed it, and the chain has executed it."""
    document = shop.terms_document()
    honest, other = shop.payment(document), json.loads(b64decode(shop.payment(document, message=changed)))
    other["payload"]["signature"] = json.loads(b64decode(honest))["payload"]["signature"]
    bundle = shop.bundle(document=document, payment=honest)
    sent = {"payment-signature": b64(json.dumps(other).encode())}
    verdict = judge(replace(bundle, answer=replace(bundle.answer, request_headers=sent)), chain=shop.chain_view())
    assert failures(verdict) == {"receipt.payment": "the receipt names another signed authorization than the payment"}


@pytest.mark.parametrize(("signature", "exit_code"), [("0x" + "ab" * 65, 1), ("0x" + "ab" * 96, 4)])
def test_a_receipt_that_does_not_name_the_authorization_vouches_for_no_wallet(signature: str, exit_code: int) -> None:
    shop = Shop(events={"payment.settled": {"authorization_hash": None}})
    assert judge(shop.bundle()).exit_code == 0
    bundle = shop.bundle(payment=shop.payment(shop.terms_document(), signature=signature))
    assert judge(bundle).exit_code == exit_code


def test_a_payment_that_accepts_other_terms_than_the_offer_is_refused(shop: Shop) -> None:
    document = shop.terms_document()
    other = {**document["accepts"][0], "maxTimeoutSeconds": 1}
    verdict = judge(shop.bundle(document=document, payment=shop.payment(document, accepted=other)))
    assert failures(verdict) == {"receipt.payment": "the payment accepts other terms than the offer"}


def test_true_is_not_one_when_terms_are_compared(shop: Shop) -> None:
    accept = {**shop.terms_document()["accepts"][0], "extra": {"name": "USDC", "version": "2", "flag": 1}}
    document = shop.terms_document(accepts=[accept])
    other = {**accept, "extra": {**accept["extra"], "flag": True}}
    assert judge(shop.bundle(document=document)).exit_code == 0
    verdict = judge(shop.bundle(document=document, payment=shop.payment(document, accepted=other)))
    assert set(failures(verdict)) == {"receipt.payment"}


@pytest.mark.parametrize("name", ["resource", "extensions"])
def test_what_a_payment_repeats_of_the_terms_it_repeats_exactly(shop: Shop, name: str) -> None:
    document = shop.terms_document()
    echoed = json.loads(b64decode(shop.payment(document)))
    silent = {key: value for key, value in echoed.items() if key != name}
    assert judge(shop.bundle(document=document, payment=b64(json.dumps(silent).encode()))).exit_code == 0
    changed: dict[str, Any] = {name: {"url": "other"}}
    verdict = judge(shop.bundle(document=document, payment=shop.payment(document, **changed)))
    assert failures(verdict) == {"receipt.payment": f"the payment echoes another {name} than the terms"}


def test_a_payment_may_name_its_purchase_and_change_nothing_else_of_an_extension(shop: Shop) -> None:
    declared = {"info": {"required": False}, "schema": {"type": "object"}}
    document = shop.terms_document()
    document["extensions"] = {**document["extensions"], "payment-identifier": declared, "empty": 7}
    for echo, accepted in (
        ({"payment-identifier": {**declared, "info": {"required": False, "id": "x" * 16}}}, True),
        ({"empty": 7}, True),
        ({"payment-identifier": {**declared, "info": {"required": True, "id": "x" * 16}}}, False),
        ({"payment-identifier": {"info": {"id": "x" * 16}}}, False),
        ({"payment-identifier": {"info": "x"}}, False),
        ({"empty": 8}, False),
        ({"unheard-of": {}}, False),
    ):
        verdict = judge(shop.bundle(document=document, payment=shop.payment(document, extensions=echo)))
        wanted = {} if accepted else {"receipt.payment": "the payment echoes another extensions than the terms"}
        assert failures(verdict) == wanted, echo


def test_a_price_that_the_attested_rule_does_not_make_is_refused(shop: Shop) -> None:
    rule = PriceRule("0.001", per_1k_output_tokens="0.009")
    sold = {name: value for name, value in payment_terms().items() if name != "amount"}
    by_rule = built(payment={"accepts": [{**sold, "decimals": 6}], "price_rule": rule.to_json()})
    asked = request_digest(endpoint="/v1/summarize", method="POST", body_hash=digest(BODY))
    for longest, refused in ((1_000, False), (999, True)):
        document = by_rule.terms_document()
        document["extensions"] |= {EXTENSION_OF_PRICE: PriceBasis(rule, asked, 0, longest).to_json()}
        assert bool(failures(before_paying(by_rule, document))) is refused


@pytest.mark.parametrize("extra", [None, {}, {"name": "USDC"}, {"name": 1, "version": "2"}])
def test_terms_that_do_not_name_the_token_leave_nothing_to_check_a_payment_with(shop: Shop, extra: object) -> None:
    accept = {**shop.terms_document()["accepts"][0], "extra": extra}
    verdict = judge(shop.bundle(document=shop.terms_document(accepts=[accept])))
    assert "payment.accepted.extra" in failures(verdict)["receipt.payment"]


def test_the_request_of_an_honest_purchase_is_told_by_size_and_hash(honest: Bundle) -> None:
    assert judge(honest).check("receipt.request").detail == f"{len(BODY)} bytes, {digest(BODY)}"


def test_no_input_makes_a_verification_raise(honest: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_way(_: Exchange) -> Payment:
        raise RecursionError

    monkeypatch.setattr(verifier, "parse_payment", give_way)
    assert failures(judge(honest)) == {"receipt.payment": "malformed input (RecursionError)"}


# The verdict


def test_a_verdict_for_machines_says_what_the_one_for_people_says(honest: Bundle) -> None:
    verdict = judge(honest)
    told = verdict.to_json()
    assert (told["verdict"], told["exit_code"]) == ("SIMULATED", 0)
    assert [check["id"] for check in told["checks"]] == [check.id for check in verdict.checks]
    assert {check["status"] for check in told["checks"]} == {"pass", "not verified"}
    assert json.loads(json.dumps(told)) == told


def test_a_check_that_did_not_run_has_no_outcome() -> None:
    verdict = Verdict(Result.FAILED, (Check("bundle.format", Status.FAIL, "no"),))
    assert verdict.check("bundle.format").detail == "no"
    with pytest.raises(KeyError, match=r"keyset\.binding"):
        verdict.check("keyset.binding")


@pytest.mark.parametrize(
    ("result", "allowed", "code"),
    [
        (Result.VERIFIED, False, 0),
        (Result.FAILED, True, 1),
        (Result.SIMULATED, False, 3),
        (Result.SIMULATED, True, 0),
        (Result.INCOMPLETE, True, 4),
    ],
)
def test_each_result_has_its_exit_code(result: Result, allowed: bool, code: int) -> None:
    verdict = Verdict(result, (), simulated_allowed=allowed)
    assert (verdict.exit_code, verdict.acceptable) == (code, code == 0)


def test_an_error_tells_a_person_what_to_do_about_it() -> None:
    assert EvidenceError("too old", hint="ask again").diagnostics() == "too old\nask again"
    assert TollsealError("too old").diagnostics() == "too old"
