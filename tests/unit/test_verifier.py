"""The verdict on purchases that are honest, and on every kind that is not."""

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.bundle import Bundle, parse_bundle
from attestation.enclave.keyring import KeyRing
from attestation.encoding import b64
from attestation.http_signature import Exchange
from attestation.onchain import AgentOnChain, ChainView, PaymentOnChain, Unreadable
from attestation.policy import Policy
from attestation.verdict import Result, Status, Verdict
from attestation.verifier import Verifier
from tests.purchases import NONCE, NOW, ORIGIN, URL, Shop, manifest_document

SIMULATED = Policy(allow_simulated=True)


def judge(
    bundle: Bundle | bytes, *, policy: Policy = SIMULATED, now: int = NOW, chain: ChainView | None = None
) -> Verdict:
    return Verifier(policy, now=now, chain=chain).verify_bundle(bundle)


def failed(verdict: Verdict) -> set[str]:
    return {check.id for check in verdict.checks if check.status is Status.FAIL}


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope="module")
def bundle(shop: Shop) -> Bundle:
    return shop.bundle()


def test_an_honest_simulated_purchase_is_simulated_and_never_verified(bundle: Bundle) -> None:
    verdict = judge(bundle)
    assert failed(verdict) == set()
    assert (verdict.result, verdict.exit_code) == (Result.SIMULATED, 0)


def test_without_consent_a_simulated_purchase_exits_3(bundle: Bundle) -> None:
    assert judge(bundle, policy=Policy()).exit_code == 3


def test_offline_the_chain_is_reported_as_not_verified(bundle: Bundle) -> None:
    verdict = judge(bundle)
    for check_id in ("registry.key", "registry.manifest", "payment.onchain"):
        assert verdict.check(check_id).status is Status.NOT_VERIFIED
        assert "--rpc" in verdict.check(check_id).detail


def test_with_the_chain_every_check_but_hardware_and_tls_passes(shop: Shop, bundle: Bundle) -> None:
    verdict = judge(bundle, policy=SIMULATED.requiring_chain(), chain=shop.chain_view())
    missing = {check.id for check in verdict.checks if check.status is not Status.PASS}
    assert missing == {"evidence.policy", "channel.tls"}
    assert verdict.exit_code == 0


def test_a_chain_that_cannot_be_asked_makes_the_verdict_incomplete(bundle: Bundle) -> None:
    view = ChainView(agent=Unreadable("no connection"), payment=Unreadable("no connection"))
    assert judge(bundle, policy=SIMULATED.requiring_chain(), chain=view).exit_code == 4


@pytest.mark.parametrize(
    ("view", "check_id"),
    [
        (lambda shop: shop.chain_view(key=b""), "registry.key"),
        (lambda shop: shop.chain_view(by_owner=False), "registry.key"),
        (lambda shop: Shop(not_after=shop.not_after).chain_view(manifest=b"\1" * 32), "registry.manifest"),
        (lambda _: Shop().chain_view(), "registry.key"),
        (lambda shop: shop.chain_view(manifest=b""), "registry.manifest"),
        (
            lambda shop: replace(shop.chain_view(), payment=PaymentOnChain(confirmed=False, detail="no transfer")),
            "payment.onchain",
        ),
    ],
)
def test_a_chain_that_says_otherwise_fails_the_check(
    shop: Shop, bundle: Bundle, view: Callable[[Shop], ChainView], check_id: str
) -> None:
    assert check_id in failed(judge(bundle, policy=SIMULATED.requiring_chain(), chain=view(shop)))


def test_a_key_that_has_been_replaced_since_the_payment_still_counts(shop: Shop, bundle: Bundle) -> None:
    old, new = shop.chain_view().agent, Shop().chain_view().agent
    assert isinstance(old, AgentOnChain)
    assert isinstance(new, AgentOnChain)
    both = replace(old, keys=(*new.keys, *old.keys), manifests=(*new.manifests, *old.manifests))
    view = replace(shop.chain_view(), agent=both)
    assert judge(bundle, policy=SIMULATED.requiring_chain(), chain=view).exit_code == 0


def test_a_bundle_survives_being_saved_and_read(bundle: Bundle) -> None:
    assert judge(bundle.dumps().encode()).exit_code == 0


# Dishonest services: each has valid keys and signs what it wants


def dishonest() -> Iterator[tuple[str, Callable[[], Bundle], str]]:
    def other_keys() -> Bundle:
        return replace(Shop().bundle(), attestation=Shop().attestation())

    def receipt_by_another_key() -> Bundle:
        shop = Shop()
        honest = shop.bundle()
        return replace(honest, receipt=shop.receipt(honest.answer.body, signer=KeyRing.generate()))

    def offer_by_another_key() -> Bundle:
        shop = Shop()
        return replace(shop.bundle(), offer=Shop().offer())

    def with_events(**events: dict[str, Any]) -> Callable[[], Bundle]:
        return lambda: Shop(events={name.replace("__", "."): fields for name, fields in events.items()}).bundle()

    def no_nonce() -> Bundle:
        return Shop(nonce=None).bundle()

    def from_the_future() -> Bundle:
        return Shop().bundle(created=NOW + 700)

    def other_model() -> Bundle:
        shop = Shop(events={"inference.completed": {"weights_sha256": "9" * 64}})
        return shop.bundle()

    def undeclared_terms() -> Bundle:
        return Shop(manifest=manifest_document(payment={"accepts": [], "facilitator": "local"})).bundle()

    def wrong_tee() -> Bundle:
        return Shop(manifest=manifest_document(tee="tdx")).bundle()

    def no_subject() -> Bundle:
        return Shop(subject=None).bundle()

    def long_lived() -> Bundle:
        return Shop(not_after=NOW + 40 * 86_400).bundle()

    yield "keys of another service", other_keys, "answer.signature"
    yield "a receipt by another key", receipt_by_another_key, "receipt.signature"
    yield "an offer by another key", offer_by_another_key, "offer.signature"
    yield "a report without a nonce", no_nonce, "keyset.binding"
    yield "an answer from the future", from_the_future, "answer.signature"
    yield "other weights", other_model, "receipt.build"
    yield "terms that the build does not know", undeclared_terms, "offer.signature"
    yield "a manifest of another TEE", wrong_tee, "build.manifest"
    yield "a keyset of no agent", no_subject, "registry.agent"
    yield "a keyset that lives for ever", long_lived, "keyset.lifetime"
    yield "another agent", with_events(agent__identified={"agent_id": 1}), "receipt.build"
    yield "another build", with_events(build__identified={"manifest_digest": "sha256:" + "0" * 64}), "receipt.build"
    yield "another request", with_events(request__received={"body_hash": "sha256:" + "0" * 64}), "receipt.request"
    yield "another answer", with_events(response__returned={"body_hash": "sha256:" + "0" * 64}), "receipt.response"
    yield "half an answer", with_events(response__returned={"complete": False}), "receipt.response"
    yield "another payer", with_events(payment__settled={"payer": "0x" + "1" * 40}), "receipt.payment"
    yield "another price", with_events(payment__settled={"amount": "1"}), "receipt.payment"
    yield "another transaction", with_events(payment__settled={"transaction": "0x" + "1" * 64}), "payment.receipt"


@pytest.mark.parametrize(("make", "check_id"), [pytest.param(m, c, id=n) for n, m, c in dishonest()])
def test_a_dishonest_service_is_found_out(make: Callable[[], Bundle], check_id: str) -> None:
    verdict = judge(make())
    assert check_id in failed(verdict)
    assert verdict.exit_code == 1


def test_a_payment_that_its_payer_did_not_sign_is_found_out() -> None:
    shop = Shop()
    bundle = shop.bundle()
    thief = Shop(keys=shop.keys, enclave=shop.enclave)
    document = shop.terms_document()
    stolen, forged = (json.loads(b64decode(seller.payment(document))) for seller in (shop, thief))
    stolen["payload"]["signature"] = forged["payload"]["signature"]
    answer = replace(bundle.answer, request_headers={"payment-signature": b64(json.dumps(stolen).encode())})
    assert failed(judge(replace(bundle, answer=answer))) == {"receipt.payment"}


def test_an_expired_keyset_fails_now_and_passes_as_of_its_own_time(bundle: Bundle) -> None:
    later = NOW + 90_000
    assert failed(judge(bundle, now=later)) == {"keyset.lifetime"}
    assert judge(bundle, now=NOW).exit_code == 0


def test_signatures_from_the_future_are_refused(bundle: Bundle) -> None:
    assert "keyset.binding" in failed(judge(bundle, now=NOW - 1_000))


def test_another_nonce_than_the_buyers_is_refused(shop: Shop, bundle: Bundle) -> None:
    verdict = Verifier(SIMULATED, now=NOW).verify_bundle(bundle, nonce="cd" * 32)
    assert "keyset.binding" in failed(verdict)
    assert Verifier(SIMULATED, now=NOW).verify_bundle(bundle, nonce=NONCE).exit_code == 0


def test_a_build_off_the_allow_list_is_refused(bundle: Bundle) -> None:
    verdict = judge(bundle, policy=Policy(allow_simulated=True, manifest_digests=frozenset({"sha256:" + "0" * 64})))
    assert failed(verdict) >= {"build.manifest"}


def test_exchanges_with_different_services_are_no_bundle(bundle: Bundle) -> None:
    elsewhere = replace(bundle.manifest, url=bundle.manifest.url.replace("https:", "http:"))
    assert "bundle.format" in failed(judge(replace(bundle, manifest=elsewhere)))


def test_terms_that_ended_are_not_accepted_before_paying(shop: Shop) -> None:
    def terms_verdict(now: int) -> Verdict:
        verifier = Verifier(SIMULATED, now=now)
        return verifier.verify_terms(
            shop.attestation(), shop.manifest_exchange(), shop.terms(shop.terms_document()), nonce=NONCE
        )

    assert terms_verdict(NOW).exit_code == 0
    assert failed(terms_verdict(NOW + 901)) == {"offer.signature"}


def test_a_402_whose_body_differs_from_its_header_is_refused(shop: Shop) -> None:
    document = shop.terms_document()
    header = {"payment-required": b64(json.dumps(document).encode())}
    body = json.dumps({**document, "resource": {"url": f"{ORIGIN}/elsewhere"}}).encode()
    terms = shop.signed(Exchange("POST", URL, 402, header, body, request_body=b"{}"))
    verdict = Verifier(SIMULATED, now=NOW).verify_terms(
        shop.attestation(), shop.manifest_exchange(), terms, nonce=NONCE
    )
    assert failed(verdict) == {"offer.signature"}


# Malformed input is a failed check, never an exception


@given(data=st.binary(max_size=400))
def test_random_bytes_are_a_failed_check(data: bytes) -> None:
    verdict = judge(data)
    assert verdict.exit_code == 1
    assert failed(verdict) == {"bundle.format"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(value=json_values, path=st.integers(min_value=0))
def test_any_value_in_any_place_of_a_bundle_is_a_failed_check(value: Any, path: int) -> None:
    document = json.loads(SAVED)
    places = list(leaves(document))
    parent, key = places[path % len(places)]
    if parent[key] == value:
        return
    parent[key] = value
    assert judge(json.dumps(document).encode()).exit_code == 1


def leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield node, key
        yield from leaves(child)


SAVED = Shop().bundle().dumps()


def test_the_saved_bundle_of_the_mutations_is_honest() -> None:
    assert judge(SAVED.encode()).exit_code == 0


@settings(max_examples=300, deadline=None)
@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_no_flipped_bit_of_a_bundle_goes_unnoticed(position: int, bit: int) -> None:
    data = bytearray(SAVED.encode())
    index = position % len(data)
    data[index] ^= 1 << bit
    try:
        same = json.loads(data) == json.loads(SAVED)  # white space between values means nothing
    except ValueError:
        same = False
    assert same or judge(bytes(data)).exit_code == 1


def test_a_bundle_of_another_format_is_named_as_such() -> None:
    verdict = judge(json.dumps({**json.loads(SAVED), "format": "tollseal.bundle/2"}).encode())
    assert "bundle.format" in verdict.check("bundle.format").detail
    assert parse_bundle(SAVED.encode()).offer["format"] == "eip712"
