"""Which ratings were paid for. Anyone can rate an agent; a payment costs something and can be looked up.

A rating counts as paid when all of this holds:

1. its file is there, has the hash that is on the chain, and says what the rating says;
2. the file names a transaction in which the rating's own client paid in an accepted token, by EIP-3009, before rating;
3. what was paid went to the agent: to the wallet that the registry named then, or to the `payTo` of an offer that the
   agent signed with a key that the registry listed then, with its receipt for this very transaction;
4. no earlier rating that counts was given for the same payment;
5. the client is none of the agent's own accounts: nobody who has ever owned it or been its wallet, was allowed to act
   for it before rating it, or paid themselves.

Whom an agent approves after a rating does not matter: it could otherwise unmake its critics' ratings. Nothing shows
that payer and agent are not the same person behind two accounts: what a paid rating proves is its price.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from attestation import payment_proof
from attestation.errors import MalformedError, TollsealError
from attestation.feedback import MAX_FEEDBACK_BYTES, Claim, SignedTerms, parse_feedback
from attestation.onchain import AgentReference
from attestation.publishing import content_hash
from attestation.registry.erc8004 import Position
from attestation.registry.errors import RegistryError
from attestation.registry.ownership import Ownership, read_ownership
from attestation.registry.payments import PaymentReader, Transfer
from attestation.registry.records import KEY_PREFIX, key_name, parse_key
from attestation.registry.reputation import MAX_DECIMALS, Rating, ReputationReader, decimal_text

Fetch = Callable[[str], Awaitable[bytes]]
"""Gives what a URI holds, at most MAX_FEEDBACK_BYTES. Raises `FetchError`."""

_FETCHES_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class CheckedRating:
    """A rating, whether it was paid for, and why not (or how)."""

    rating: Rating
    paid: bool
    reason: str
    payment: Transfer | None = None
    transaction: str | None = None

    def to_json(self) -> dict[str, Any]:
        one = self.rating
        return {
            "client": one.client,
            "index": one.index,
            "value": one.number,
            "tag1": one.tag1,
            "tag2": one.tag2,
            "endpoint": one.endpoint,
            "uri": one.uri if len(one.uri) <= 2_048 else one.uri[:2_048] + "…",
            "block": one.position.block,
            "revoked": one.revoked,
            "paid": self.paid,
            "reason": self.reason,
            "amount": None if self.payment is None else str(self.payment.amount),
            "token": None if self.payment is None else self.payment.token,
            "transaction": self.transaction,
        }


@dataclass(frozen=True, slots=True)
class Numbers:
    """How many ratings, their exact sum, and their mean cut off after 18 decimals; the mean of none is None."""

    count: int
    total: str
    mean: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """All ratings that were not revoked, and those of them that were paid for, side by side."""

    all: Numbers
    paid: Numbers


@dataclass(slots=True)
class _Found:
    """What is known of one agent while its ratings are checked."""

    agent: AgentReference
    ownership: Ownership
    spent: dict[tuple[int, str, str, str], Rating] = field(default_factory=dict)
    """Payments that a rating which counts was given for, by chain, token, payer and nonce."""


class _NotPaidError(TollsealError):
    """The rating does not count as paid; the message is the reason."""


class FeedbackChecker:
    """Checks the ratings of agents.

    Args:
        reputation: the ratings.
        payments: a reader for each chain on which payments can be looked up, by chain id.
        assets: the tokens that count, as (chain id, lower-case address).
        fetch: reads feedback files.
        own: further accounts of the agent that the reader knows of, lower-case.
    """

    def __init__(
        self,
        reputation: ReputationReader,
        payments: Mapping[int, PaymentReader],
        assets: Collection[tuple[int, str]],
        fetch: Fetch,
        *,
        own: Collection[str] = (),
    ) -> None:
        self._reputation = reputation
        self._identity = reputation.identity
        self._payments = payments
        self._assets = frozenset(assets)
        self._fetch = fetch
        self._own = frozenset(own)
        self._one_of_few = asyncio.Semaphore(_FETCHES_AT_ONCE)

    async def check(self, agent_id: int) -> tuple[CheckedRating, ...]:
        """All ratings of an agent with what became of each, the oldest first.

        Raises:
            UnknownAgentError: there is no such agent.
            RegistryError: the chain could not be asked, so nothing can be said.
        """
        agent = AgentReference.parse(f"{self._identity.registry_id}:{agent_id}")
        found = _Found(agent, await read_ownership(self._identity, agent_id))
        ratings = await self._reputation.ratings(agent_id)
        claims = await asyncio.gather(*(self._claim(rating) for rating in ratings))
        pairs = zip(ratings, claims, strict=True)
        return tuple([await self._judge(rating, claim, found) for rating, claim in pairs])

    async def _claim(self, rating: Rating) -> Claim | str:
        """What the rating's file says, or why it says nothing."""
        if rating.revoked:
            return "revoked by the client"
        if not rating.uri:
            return "it names no feedback file, so no payment"
        try:
            async with self._one_of_few:
                data = await self._fetch(rating.uri)
            if len(data) > MAX_FEEDBACK_BYTES:
                return f"its feedback file is larger than {MAX_FEEDBACK_BYTES} bytes"
            if content_hash(data) != rating.content_hash:
                return "its feedback file does not have the hash that is on the chain"
            return parse_feedback(data)
        except TollsealError as error:
            return f"its feedback file cannot be used: {error}"

    async def _judge(self, rating: Rating, claim: Claim | str, found: _Found) -> CheckedRating:
        if isinstance(claim, str):
            return CheckedRating(rating, paid=False, reason=claim)
        try:
            self._refuse_own(rating, found)
            payment = await self._payment(rating, claim, found)
        except _NotPaidError as error:
            return CheckedRating(rating, paid=False, reason=str(error), transaction=claim.transaction)
        except RegistryError:
            raise
        except TollsealError as error:
            return CheckedRating(rating, paid=False, reason=f"its proof of payment cannot be used: {error}")
        key = (claim.chain_id or 0, payment.token, payment.payer, payment.nonce)
        first = found.spent.setdefault(key, rating)
        if first is not rating:
            reason = f"the same payment was used for rating {first.index} of {first.client}"
            return CheckedRating(rating, paid=False, reason=reason, payment=payment, transaction=claim.transaction)
        return CheckedRating(rating, True, "the client paid the agent for it", payment, claim.transaction)

    async def _payment(self, rating: Rating, claim: Claim, found: _Found) -> Transfer:
        """The payment that a rating rests on."""
        if claim.agent != found.agent:
            raise _NotPaidError(f"its feedback file is about agent {claim.agent}")
        if claim.client != rating.client:
            raise _NotPaidError(f"its feedback file is by {claim.client}")
        if Fraction(claim.score.value, 10**claim.score.decimals) != Fraction(rating.value, 10**rating.decimals):
            said = decimal_text(claim.score.value, claim.score.decimals)
            raise _NotPaidError(f"its feedback file says {said}, the rating {rating.number}")
        if claim.transaction is None or claim.chain_id is None:
            raise _NotPaidError("its feedback file holds no proof of payment")
        reader = self._payments.get(claim.chain_id)
        if reader is None:
            raise _NotPaidError(f"its payment is on chain {claim.chain_id}, and no node of that chain was named")
        transfers = await reader.transfers(claim.transaction)
        if transfers is None:
            raise _NotPaidError(f"chain {claim.chain_id} has no successful transaction {claim.transaction}")
        by_client = [one for one in transfers if one.payer == rating.client]
        if not by_client:
            payers = ", ".join(sorted({one.payer for one in transfers})) or "nobody"
            raise _NotPaidError(f"the client paid nothing in its transaction; {payers} did")
        accepted = [one for one in by_client if (claim.chain_id, one.token) in self._assets]
        if not accepted:
            raise _NotPaidError(f"it was paid in the token {by_client[0].token}, which is not an accepted one")
        ours = [one for one in accepted if one.pay_to == claim.pay_to and self._named(one, claim)]
        if not ours:
            raise _NotPaidError(f"its transaction does not pay {claim.pay_to} as the file says")
        payment = next((one for one in ours if self._unspent(one, claim, found)), ours[0])
        await self._refuse_late(rating, claim, payment)
        if payment.pay_to == rating.client:
            raise _NotPaidError("the client paid themselves")
        at = payment.position if claim.chain_id == self._identity.chain.chain_id else rating.position
        if not await self._is_payee(claim, found, payment, at):
            raise _NotPaidError(f"{payment.pay_to} was neither the agent's wallet nor where the agent had itself paid")
        return payment

    @staticmethod
    def _named(transfer: Transfer, claim: Claim) -> bool:
        return claim.signed is None or transfer.nonce == claim.signed.nonce

    @staticmethod
    def _unspent(transfer: Transfer, claim: Claim, found: _Found) -> bool:
        return (claim.chain_id or 0, transfer.token, transfer.payer, transfer.nonce) not in found.spent

    async def _refuse_late(self, rating: Rating, claim: Claim, payment: Transfer) -> None:
        chain = self._identity.chain
        if claim.chain_id == chain.chain_id:
            late = payment.position > rating.position
        else:
            with chain.asking("the rating's block"):
                block = await chain.w3.eth.get_block(rating.position.block)
            late = payment.block_time > int(block["timestamp"])
        if late:
            raise _NotPaidError("it was given before it was paid for")

    async def _is_payee(self, claim: Claim, found: _Found, payment: Transfer, at: Position) -> bool:
        """Whether the receiver of a payment was the agent at that time."""
        if found.ownership.wallet_at(at) == payment.pay_to:
            return True
        try:
            return claim.signed is not None and await self._signed_by_agent(claim, claim.signed, found, payment, at)
        except RegistryError:
            raise
        except TollsealError:
            return False

    async def _signed_by_agent(
        self, claim: Claim, signed: SignedTerms, found: _Found, payment: Transfer, at: Position
    ) -> bool:
        """Whether the agent signed an offer to be paid like this, and a receipt for the transaction."""
        offer = payment_proof.parse_offer(signed.offer)
        receipt = payment_proof.parse_payment_receipt(signed.receipt)
        network = f"eip155:{claim.chain_id}"
        offered = (offer.network, offer.asset.lower(), offer.pay_to.lower(), offer.amount)
        receipted = (receipt.network, receipt.payer.lower(), receipt.transaction, receipt.resource_url)
        if offered != (network, payment.token, payment.pay_to, str(payment.amount)):
            return False
        if receipted != (network, payment.payer, claim.transaction, offer.resource_url):
            return False
        signer = payment_proof.signer_of(signed.offer, "Offer")
        if signer != payment_proof.signer_of(signed.receipt, "Receipt"):
            return False
        return await self._listed(found.agent, signed.key_slot, signer, at)

    async def _listed(self, agent: AgentReference, slot: str, signer: str, at: Position) -> bool:
        """Whether the agent's owner had the chain list this key, at that block or later."""
        if not slot.startswith(KEY_PREFIX):
            raise MalformedError("feedback.x402.keySlot", f"must begin with {KEY_PREFIX}")
        name = key_name(slot.removeprefix(KEY_PREFIX))
        for entry in await self._identity.metadata_since(agent.agent_id, name, at.block):
            if entry.value and not entry.stale and parse_key(entry.value).payment_key == signer:
                return True
        return False

    def _refuse_own(self, rating: Rating, found: _Found) -> None:
        if rating.client in self._own or rating.client in found.ownership.accounts:
            raise _NotPaidError("it is by an account of the agent itself: an owner or wallet, now or in the past")
        approved = found.ownership.operators.get(rating.client)
        if approved is not None and approved < rating.position:
            raise _NotPaidError("it is by an account that was allowed to act for the agent")


def summarize(ratings: Sequence[CheckedRating], *, tag: str | None = None) -> Summary:
    """Both numbers: over all ratings that were not revoked, and over the paid ones.

    Args:
        tag: count only ratings with this first tag; None counts all.
    """
    counted = [one for one in ratings if not one.rating.revoked and tag in (None, one.rating.tag1)]
    return Summary(_numbers(counted), _numbers([one for one in counted if one.paid]))


def _numbers(ratings: Sequence[CheckedRating]) -> Numbers:
    total = sum(one.rating.value * 10 ** (MAX_DECIMALS - one.rating.decimals) for one in ratings)
    if not ratings:
        return Numbers(0, "0", None)
    mean = abs(total) // len(ratings) * (-1 if total < 0 else 1)
    return Numbers(len(ratings), decimal_text(total, MAX_DECIMALS), decimal_text(mean, MAX_DECIMALS))
