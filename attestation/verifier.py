"""The checks, in order. Verification exists here and nowhere else: client, CLI, validator and tests all call it.

The order follows the chain of proof: evidence -> keyset -> build -> agent -> terms -> answer -> receipt -> payment.
Every check runs under an id that stays the same between releases. It passes, fails, or says why it could not run; no
input makes it raise. The time and what the chain says come in as arguments, so a verdict can be reproduced.
"""

from urllib.parse import urlsplit

from attestation import encoding, payment_proof
from attestation import receipt as receipts
from attestation.bundle import Bundle, parse_bundle
from attestation.digest import digest, jcs
from attestation.errors import EvidenceError, MalformedError
from attestation.event_stream import parse_stream
from attestation.evidence.appraisal import NotVerified
from attestation.http_signature import (
    MAX_CLOCK_SKEW_SECONDS,
    Exchange,
    is_stream,
    verify_response,
    verify_stream_head,
)
from attestation.keyset import ALGO_HTTP, ALGO_PAYMENT
from attestation.onchain import PaymentOnChain
from attestation.purchase import Payment, authorization_hash, check_echo, parse_payment, parse_settlement
from attestation.service_checks import NO_TLS, ServiceChecks, readable
from attestation.verdict import Status, Verdict

__all__ = ["NO_TLS", "Verifier"]


class Verifier(ServiceChecks):
    """Runs the checks of one relying party.

    Args:
        policy: what it demands.
        now: unix seconds as of which it judges.
        chain: what the chain says, or None when nobody asked.
        collateral: TDX collateral that the relying party fetched itself; None takes what comes with the evidence.
        roots: root certificates that replace a vendor's, by tee_type; see `Inputs.roots`.
        channel: SPKI hash of the server that was connected to, NO_TLS, or None when it saw no connection.
    """

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

    def _answer(self, bundle: Bundle) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        reported_at = self._need(self._have.reported_at, "keyset.binding")
        if bundle.answer.status != 200:
            raise EvidenceError(f"the answer's status is {bundle.answer.status}, not 200")
        streamed = is_stream(bundle.answer.headers)
        verify = verify_stream_head if streamed else verify_response
        made = verify(bundle.answer, keyset.key(ALGO_HTTP), now=self._now)
        if bundle.answer.headers.get("x-aci-keyset-digest") != keyset.digest:
            raise EvidenceError("the answer names another keyset")
        age = made - reported_at
        if not -MAX_CLOCK_SKEW_SECONDS <= age <= self._policy.max_report_age_seconds:
            limit = self._policy.max_report_age_seconds
            raise EvidenceError(f"the answer came {age} s after the report, at most {limit} s are accepted")
        self._have.answered_at = made
        what = "the head of the stream, without its body," if streamed else "the whole response"
        return f"{what} is signed by the attested http key, at {made}"

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
        if bundle.receipt_exchange is not None:
            self._fetched(bundle.receipt_exchange, receipt)
        self._have.receipt = receipt
        return f"{receipt.receipt_id} by the attested receipt key"

    def _fetched(self, exchange: Exchange, receipt: receipts.Receipt) -> None:
        """The exchange that brought the receipt of a stream: signed, and nothing else in it."""
        keyset = self._need(self._have.keyset, "keyset.binding")
        if (exchange.method, exchange.status, exchange.request_body) != ("GET", 200, b""):
            raise EvidenceError("the receipt's exchange is not a 200, asked for without a body")
        parts = urlsplit(exchange.url)
        if (parts.path, parts.query) != (receipts.PATH + receipt.receipt_id, ""):
            raise EvidenceError(f"the receipt was fetched from {parts.path}, not under its own id")
        verify_response(exchange, keyset.key(ALGO_HTTP), now=self._now)
        if jcs(encoding.parse_json(exchange.body, "receipt_exchange")) != jcs(dict(receipt.document)):
            raise EvidenceError("the receipt that was fetched is another one than the bundle's")

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
        if is_stream(bundle.answer.headers):
            answers = parse_stream(bundle.answer.body)
        else:
            answers = (encoding.as_object(encoding.parse_json(bundle.answer.body, "answer"), "answer"),)
        if not answers or any(answer.get("id") != receipt.chat_id for answer in answers):
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
        check_echo(payment, terms)
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
        vouched = settled.get("authorization_hash")
        if vouched is not None and vouched != authorization_hash(payment):
            raise EvidenceError("the receipt names another signed authorization than the payment")
        if (offer.pay_to.lower(), offer.amount) != (payment.pay_to, str(payment.amount)):
            raise EvidenceError("the payment is not the one that the offer asks for")
        transaction = encoding.prefixed_hex_bytes(settled.get("transaction"), "payment.transaction", size=32)
        self._have.payment, self._have.transaction = payment, "0x" + transaction.hex()
        return self._authorized(payment, vouched=vouched is not None)

    def _authorized(self, payment: Payment, *, vouched: bool) -> str:
        """Who signed the payment. Contract wallets (EIP-1271) take signatures of any form, also of 65 bytes.

        Where the receipt does not vouch for the signature, one of that size that is not the payer's was changed, and no
        other can be told from a changed one.
        """
        signature = encoding.prefixed_hex_bytes(payment.signature, "payment.signature")
        paid = f"{payment.amount} atomic units from {payment.payer}"
        try:
            signer = self._signer(payment, signature)
            if signer == payment.payer:
                return f"{paid}, signed by the payer for exactly these terms"
            problem = f"the payment was signed by {signer}, not by its payer {payment.payer}"
        except EvidenceError as error:
            problem = str(error)
        if not vouched and len(signature) == 65:
            raise EvidenceError(problem)
        found = self._chain.payment
        if vouched and isinstance(found, PaymentOnChain) and found.confirmed:
            return f"{paid}, not signed by a key of that address, and executed by the chain as a contract wallet's"
        raise NotVerified(f"{problem}; only the chain can say whether the payer is a contract wallet that agreed")

    def _signer(self, payment: Payment, signature: bytes) -> str:
        extra = encoding.as_object(payment.accepted.get("extra"), "payment.accepted.extra")
        return payment_proof.authorization_signer(
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
        found: PaymentOnChain = readable(self._chain.payment)
        if not found.confirmed:
            raise EvidenceError(found.detail)
        return found.detail


def _one_service(bundle: Bundle) -> str:
    """All exchanges went to one place; the scheme is compared here because no signature covers it."""
    exchanges = [bundle.attestation, bundle.manifest, bundle.terms, bundle.answer]
    if bundle.receipt_exchange is not None:
        exchanges.append(bundle.receipt_exchange)
    origins = {(urlsplit(exchange.url).scheme, urlsplit(exchange.url).netloc) for exchange in exchanges}
    if len(origins) != 1:
        raise MalformedError("bundle", "its exchanges went to different services")
    if bundle.terms.url != bundle.answer.url or bundle.terms.method != bundle.answer.method:
        raise MalformedError("bundle", "its terms and its answer are for different requests")
    if is_stream(bundle.answer.headers) != (bundle.receipt_exchange is not None):
        raise MalformedError("bundle.receipt_exchange", "must be there for a streamed answer, and only then")
    scheme, host = origins.pop()
    return f"{len(exchanges)} exchanges with {scheme}://{host}"
