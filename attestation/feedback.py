"""The feedback file: what a rating on the chain points at, and the proof of payment in it.

Source: ERC-8004, off-chain feedback file; the member `x402` is ours (docs/formats.md). The rating on the chain holds
the keccak256 of the file, so that it cannot change; with a data: URI it cannot vanish either.
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from attestation import encoding, payment_proof, report
from attestation.bundle import Bundle
from attestation.digest import jcs
from attestation.errors import MalformedError
from attestation.onchain import AgentReference
from attestation.purchase import parse_payment, parse_settlement
from attestation.registry.reputation import MAX_DECIMALS

MAX_FEEDBACK_BYTES: Final = 64 << 10
"""Largest feedback file that is read; ours have about 3,000 bytes."""
MAX_SCORE: Final = 100

_SCORE: Final = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,18}))?")
_CHAIN: Final = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Score:
    """``value / 10 ** decimals``."""

    value: int
    decimals: int


@dataclass(frozen=True, slots=True)
class SignedTerms:
    """The agent's own word on a payment: its signed offer and its signed receipt, still to be checked."""

    offer: Mapping[str, Any]
    receipt: Mapping[str, Any]
    key_slot: str
    """The metadata key under which the chain lists the key that signed both."""
    nonce: str
    """Of the authorization, 0x and 64 lower-case hex characters."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a feedback file says. Nothing of it is proven.

    client, payer, pay_to: addresses, lower-case. transaction: 0x and 64 lower-case hex characters; None without a proof
    of payment. signed: None in files of others.
    """

    agent: AgentReference
    client: str
    score: Score
    chain_id: int | None = None
    payer: str | None = None
    pay_to: str | None = None
    transaction: str | None = None
    signed: SignedTerms | None = None


def parse_score(text: str) -> Score:
    """A score from 0 to 100 as people write it, exactly: "87.50" -> 875 with 1 decimal.

    Raises:
        MalformedError: not such a number.
    """
    match = _SCORE.fullmatch(text)
    fraction = ((match[2] or "") if match else "").rstrip("0")
    if match is None or int(match[1] + fraction) > MAX_SCORE * 10 ** len(fraction):
        raise MalformedError("score", f'must be a number from 0 to {MAX_SCORE} such as "87.5"')
    score = Score(int(match[1] + fraction), len(fraction))
    if score.value >= 1 << 53:
        raise MalformedError("score", "has more decimals than a JSON number keeps")
    return score


def build_feedback(bundle: Bundle, score: Score, *, tags: tuple[str, str], now: int) -> bytes:
    """The feedback file about a purchase (RFC 8785).

    Args:
        bundle: the purchase. Of it, the file holds the payment's proof and nothing of the document or the answer.
        now: unix seconds.

    Raises:
        MalformedError: the bundle is not one of a settled payment.
    """
    agent = report.agent_of(bundle.attestation)
    payment, settlement = parse_payment(bundle.answer), parse_settlement(bundle.answer)
    created = datetime.datetime.fromtimestamp(now, tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return jcs(
        {
            "agentRegistry": agent.registry_id,
            "agentId": agent.agent_id,
            "clientAddress": f"eip155:{agent.chain_id}:{payment.payer}",
            "createdAt": created,
            "value": score.value,
            "valueDecimals": score.decimals,
            **{name: tag for name, tag in zip(("tag1", "tag2"), tags, strict=True) if tag},
            "endpoint": bundle.answer.url,
            "proofOfPayment": {
                "fromAddress": payment.payer,
                "toAddress": payment.pay_to,
                "chainId": payment.network.removeprefix("eip155:"),
                "txHash": settlement.transaction,
            },
            "x402": {
                "nonce": payment.nonce,
                "offer": bundle.offer,
                "receipt": bundle.payment_receipt,
                "keySlot": report.key_slot_of(bundle.attestation),
            },
        }
    )


def parse_feedback(data: bytes) -> Claim:
    """A feedback file of anybody, ours or another tool's.

    Raises:
        MalformedError: not one; the field is named.
    """
    document = encoding.as_object(encoding.parse_json(data, "feedback"), "feedback")
    agent_id = encoding.integer(document.get("agentId"), "feedback.agentId")
    registry = encoding.text(document.get("agentRegistry"), "feedback.agentRegistry").lower()
    decimals = encoding.integer(document.get("valueDecimals", 0), "feedback.valueDecimals")
    if decimals > MAX_DECIMALS:
        raise MalformedError("feedback.valueDecimals", f"must be at most {MAX_DECIMALS}")
    value = document.get("value")
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedError("feedback.value", "must be an integer")
    client = encoding.text(document.get("clientAddress"), "feedback.clientAddress").rpartition(":")[2]
    claim = Claim(
        agent=AgentReference.parse(f"{registry}:{agent_id}"),
        client=encoding.address(client, "feedback.clientAddress"),
        score=Score(value, decimals),
    )
    if "proofOfPayment" not in document:
        return claim
    proof = encoding.as_object(document["proofOfPayment"], "feedback.proofOfPayment")
    chain = str(proof.get("chainId"))
    if not _CHAIN.fullmatch(chain):
        raise MalformedError("feedback.proofOfPayment.chainId", "must be a chain id")
    transaction = encoding.prefixed_hex_bytes(proof.get("txHash"), "feedback.proofOfPayment.txHash", size=32)
    return Claim(
        agent=claim.agent,
        client=claim.client,
        score=claim.score,
        chain_id=int(chain),
        payer=encoding.address(proof.get("fromAddress"), "feedback.proofOfPayment.fromAddress"),
        pay_to=encoding.address(proof.get("toAddress"), "feedback.proofOfPayment.toAddress"),
        transaction="0x" + transaction.hex(),
        signed=None if "x402" not in document else _signed(document["x402"]),
    )


def _signed(value: Any) -> SignedTerms:
    member = encoding.as_object(value, "feedback.x402")
    offer = encoding.as_object(member.get("offer"), "feedback.x402.offer")
    receipt = encoding.as_object(member.get("receipt"), "feedback.x402.receipt")
    payment_proof.parse_offer(offer)
    payment_proof.parse_payment_receipt(receipt)
    nonce = encoding.prefixed_hex_bytes(member.get("nonce"), "feedback.x402.nonce", size=32)
    return SignedTerms(
        offer=offer,
        receipt=receipt,
        key_slot=encoding.text(member.get("keySlot"), "feedback.x402.keySlot"),
        nonce="0x" + nonce.hex(),
    )
