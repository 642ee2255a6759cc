"""Asking the chain about payments that ended without an answer, so that what was never taken no longer counts."""

import asyncio

from attestation.checker import ChainSource
from attestation.onchain import Unreadable
from attestation.spend_ledger import SpendLedger, State


async def clear_doubts(ledger: SpendLedger, chain: ChainSource, *, now: int) -> None:
    """Look up every payment that is no longer valid and bought no answer. What the chain does not say stays as it is.

    Args:
        ledger: whose payments.
        chain: read through a node of the buyer's own choice.
        now: unix seconds.

    Raises:
        SpendingError: the ledger cannot be used.
    """
    for entry in await asyncio.to_thread(ledger.ended_unanswered, now=now):
        found = await chain.authorization(
            network=entry.network, asset=entry.asset, payer=entry.payer, nonce=entry.nonce
        )
        if isinstance(found, Unreadable):
            continue
        if found.ended_unused(entry.valid_before):
            await asyncio.to_thread(ledger.unused, entry.id, now=now)
        elif found.used and entry.state is State.GIVEN_UP:
            await asyncio.to_thread(ledger.taken, entry.id)
