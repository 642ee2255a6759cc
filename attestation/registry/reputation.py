"""The ERC-8004 reputation registry: who rated an agent, with what, and pointing at which proof.

Anyone with an account can rate. Ratings are read from the events, because only those hold the proof's URI and hash.
"""

from dataclasses import dataclass, replace
from typing import Final

from attestation.encoding import address as parse_address
from attestation.money import format_amount
from attestation.registry.abi import FEEDBACK_REVOKED, NEW_FEEDBACK
from attestation.registry.erc8004 import Position, position_of
from attestation.registry.readback import Sent, read_back
from attestation.registry.rpc import word
from attestation.registry.sender import Sender
from attestation.registry.sibling import SiblingReader
from attestation.registry.validation import text, topic_address

MAX_DECIMALS: Final = 18
"""A bound of the contract."""

_TYPES: Final = ("uint64", "int128", "uint8", "bytes", "bytes", "bytes", "bytes", "bytes32")


@dataclass(frozen=True, slots=True)
class Rating:
    """One rating. Texts are as they were sent, and not to be trusted.

    client: who rated, lower-case. index: the client's how-manieth rating of this agent, from 1. The number is
    `value` / 10 ** `decimals`. content_hash: keccak256 of what `uri` holds, 0x and 64 lower-case hex characters.
    """

    agent_id: int
    client: str
    index: int
    value: int
    decimals: int
    tag1: str
    tag2: str
    endpoint: str
    uri: str
    content_hash: str
    position: Position
    revoked: bool

    @property
    def number(self) -> str:
        """The rating as exact decimal text."""
        return decimal_text(self.value, self.decimals)


def decimal_text(value: int, decimals: int) -> str:
    """``value / 10 ** decimals``, exactly: (-975, 1) -> "-97.5"."""
    return ("-" if value < 0 else "") + format_amount(abs(value), decimals)


class ReputationReader(SiblingReader):
    """The reputation registry."""

    name = "reputation"

    async def ratings(self, agent_id: int, *, client: str | None = None) -> tuple[Rating, ...]:
        """All ratings of an agent, or one client's, revoked ones included, the oldest first."""
        await self.contract()
        who = None if client is None else word(parse_address(client, "client"))
        first = self.identity.from_block
        gone = set()
        topics = (FEEDBACK_REVOKED, word(agent_id), who)
        async for log in self.chain.logs_newest_first(self.address, topics, from_block=first):
            gone.add((topic_address(log, 2), int.from_bytes(log["topics"][3], "big")))
        found = []
        async for log in self.chain.logs_newest_first(
            self.address, (NEW_FEEDBACK, word(agent_id), who), from_block=first
        ):
            index, value, decimals, tag1, tag2, endpoint, uri, content_hash = self.chain.w3.codec.decode(
                _TYPES, bytes(log["data"])
            )
            rating = Rating(
                agent_id=agent_id,
                client=topic_address(log, 2),
                index=int(index),
                value=int(value),
                decimals=int(decimals),
                tag1=text(tag1),
                tag2=text(tag2),
                endpoint=text(endpoint),
                uri=text(uri),
                content_hash="0x" + content_hash.hex(),
                position=position_of(log),
                revoked=False,
            )
            found.append(replace(rating, revoked=(rating.client, rating.index) in gone))
        return tuple(reversed(found))


class ReputationWriter:
    """Rates, as the account of `sender`. Methods raise what `Sender.send` raises, and `ReadBackError`."""

    def __init__(self, reader: ReputationReader, sender: Sender) -> None:
        self.reader: Final = reader
        self.sender: Final = sender

    async def give(
        self,
        agent_id: int,
        value: int,
        decimals: int,
        *,
        tags: tuple[str, str],
        endpoint: str,
        uri: str,
        content_hash: str,
    ) -> Sent:
        """Rates an agent with ``value / 10 ** decimals``.

        Raises:
            RevertedError: this account owns or operates the agent, or a bound of the contract is exceeded.
        """
        call = await self.give_call(
            agent_id, value, decimals, tags=tags, endpoint=endpoint, uri=uri, content_hash=content_hash
        )
        receipt = await self.sender.send(call, "rating the agent")

        async def read() -> bool:
            given = await self.reader.ratings(agent_id, client=self.sender.address)
            return (value, decimals, uri, content_hash) in [
                (one.value, one.decimals, one.uri, one.content_hash) for one in given
            ]

        await read_back("the reputation registry", True, read)
        return Sent.of(receipt)

    async def give_call(
        self,
        agent_id: int,
        value: int,
        decimals: int,
        *,
        tags: tuple[str, str],
        endpoint: str,
        uri: str,
        content_hash: str,
    ) -> object:
        """The bound call of `give`, unsent."""
        contract = await self.reader.contract()
        return contract.functions.giveFeedback(agent_id, value, decimals, *tags, endpoint, uri, content_hash)

    async def revoke(self, agent_id: int, index: int) -> Sent:
        """Takes one of this account's ratings back."""
        receipt = await self.sender.send(await self.revoke_call(agent_id, index), "revoking a rating")

        async def read() -> bool:
            given = await self.reader.ratings(agent_id, client=self.sender.address)
            return any(one.index == index and one.revoked for one in given)

        await read_back("the reputation registry", True, read)
        return Sent.of(receipt)

    async def revoke_call(self, agent_id: int, index: int) -> object:
        """The bound call of `revoke`, unsent."""
        contract = await self.reader.contract()
        return contract.functions.revokeFeedback(agent_id, index)
