"""The checks, in order. Verification exists here and nowhere else: client, CLI, validator and tests all call it.

The order follows the chain of proof: evidence -> keyset -> build -> agent -> terms -> answer -> receipt -> payment.
Every check runs under an id that stays the same between releases. It passes, fails, or says why it could not run; no
input makes it raise. The time and what the chain says come in as arguments, so a verdict can be reproduced.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from attestation import encoding, payment_proof, report
from attestation import manifest as manifests
from attestation import receipt as receipts
from attestation.bundle import Bundle, parse_bundle
from attestation.digest import digest, jcs
from attestation.errors import EvidenceError, MalformedError, TollsealError
from attestation.evidence import appraise
from attestation.evidence.appraisal import Appraisal, Inputs, NotVerified
from attestation.http_signature import MAX_CLOCK_SKEW_SECONDS, Exchange, verify_response
from attestation.keyset import ALGO_HTTP, ALGO_PAYMENT, Keyset, parse_keyset, report_data, report_data_slot
from attestation.onchain import AgentOnChain, AgentReference, ChainView, PaymentOnChain, Unreadable
from attestation.policy import Policy
from attestation.purchase import Payment, Terms, check_offer, parse_payment, parse_settlement, parse_terms
from attestation.receipt import Receipt
from attestation.registry.records import KeyRecord, parse_key, parse_manifest
from attestation.verdict import Check, Result, Status, Verdict

NO_TLS: Final = "none"
"""In place of a key's hash, for a connection without TLS."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _Established:
    """What the checks have proven so far. A later check that needs something absent could not run."""

    claims: Appraisal | None = None
    keyset: Keyset | None = None
    reported_at: int | None = None
    manifest: dict[str, Any] | None = None
    manifest_digest: str | None = None
    agent: AgentReference | None = None
    offer: payment_proof.Offer | None = None
    terms: Terms | None = None
    payment: Payment | None = None
    answered_at: int | None = None
    receipt: Receipt | None = None
    transaction: str | None = None


class Verifier:
    """Runs the checks of one relying party.

    Args:
        policy: what it demands.
        now: unix seconds as of which it judges.
        chain: what the chain says, or None when nobody asked.
        collateral: TDX collateral that the relying party fetched itself; None takes what comes with the evidence.
        roots: root certificates that replace a vendor's, by tee_type; see `Inputs.roots`.
        channel: SPKI hash of the server that was connected to, NO_TLS, or None when it saw no connection.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        now: int,
        chain: ChainView | None = None,
        channel: str | None = None,
        collateral: Mapping[str, Any] | None = None,
        roots: Mapping[str, tuple[bytes, ...]] | None = None,
    ) -> None:
        self._policy = policy
        self._now = now
        self._chain = chain or ChainView()
        self._channel_key = channel
        self._inputs = Inputs(now=now, roots=roots or {}, policy=policy.evidence, collateral=collateral)
        self._checks: list[Check] = []
        self._have = _Established()

    def verify_service(self, attestation: Exchange, manifest: Exchange, *, nonce: str) -> Verdict:
        """Check a service before anything is sent to it.

        Args:
            attestation: the report, asked for with `nonce`.
            manifest: the build manifest.
            nonce: the 64 hex characters that the relying party drew for this report.
        """
        self._service(attestation, manifest, nonce)
        return self._verdict()

    def verify_terms(self, attestation: Exchange, manifest: Exchange, terms: Exchange, *, nonce: str) -> Verdict:
        """Check a service and its 402, before paying. Every signed offer of the 402 must hold."""
        self._service(attestation, manifest, nonce)
        self._run("offer.signature", lambda: self._offers(terms))
        return self._verdict()

    def verify_bundle(self, bundle: Bundle | bytes, *, nonce: str | None = None) -> Verdict:
        """Check a whole purchase.

        Args:
            bundle: the bundle, or the bytes of its file.
            nonce: the nonce that the relying party drew, when it was the buyer itself.
        """
        parsed = bundle if isinstance(bundle, Bundle) else None
        if isinstance(bundle, bytes):
            try:
                parsed = parse_bundle(bundle)
            except MalformedError as error:
                self._record("bundle.format", Status.FAIL, str(error))
                return self._verdict()
        assert parsed is not None  # noqa: S101 - for the type checker: one of the two branches has set it
        self._run("bundle.format", lambda: _one_service(parsed))
        self._service(parsed.attestation, parsed.manifest, nonce)
        self._run("offer.signature", lambda: self._accepted_offer(parsed))
        self._run("answer.signature", lambda: self._answer(parsed))
        self._run("receipt.signature", lambda: self._receipt(parsed))
        self._run("receipt.request", lambda: self._receipt_request(parsed))
        self._run("receipt.response", lambda: self._receipt_response(parsed))
        self._run("receipt.build", self._receipt_build)
        self._run("receipt.payment", lambda: self._receipt_payment(parsed))
        self._run("payment.receipt", lambda: self._payment_receipt(parsed))
        self._run("payment.onchain", self._payment_onchain)
        return self._verdict()

    # The service: evidence -> keyset -> build -> agent

    def _service(self, attestation: Exchange, manifest: Exchange, nonce: str | None) -> None:
        self._run("evidence.genuine", lambda: self._evidence(attestation))
        self._run("keyset.binding", lambda: self._keyset(attestation, nonce))
        self._run("keyset.lifetime", self._lifetime)
        self._run("evidence.policy", self._evidence_policy)
        self._run("build.manifest", lambda: self._manifest(attestation, manifest))
        self._run("registry.agent", self._agent)
        self._run("registry.key", lambda: self._registry_key(attestation))
        self._run("registry.manifest", self._registry_manifest)
        self._run("channel.tls", self._channel)

    def _evidence(self, exchange: Exchange) -> str:
        attestation = report.attestation_of(exchange)
        tee_type = encoding.text(attestation["tee_type"], "report.attestation.tee_type")
        claims = appraise(tee_type, attestation["evidence"], self._inputs)
        if claims.failure is not None:
            raise EvidenceError(claims.failure)
        self._have.claims = claims
        return f"{claims.tee_type} evidence is signed and complete"

    def _keyset(self, exchange: Exchange, nonce: str | None) -> str:
        claims = self._need(self._have.claims, "evidence.genuine")
        document, attestation = report.report_of(exchange), report.attestation_of(exchange)
        keyset = parse_keyset(attestation["workload_keyset"])
        if document["workload_keyset_digest"] != keyset.digest:
            raise EvidenceError(f"the report names {document['workload_keyset_digest']}, its keyset is {keyset.digest}")
        if keyset.digest in self._policy.denied:
            raise EvidenceError(f"keyset {keyset.digest} is on the deny-list")
        asked = report.nonce_of(exchange)
        if nonce is not None and asked != nonce:
            raise EvidenceError("the report answers another nonce than ours")
        expected = report_data(keyset.digest, asked)
        if attestation["report_data"] != expected.hex():
            raise EvidenceError("the report_data beside the evidence does not bind this keyset and nonce")
        if claims.report_data != report_data_slot(expected):
            raise EvidenceError("the evidence does not bind this keyset and nonce")
        self._have.reported_at = verify_response(exchange, keyset.key(ALGO_HTTP), now=self._now)
        self._have.keyset = keyset
        return f"{keyset.digest} is bound by the evidence, with the nonce that was asked for"

    def _lifetime(self) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        reported_at = self._need(self._have.reported_at, "keyset.binding")
        if self._now >= keyset.not_after:
            raise EvidenceError(
                f"the keyset expired at {keyset.not_after} (now {self._now}); --at checks a bundle as of its own time"
            )
        lifetime = keyset.not_after - reported_at
        if lifetime > self._policy.max_keyset_lifetime_seconds:
            limit = self._policy.max_keyset_lifetime_seconds
            raise EvidenceError(f"the keyset lives {lifetime} s after its report, at most {limit} s are plausible")
        return f"valid for {keyset.not_after - self._now} s more"

    def _evidence_policy(self) -> str:
        claims = self._need(self._have.claims, "evidence.genuine")
        if not claims.is_hardware:
            raise NotVerified("SIMULATED: no hardware stands behind these keys, nothing shows where they live")
        return f"{claims.tee_type} hardware is accepted"

    def _manifest(self, attestation: Exchange, exchange: Exchange) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        claims = self._need(self._have.claims, "evidence.genuine")
        if exchange.status != 200 or exchange.request_body or urlsplit(exchange.url).path != manifests.PATH:
            raise EvidenceError(f"this is not a 200 of {manifests.PATH}, asked for without a body")
        verify_response(exchange, keyset.key(ALGO_HTTP), now=self._now)
        manifest = manifests.parse_manifest(encoding.parse_json(exchange.body, "manifest"))
        if manifest["tee"] != claims.tee_type:
            raise EvidenceError(f"the manifest is of a {manifest['tee']} service, the evidence of {claims.tee_type}")
        provenance = encoding.as_object(
            report.attestation_of(attestation)["source_provenance"], "report.source_provenance"
        )
        for field, said in (("repo_commit", manifest["source"]["commit"]), ("image_digest", manifest["image_digest"])):
            if provenance.get(field) != said:
                raise EvidenceError(f"the report's {field} is {provenance.get(field)}, the manifest says {said}")
        found = manifests.manifest_digest(manifest)
        if found in self._policy.denied:
            raise EvidenceError(f"build {found} is on the deny-list")
        allowed = self._policy.manifest_digests
        if allowed is not None and found not in allowed:
            raise EvidenceError(f"build {found} is not on the allow-list")
        self._have.manifest, self._have.manifest_digest = manifest, found
        return f"{found}, {'on the allow-list' if allowed is not None else 'no allow-list given'}"

    def _agent(self) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        agent = AgentReference.parse(keyset.subject)
        if self._policy.agent not in (None, agent):
            raise EvidenceError(
                f"the attested keyset names agent {agent}, the policy accepts {self._policy.agent} only"
            )
        self._have.agent = agent
        return f"the attested keyset names agent {self._have.agent}"

    def _registry_key(self, exchange: Exchange) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        agent = self._on_chain()
        slot = report.key_slot_of(exchange)
        if self._policy.owner not in (None, agent.owner):
            raise EvidenceError(f"the agent belongs to {agent.owner}, the policy accepts {self._policy.owner} only")
        if not agent.keys or not agent.keys[0].value:
            raise EvidenceError(f"the registry holds no {slot} for this agent")
        expected = KeyRecord(
            payment_key=payment_proof.address_of(keyset.key(ALGO_PAYMENT).public_key),
            keyset_digest=keyset.digest,
            expires_at=keyset.not_after,
        )
        listed = [(record, parse_key(record.value)) for record in agent.keys if record.value]
        found = next((record for record, key in listed if key == expected), None)
        if found is None:
            raise EvidenceError(f"{slot} on chain is {_differences(expected, listed[0][1])}")
        if not found.by_owner:
            raise EvidenceError(f"the agent was sold after {slot} was written; its new owner has not confirmed the key")
        return f"{slot} on chain is {expected.payment_key} (written in block {found.block_number})"

    def _registry_manifest(self) -> str:
        agent = self._on_chain()
        served = self._need(self._have.manifest_digest, "build.manifest")
        listed = {parse_manifest(record.value): record for record in reversed(agent.manifests) if record.value}
        if served not in listed:
            said = ", ".join(listed) or "not set"
            raise EvidenceError(f"tee.manifest on chain is {said}, the service runs {served}")
        return f"tee.manifest on chain is the build that is served (written in block {listed[served].block_number})"

    def _on_chain(self) -> AgentOnChain:
        self._need(self._have.agent, "registry.agent")
        return _readable(self._chain.agent)

    def _channel(self) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        seen = self._channel_key
        if not keyset.tls_spki_sha256:
            raise NotVerified("the service does not end TLS inside the enclave: whoever does can read the document")
        if seen is None:
            raise NotVerified("only the buyer saw the connection")
        if seen == NO_TLS:
            raise EvidenceError("the attested keyset lists a TLS key, and this connection is not encrypted")
        if seen not in keyset.tls_spki_sha256:
            raise EvidenceError(f"the server's TLS key is {seen}, which the attested keyset does not list")
        return f"TLS ends inside the enclave, with key {seen}"

    # The terms

    def _check_terms(self, exchange: Exchange) -> tuple[Terms, str]:
        keyset = self._need(self._have.keyset, "keyset.binding")
        manifest = self._need(self._have.manifest, "build.manifest")
        made = verify_response(exchange, keyset.key(ALGO_HTTP), now=self._now)
        terms = parse_terms(exchange)
        if terms.resource_url != exchange.url:
            raise EvidenceError(f"the terms are for {terms.resource_url}, the request went to {exchange.url}")
        promised = manifest["payment"].get("accepts")
        for accept in terms.accepts:
            sold = {name: accept.get(name) for name in ("scheme", "network", "asset", "payTo", "amount")}
            if not isinstance(promised, list) or sold not in promised:
                raise EvidenceError(f"the attested build does not sell on these terms: {sold}")
        self._have.terms = terms
        return terms, f"signed at {made}"

    def _offers(self, exchange: Exchange) -> str:
        terms, when = self._check_terms(exchange)
        key = self._need(self._have.keyset, "keyset.binding").key(ALGO_PAYMENT).public_key
        covered = set()
        for document in terms.offers:
            offer = check_offer(terms, document, public_key=key)
            self._unexpired(offer)
            covered.add(document["acceptIndex"])
        if covered != set(range(len(terms.accepts))):
            raise EvidenceError("some of the terms have no signed offer")
        return f"{len(covered)} offer(s) by the attested key, {when}"

    def _accepted_offer(self, bundle: Bundle) -> str:
        terms, when = self._check_terms(bundle.terms)
        key = self._need(self._have.keyset, "keyset.binding").key(ALGO_PAYMENT).public_key
        offer = check_offer(terms, bundle.offer, public_key=key)
        self._have.offer = offer
        return f"{offer.amount} atomic units to {offer.pay_to}, {when}"

    def _unexpired(self, offer: payment_proof.Offer) -> None:
        if offer.valid_until and offer.valid_until <= self._now:
            raise EvidenceError(f"the offer ended at {offer.valid_until} (now {self._now})")

    # The answer and its receipt

    def _answer(self, bundle: Bundle) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        reported_at = self._need(self._have.reported_at, "keyset.binding")
        if bundle.answer.status != 200:
            raise EvidenceError(f"the answer's status is {bundle.answer.status}, not 200")
        made = verify_response(bundle.answer, keyset.key(ALGO_HTTP), now=self._now)
        if bundle.answer.headers.get("x-aci-keyset-digest") != keyset.digest:
            raise EvidenceError("the answer names another keyset")
        age = made - reported_at
        if not -MAX_CLOCK_SKEW_SECONDS <= age <= self._policy.max_report_age_seconds:
            limit = self._policy.max_report_age_seconds
            raise EvidenceError(f"the answer came {age} s after the report, at most {limit} s are accepted")
        self._have.answered_at = made
        return f"the whole response is signed by the attested http key, at {made}"

    def _receipt(self, bundle: Bundle) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        receipt = receipts.parse_receipt(bundle.receipt)
        receipts.check_signature(receipt, keyset)
        if receipt.served_at >= keyset.not_after:
            raise EvidenceError(f"the receipt was made at {receipt.served_at}, after its keyset expired")
        header = bundle.answer.headers.get("x-receipt")
        if header is not None:
            carried = encoding.parse_json(encoding.b64url_bytes(header, "x-receipt"), "x-receipt")
            if carried != dict(bundle.receipt):
                raise EvidenceError("the answer carries another receipt than the bundle")
        if bundle.answer.headers.get("x-receipt-id") != receipt.receipt_id:
            raise EvidenceError("the answer names another receipt")
        self._have.receipt = receipt
        return f"{receipt.receipt_id} by the attested receipt key"

    def _receipt_request(self, bundle: Bundle) -> str:
        receipt = self._need(self._have.receipt, "receipt.signature")
        sent = bundle.answer
        if (receipt.method, receipt.endpoint) != (sent.method, urlsplit(sent.url).path):
            raise EvidenceError(f"the receipt is for {receipt.method} {receipt.endpoint}")
        body_hash = receipt.event(receipts.REQUEST_RECEIVED).get("body_hash")
        if body_hash != digest(sent.request_body):
            raise EvidenceError("the receipt is for another request body")
        if bundle.terms.request_body != sent.request_body:
            raise EvidenceError("the terms were given for another request body")
        return f"{len(sent.request_body)} bytes, {body_hash}"

    def _receipt_response(self, bundle: Bundle) -> str:
        receipt = self._need(self._have.receipt, "receipt.signature")
        event = receipt.event(receipts.RESPONSE_RETURNED)
        if event.get("body_hash") != digest(bundle.answer.body):
            raise EvidenceError("the receipt is for another response body")
        if event.get("complete") is not True:
            raise EvidenceError("the receipt says that the answer was not complete")
        answer = encoding.as_object(encoding.parse_json(bundle.answer.body, "answer"), "answer")
        if answer.get("id") != receipt.chat_id:
            raise EvidenceError("the receipt is for another answer id")
        return f"{len(bundle.answer.body)} bytes, {event['body_hash']}"

    def _receipt_build(self) -> str:
        receipt = self._need(self._have.receipt, "receipt.signature")
        manifest = self._need(self._have.manifest, "build.manifest")
        agent = self._need(self._have.agent, "registry.agent")
        order = tuple(dict.fromkeys(event["type"] for event in receipt.events))
        if order != receipts.EVENT_ORDER:
            raise EvidenceError(f"the events are {', '.join(order)}")
        identified = receipt.event(receipts.AGENT_IDENTIFIED)
        if (identified.get("agent_registry"), identified.get("agent_id")) != (agent.registry_id, agent.agent_id):
            raise EvidenceError("the receipt names another agent than the attested keyset")
        if receipt.event(receipts.BUILD_IDENTIFIED).get("manifest_digest") != self._have.manifest_digest:
            raise EvidenceError("the receipt names another build than the manifest")
        completed = receipt.event(receipts.INFERENCE_COMPLETED)
        model = manifest["model"]
        for field, said in (("model", model.get("name")), ("weights_sha256", model.get("weights_sha256"))):
            if completed.get(field) != said:
                raise EvidenceError(f"the receipt's {field} is {completed.get(field)}, the manifest says {said}")
        if model.get("weights_origin") != "measured":
            return f"{model.get('name')}; its weights are the operator's claim, nobody measured them"
        return f"{model.get('name')}, weights sha256:{model.get('weights_sha256')}"

    def _receipt_payment(self, bundle: Bundle) -> str:
        receipt = self._need(self._have.receipt, "receipt.signature")
        offer = self._need(self._have.offer, "offer.signature")
        terms = self._need(self._have.terms, "offer.signature")
        payment = parse_payment(bundle.answer)
        # Compared as JSON: to Python, true is 1.
        if jcs(payment.accepted) != jcs(terms.accepts[bundle.offer["acceptIndex"]]):
            raise EvidenceError("the payment accepts other terms than the offer")
        for name in ("resource", "extensions"):
            if name in payment.document and jcs(payment.document[name]) != jcs(terms.document.get(name)):
                raise EvidenceError(f"the payment echoes another {name} than the terms")
        settled = receipt.event(receipts.PAYMENT_SETTLED)
        expected = {
            "type": receipts.PAYMENT_SETTLED,
            "scheme": offer.scheme,
            "network": payment.network,
            "asset": payment.asset,
            "pay_to": payment.pay_to,
            "payer": payment.payer,
            "amount": str(payment.amount),
            "nonce": payment.nonce,
            "transaction": settled.get("transaction"),
        }
        for name, value in expected.items():
            if settled.get(name) != value:
                raise EvidenceError(
                    f"the receipt's payment {name} is {settled.get(name)!r}, the payment's is {value!r}"
                )
        if (offer.pay_to.lower(), offer.amount) != (payment.pay_to, str(payment.amount)):
            raise EvidenceError("the payment is not the one that the offer asks for")
        transaction = encoding.prefixed_hex_bytes(settled.get("transaction"), "payment.transaction", size=32)
        self._have.payment, self._have.transaction = payment, "0x" + transaction.hex()
        return self._authorized(payment)

    def _authorized(self, payment: Payment) -> str:
        signature = encoding.prefixed_hex_bytes(payment.signature, "payment.signature")
        if len(signature) != 65:
            raise NotVerified("a contract wallet signed the payment; only the chain can say whether it may")
        extra = encoding.as_object(payment.accepted.get("extra"), "payment.accepted.extra")
        signer = payment_proof.authorization_signer(
            network=payment.network,
            asset=payment.asset,
            token_name=encoding.text(extra.get("name"), "payment.accepted.extra.name"),
            token_version=encoding.text(extra.get("version"), "payment.accepted.extra.version"),
            message={
                "from": payment.payer,
                "to": payment.pay_to,
                "value": payment.amount,
                "validAfter": payment.valid_after,
                "validBefore": payment.valid_before,
                "nonce": bytes.fromhex(payment.nonce[2:]),
            },
            signature=signature,
        )
        if signer != payment.payer:
            raise EvidenceError(f"the payment was signed by {signer}, not by its payer {payment.payer}")
        return f"{payment.amount} atomic units from {payment.payer}, signed by the payer for exactly these terms"

    def _payment_receipt(self, bundle: Bundle) -> str:
        payment = self._need(self._have.payment, "receipt.payment")
        offer = self._need(self._have.offer, "offer.signature")
        key = self._need(self._have.keyset, "keyset.binding").key(ALGO_PAYMENT).public_key
        receipt = payment_proof.parse_payment_receipt(bundle.payment_receipt)
        payment_proof.check_signer(bundle.payment_receipt, "Receipt", key)
        settlement = parse_settlement(bundle.answer)
        if dict(settlement.receipt) != dict(bundle.payment_receipt):
            raise EvidenceError("the answer carries another x402 receipt than the bundle")
        said = (receipt.network, receipt.resource_url, receipt.payer.lower(), receipt.transaction)
        if said != (payment.network, offer.resource_url, payment.payer, self._have.transaction):
            raise EvidenceError("the x402 receipt is for another payment")
        if (settlement.network, settlement.payer, settlement.transaction) != (said[0], said[2], said[3]):
            raise EvidenceError("the settlement response is for another payment")
        return f"paid by {receipt.payer}, transaction {receipt.transaction}"

    def _payment_onchain(self) -> str:
        self._need(self._have.payment, "receipt.payment")
        found: PaymentOnChain = _readable(self._chain.payment)
        if not found.confirmed:
            raise EvidenceError(found.detail)
        return found.detail

    # Bookkeeping

    def _need(self, value: _T | None, check_id: str) -> _T:
        if value is None:
            raise NotVerified(f"needs {check_id}")
        return value

    def _run(self, check_id: str, check: Callable[[], str]) -> None:
        try:
            self._record(check_id, Status.PASS, check())
        except NotVerified as outcome:
            self._record(check_id, Status.NOT_VERIFIED, str(outcome))
        except TollsealError as error:
            self._record(check_id, Status.FAIL, str(error))
        except Exception as error:
            self._record(check_id, Status.FAIL, f"malformed input ({type(error).__name__})")

    def _record(self, check_id: str, status: Status, detail: str) -> None:
        self._checks.append(Check(check_id, status, detail))

    def _verdict(self) -> Verdict:
        missing = {check.id for check in self._checks if check.status is Status.NOT_VERIFIED} - self._policy.optional
        simulated = self._have.claims is not None and not self._have.claims.is_hardware
        if any(check.status is Status.FAIL for check in self._checks):
            result = Result.FAILED
        elif missing - ({"evidence.policy"} if simulated else set()):
            result = Result.INCOMPLETE
        elif simulated:
            result = Result.SIMULATED
        else:
            result = Result.VERIFIED
        return Verdict(result, tuple(self._checks), simulated_allowed=self._policy.allow_simulated)


def _differences(expected: KeyRecord, found: KeyRecord) -> str:
    """What a record says that it should not say."""
    fields = ("payment_key", "keyset_digest", "expires_at")
    pairs = [(name, getattr(found, name), getattr(expected, name)) for name in fields]
    return ", ".join(f"{name} {said}, attested is {attested}" for name, said, attested in pairs if said != attested)


def _one_service(bundle: Bundle) -> str:
    """All four exchanges went to one place; the scheme is compared here because no signature covers it."""
    exchanges = (bundle.attestation, bundle.manifest, bundle.terms, bundle.answer)
    origins = {(urlsplit(exchange.url).scheme, urlsplit(exchange.url).netloc) for exchange in exchanges}
    if len(origins) != 1:
        raise MalformedError("bundle", "its exchanges went to different services")
    if bundle.terms.url != bundle.answer.url or bundle.terms.method != bundle.answer.method:
        raise MalformedError("bundle", "its terms and its answer are for different requests")
    scheme, host = origins.pop()
    return f"four exchanges with {scheme}://{host}"


def _readable(view: _T | Unreadable | None) -> _T:
    if view is None:
        raise NotVerified("the chain was not asked; --rpc URL adds it")
    if isinstance(view, Unreadable):
        raise NotVerified(f"the chain could not be asked: {view.reason}")
    return view
