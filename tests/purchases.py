"""Makes whole purchases without a service, a chain or a model: real keys, real signatures, chosen contents.

What comes out is what an honest service and an honest buyer would have produced, so every change to it must be found.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount

from attestation.bundle import Bundle
from attestation.digest import digest, jcs
from attestation.enclave import Enclave
from attestation.enclave.keyring import KeyRing
from attestation.enclave.simulated import SimulatedEnclave
from attestation.encoding import b64, b64url
from attestation.http_signature import STREAM_TYPE, Exchange, is_stream, sign_response, sign_stream_head
from attestation.keyset import Keyset, build_keyset, report_data, report_data_slot
from attestation.manifest import PATH as MANIFEST_PATH
from attestation.manifest import build_manifest, manifest_digest
from attestation.onchain import AgentOnChain, ChainView, PaymentOnChain, Record
from attestation.payment_proof import EXTENSION, Offer, PaymentReceipt, sign_offer, sign_payment_receipt
from attestation.purchase import authorization_hash, parse_payment
from attestation.receipt import PATH as RECEIPT_PATH
from attestation.receipt import sign_receipt
from attestation.registry.records import KeyRecord, encode_key, encode_manifest
from attestation.report import PATH as REPORT_PATH
from attestation.report import build_report

ORIGIN = "https://summaries.example"
URL = f"{ORIGIN}/v1/summarize"
NONCE = "ab" * 32
NOW = 1_790_000_000
REGISTRY = "0x" + "8a" * 20
TOKEN = "0x" + "c0" * 20
PAY_TO = "0x" + "9e" * 20
TRANSACTION = "0x" + "7f" * 32
AMOUNT = 10_000
KEY_SLOT = "tee.key.main"
BODY = b'{"document":"A long text."}'


def payment_terms() -> dict[str, Any]:
    return {"scheme": "exact", "network": "eip155:84532", "asset": TOKEN, "payTo": PAY_TO, "amount": str(AMOUNT)}


def manifest_document(**changes: Any) -> dict[str, Any]:
    manifest = build_manifest(
        commit="1" * 40,
        lock_sha256="2" * 64,
        files={"attestation": {"attestation/verifier.py": "3" * 64}},
        image_digest=None,
        model={"name": "tiny", "weights_sha256": "4" * 64, "weights_origin": "measured"},
        prompts={"system": "sha256:" + "5" * 64},
        payment={"accepts": [payment_terms()], "facilitator": "local"},
        tee="simulated",
    )
    return {**manifest, **changes}


def stream_body(*deltas: str, answer_id: str = "sum-1") -> bytes:
    """The bytes of a streamed summary."""
    common = {"id": answer_id, "object": "summary.chunk", "created": NOW, "model": "tiny"}
    events = [{**common, "delta": delta, "finish_reason": None} for delta in (deltas or ("Short ", "and sweet."))]
    events.append({**common, "delta": "", "finish_reason": "stop", "usage": {"prompt_tokens": 9}})
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


@dataclass
class Shop:
    """A service with keys of its own, and a buyer. Fields may be changed before `bundle` is called."""

    keys: KeyRing = field(default_factory=KeyRing.generate)
    enclave: Enclave = field(default_factory=lambda: SimulatedEnclave("simulated:"))
    buyer: LocalAccount = field(default_factory=Account.create)
    subject: str | None = f"eip155:84532:{REGISTRY}:0"
    now: int = NOW
    not_after: int = 0
    """A day from `now` when it is 0."""
    nonce: str | None = NONCE
    manifest: dict[str, Any] = field(default_factory=manifest_document)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Event type -> fields that replace the honest ones."""
    tls: tuple[str, ...] = ()
    """SPKI hashes of the TLS keys that the keyset lists."""

    def __post_init__(self) -> None:
        self.not_after = self.not_after or self.now + 86_400

    @property
    def keyset(self) -> Keyset:
        return build_keyset(
            subject=self.subject, not_after=self.not_after, keys=self.keys.public_keys(), tls_spki_sha256=self.tls
        )

    def signed(self, exchange: Exchange, *, created: int | None = None) -> Exchange:
        headers = {
            "content-type": "application/json",
            "x-aci-version": "aci/1",
            "x-aci-keyset-digest": self.keyset.digest,
            **exchange.headers,
        }
        exchange = replace(exchange, headers=headers)
        sign = sign_stream_head if is_stream(headers) else sign_response
        made = self.now if created is None else created
        return replace(exchange, headers={**headers, **sign(exchange, self.keys, created=made)})

    def attestation(self, **report_changes: Any) -> Exchange:
        slot = report_data_slot(report_data(self.keyset.digest, self.nonce))
        report = build_report(
            self.keyset,
            nonce=self.nonce,
            tee_type=self.enclave.tee_type,
            evidence=asyncio.run(self.enclave.evidence(slot, now=self.now)),
            provenance={"repo_url": None, "repo_commit": "1" * 40, "image_digest": None, "image_provenance": None},
            serving="direct",
            agent_registration={"agent": self.subject, "key_slot": KEY_SLOT, "registered": True},
        )
        query = "" if self.nonce is None else f"?nonce={self.nonce}"
        body = json.dumps({**report, **report_changes}).encode()
        return self.signed(Exchange("GET", f"{ORIGIN}{REPORT_PATH}{query}", 200, {}, body))

    def manifest_exchange(self) -> Exchange:
        body = json.dumps(self.manifest).encode()
        return self.signed(Exchange("GET", ORIGIN + MANIFEST_PATH, 200, {}, body))

    def offer(self, *, accept_index: int = 0, **changes: Any) -> dict[str, Any]:
        terms = {"resource_url": URL, "scheme": "exact", "network": "eip155:84532", "asset": TOKEN, "pay_to": PAY_TO}
        offer = Offer(**{**terms, "amount": str(AMOUNT), "valid_until": self.now + 900, **changes})
        return sign_offer(offer, self.keys, accept_index=accept_index)

    def terms_document(self, **changes: Any) -> dict[str, Any]:
        accept = {**payment_terms(), "maxTimeoutSeconds": 900, "extra": {"name": "USDC", "version": "2"}}
        return {
            "x402Version": 2,
            "resource": {"url": URL, "description": "A summary."},
            "accepts": [accept],
            "extensions": {EXTENSION: {"info": {"offers": [self.offer()]}}},
            **changes,
        }

    def terms(self, document: Mapping[str, Any]) -> Exchange:
        text = json.dumps(document)
        headers = {"payment-required": b64(text.encode())}
        return self.signed(Exchange("POST", URL, 402, headers, text.encode(), request_body=BODY))

    def payment(
        self,
        document: Mapping[str, Any],
        *,
        message: Mapping[str, Any] | None = None,
        signature: str | None = None,
        **changes: Any,
    ) -> str:
        """The payment of a 402; `message` replaces parts of what the buyer signs, `signature` what he signed."""
        accept = document["accepts"][0]
        signed: dict[str, Any] = {
            "from": self.buyer.address,
            "to": accept["payTo"],
            "value": int(accept["amount"]),
            "validAfter": 0,
            "validBefore": self.now + 900,
            "nonce": b"\x05" * 32,
            **(message or {}),
        }
        types = ["address", "address", "uint256", "uint256", "uint256", "bytes32"]
        typed = encode_typed_data(
            domain_data={"name": "USDC", "version": "2", "chainId": 84532, "verifyingContract": accept["asset"]},
            message_types={
                "TransferWithAuthorization": [
                    {"name": name, "type": kind} for name, kind in zip(signed, types, strict=True)
                ]
            },
            message_data=signed,
        )
        authorization = {name: str(value) for name, value in signed.items()} | {"nonce": "0x" + "05" * 32}
        signature = signature or "0x" + self.buyer.sign_message(typed).signature.hex()
        payment = {
            "x402Version": 2,
            "payload": {"authorization": authorization, "signature": signature},
            "accepted": accept,
            "resource": document["resource"],
            "extensions": document["extensions"],
            **changes,
        }
        return b64(json.dumps(payment).encode())

    def receipt(self, body: bytes, *, payment: str | None = None, **changes: Any) -> dict[str, Any]:
        """A receipt that names `payment`, or else the honest one, as what was presented."""
        sent = {"payment-signature": payment or self.payment(self.terms_document())}
        presented = parse_payment(Exchange("POST", URL, 200, {}, b"", request_headers=sent))
        model = self.manifest["model"]
        events: list[dict[str, Any]] = [
            {"type": "request.received", "body_hash": digest(BODY)},
            {"type": "agent.identified", "agent_registry": f"eip155:84532:{REGISTRY}", "agent_id": 0},
            {"type": "build.identified", "manifest_digest": manifest_digest(self.manifest)},
            {"type": "request.forwarded", "body_hash": "sha256:" + "6" * 64},
            {"type": "inference.completed", "model": model["name"], "weights_sha256": model["weights_sha256"]},
            {
                "type": "payment.settled",
                "scheme": "exact",
                "network": "eip155:84532",
                "asset": TOKEN,
                "pay_to": PAY_TO,
                "payer": self.buyer.address.lower(),
                "amount": str(AMOUNT),
                "nonce": "0x" + "05" * 32,
                "authorization_hash": authorization_hash(presented),
                "transaction": TRANSACTION,
            },
            {"type": "response.returned", "body_hash": digest(body), "complete": True},
        ]
        fields: dict[str, Any] = {
            "receipt_id": "rcpt-1",
            "chat_id": "sum-1",
            "model": "tiny",
            "keyset_digest": self.keyset.digest,
            "endpoint": "/v1/summarize",
            "method": "POST",
            "served_at": self.now,
            "events": [{**event, **self.events.get(event["type"], {})} for event in events],
            "signer": self.keys,
        }
        document: dict[str, Any] = json.loads(sign_receipt(**{**fields, **changes}))
        return document

    def payment_receipt(self, **changes: Any) -> dict[str, Any]:
        fields = {"network": "eip155:84532", "resource_url": URL, "payer": self.buyer.address, "issued_at": self.now}
        return sign_payment_receipt(PaymentReceipt(**{**fields, "transaction": TRANSACTION, **changes}), self.keys)

    def answer(
        self,
        document: Mapping[str, Any],
        receipt: Mapping[str, Any],
        proof: Mapping[str, Any],
        body: bytes,
        *,
        created: int | None = None,
        payment: str | None = None,
        status: int = 200,
        settlement: Mapping[str, Any] | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Exchange:
        """The paid answer; `settlement` and `headers` replace honest parts of it, a header that is None is left out."""
        settled = {
            "success": True,
            "transaction": TRANSACTION,
            "network": "eip155:84532",
            "payer": self.buyer.address,
            "extensions": {EXTENSION: {"info": {"receipt": proof}}},
            **(settlement or {}),
        }
        honest = {
            "payment-response": b64(json.dumps(settled).encode()),
            "x-receipt-id": str(receipt["receipt_id"]),
            "x-receipt": b64url(jcs(dict(receipt))),
        }
        shown = {name: value for name, value in {**honest, **(headers or {})}.items() if value is not None}
        sent = {"payment-signature": payment or self.payment(document)}
        exchange = Exchange("POST", URL, status, shown, body, request_headers=sent, request_body=BODY)
        return self.signed(exchange, created=created)

    def bundle(
        self,
        *,
        document: Mapping[str, Any] | None = None,
        offer: Mapping[str, Any] | None = None,
        receipt: Mapping[str, Any] | None = None,
        proof: Mapping[str, Any] | None = None,
        **answer: Any,
    ) -> Bundle:
        """An honest purchase, but for what is given.

        Args:
            document: the content of the 402.
            offer: the offer that was accepted.
            receipt: changes of the receipt, before it is signed.
            proof: changes of the x402 receipt, before it is signed.
            answer: keyword arguments of `answer`.
        """
        body = json.dumps({"id": "sum-1", "object": "summary", "summary": "Short."}).encode()
        document = self.terms_document() if document is None else document
        signed = self.receipt(body, payment=answer.get("payment"), **(receipt or {}))
        paid = self.payment_receipt(**(proof or {}))
        return Bundle(
            attestation=self.attestation(),
            manifest=self.manifest_exchange(),
            terms=self.terms(document),
            answer=self.answer(document, signed, paid, body, **answer),
            receipt=signed,
            offer=document["extensions"][EXTENSION]["info"]["offers"][0] if offer is None else offer,
            payment_receipt=paid,
        )

    def stream_bundle(
        self, *, body: bytes | None = None, receipt: Mapping[str, Any] | None = None, **answer: Any
    ) -> Bundle:
        """An honest purchase of a streamed answer, but for what is given; see `bundle`."""
        body = stream_body() if body is None else body
        document = self.terms_document()
        signed, paid = self.receipt(body, **(receipt or {})), self.payment_receipt()
        headers = {"content-type": STREAM_TYPE, "x-receipt": None, **answer.pop("headers", {})}
        return Bundle(
            attestation=self.attestation(),
            manifest=self.manifest_exchange(),
            terms=self.terms(document),
            answer=self.answer(document, signed, paid, body, headers=headers, **answer),
            receipt=signed,
            offer=document["extensions"][EXTENSION]["info"]["offers"][0],
            payment_receipt=paid,
            receipt_exchange=self.receipt_exchange(signed),
        )

    def receipt_exchange(self, receipt: Mapping[str, Any]) -> Exchange:
        url = f"{ORIGIN}{RECEIPT_PATH}{receipt['receipt_id']}"
        return self.signed(Exchange("GET", url, 200, {}, json.dumps(dict(receipt)).encode()))

    def chain_view(
        self, *, key: bytes | None = None, manifest: bytes | None = None, by_owner: bool = True
    ) -> ChainView:
        """What the chain says about this service and its payment: the honest records unless others are given."""
        record = KeyRecord(self.keys.payment_address, self.keyset.digest, self.not_after)
        honest = encode_key(record), encode_manifest(manifest_digest(self.manifest))
        agent = AgentOnChain(
            owner="0x" + "0a" * 20,
            manifests=(Record(honest[1] if manifest is None else manifest, by_owner=by_owner, block_number=7),),
            keys=(Record(honest[0] if key is None else key, by_owner=by_owner, block_number=7),),
            block_number=9,
        )
        payment = PaymentOnChain(confirmed=True, detail="is there", block_number=8)
        return ChainView(agent=agent, payment=payment)
