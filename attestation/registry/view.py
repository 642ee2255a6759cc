"""Reads what a verification asks of the chain, as the plain values of `attestation.onchain`."""

from typing import Final

from attestation.errors import TollsealError
from attestation.onchain import (
    AgentOnChain,
    AgentReference,
    AuthorizationOnChain,
    ChainView,
    PaymentOnChain,
    Record,
    Unreadable,
)
from attestation.purchase import Payment
from attestation.registry import payments
from attestation.registry.erc8004 import IdentityReader, Metadata
from attestation.registry.errors import NoContractError, RegistryError, RpcError, UnknownAgentError, WrongChainError
from attestation.registry.payments import PaymentReader
from attestation.registry.records import MANIFEST_KEY

_NOBODY: Final = ""


class ChainReader:
    """Answers from the node at `rpc_url`, which the relying party must have chosen itself.

    Args:
        rpc_url: an http or https JSON-RPC endpoint.
        from_block: the first block whose logs matter; see `IdentityReader`.
    """

    def __init__(self, rpc_url: str, *, from_block: int = 0) -> None:
        self._rpc_url = rpc_url
        self._from_block = from_block

    async def view(
        self, agent: AgentReference, key_slot: str, payment: Payment | None = None, transaction: str | None = None
    ) -> ChainView:
        """What the chain says of an agent, its key in `key_slot`, and a payment in `transaction`.

        With a confirmed payment, the agent's records are those since the payment's block; see `AgentOnChain`.

        Never raises for what the chain or the node says: what could not be read is `Unreadable`, with the reason.
        """
        found = None
        if payment is not None and transaction is not None:
            found = await self._payment(payment, transaction)
        block = found.block_number if isinstance(found, PaymentOnChain) and found.confirmed else None
        return ChainView(agent=await self._agent(agent, key_slot, block), payment=found)

    async def authorization(
        self, *, network: str, asset: str, payer: str, nonce: str
    ) -> AuthorizationOnChain | Unreadable:
        """What the token says of a payer's nonce. Never raises for what the chain or the node says."""
        try:
            chain_id = int(network.removeprefix("eip155:"))
        except ValueError:
            return Unreadable(f"{network} is not an EVM chain")
        async with PaymentReader(self._rpc_url, chain_id) as reader:
            try:
                # The time is read first, so the state that is read then is at least as new.
                at = await reader.time()
                used = await reader.authorization_state(asset, payer, nonce)
            except TollsealError as error:
                return Unreadable(str(error))
        return AuthorizationOnChain(used=used, at=at)

    async def _agent(self, agent: AgentReference, key_slot: str, block: int | None) -> AgentOnChain | Unreadable:
        reader = IdentityReader(self._rpc_url, agent.chain_id, agent.registry, from_block=self._from_block)
        async with reader:
            try:
                await reader.check()
                with reader.chain.asking("the newest block"):
                    newest = int(await reader.chain.w3.eth.block_number)
                since = newest if block is None else block
                owner = await reader.owner_of(agent.agent_id)
                manifests = await reader.metadata_since(agent.agent_id, MANIFEST_KEY, since)
                keys = await reader.metadata_since(agent.agent_id, key_slot, since)
            except (UnknownAgentError, NoContractError):
                return AgentOnChain(_NOBODY, (), (), block_number=0)
            except RegistryError as error:
                return Unreadable(str(error))
        return AgentOnChain(owner, _records(manifests), _records(keys), block_number=newest)

    async def _payment(self, payment: Payment, transaction: str) -> PaymentOnChain | Unreadable:
        try:
            chain_id = int(payment.network.removeprefix("eip155:"))
        except ValueError:
            return PaymentOnChain(confirmed=False, detail=f"{payment.network} is not an EVM chain")
        claim = payments.Payment(
            network=payment.network,
            token=payment.asset,
            payer=payment.payer,
            pay_to=payment.pay_to,
            amount=payment.amount,
            nonce=payment.nonce,
            transaction=transaction,
        )
        async with PaymentReader(self._rpc_url, chain_id) as reader:
            try:
                finding = await reader.check(claim)
            except (RpcError, WrongChainError) as error:
                return Unreadable(str(error))
            except TollsealError as error:
                return PaymentOnChain(confirmed=False, detail=str(error))
        detail = finding.reason if finding.block is None else f"{finding.reason} (block {finding.block})"
        return PaymentOnChain(confirmed=finding.ok, detail=detail, block_number=finding.block)


def _records(values: tuple[Metadata, ...]) -> tuple[Record, ...]:
    return tuple(
        Record(entry.value, by_owner=not entry.stale, block_number=entry.written.block)
        for entry in values
        if entry.written is not None
    )
