"""The ERC-8004 validation registry: who was asked to check an agent, and what they answered.

A request that nobody has answered reads as score 0 in the contract's state, and so does one answered with 0. What was
answered is therefore read from the events, where the difference shows. The registry is not deployed on every chain.
"""

from dataclasses import dataclass
from typing import Final

from web3.types import LogReceipt

from attestation.encoding import address as parse_address
from attestation.encoding import prefixed_hex_bytes
from attestation.registry.abi import VALIDATION_REQUEST, VALIDATION_RESPONSE
from attestation.registry.erc8004 import Position, position_of
from attestation.registry.readback import Sent, read_back
from attestation.registry.rpc import checksum, word
from attestation.registry.sender import Sender
from attestation.registry.sibling import SiblingReader

MAX_RESPONSE: Final = 100


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody with rights over an agent asked a validator to check it.

    validator: address, lower-case. request_hash: 0x and 64 lower-case hex characters. uri: as it was sent; not to be
    trusted, not even to be text.
    """

    validator: str
    agent_id: int
    uri: str
    request_hash: str
    position: Position


@dataclass(frozen=True, slots=True)
class Answer:
    """What a validator said: 0 to 100, where its evidence is, the evidence's keccak256, and a tag."""

    response: int
    uri: str
    content_hash: str
    tag: str
    position: Position


@dataclass(frozen=True, slots=True)
class Validation:
    """A request and its latest answer, or None while there is none."""

    request: Request
    answer: Answer | None


class ValidationReader(SiblingReader):
    """The validation registry."""

    name = "validation"

    async def requests(
        self,
        *,
        validator: str | None = None,
        agent_id: int | None = None,
        from_block: int | None = None,
        to_block: int | None = None,
    ) -> tuple[Request, ...]:
        """The requests to a validator, or about an agent, or both, the oldest first."""
        await self.contract()
        topics = (
            VALIDATION_REQUEST,
            None if validator is None else word(parse_address(validator, "validator")),
            None if agent_id is None else word(agent_id),
        )
        first = self.identity.from_block if from_block is None else from_block
        found = [
            Request(
                validator=topic_address(log, 1),
                agent_id=int.from_bytes(log["topics"][2], "big"),
                uri=text(self.chain.w3.codec.decode(["bytes"], bytes(log["data"]))[0]),
                request_hash="0x" + bytes(log["topics"][3]).hex(),
                position=position_of(log),
            )
            async for log in self.chain.logs_newest_first(self.address, topics, from_block=first, to_block=to_block)
        ]
        return tuple(reversed(found))

    async def answers(
        self, *, validator: str | None = None, agent_id: int | None = None, from_block: int | None = None
    ) -> dict[tuple[str, str], Answer]:
        """The latest answers, by request hash and validator."""
        await self.contract()
        topics = (
            VALIDATION_RESPONSE,
            None if validator is None else word(parse_address(validator, "validator")),
            None if agent_id is None else word(agent_id),
        )
        found: dict[tuple[str, str], Answer] = {}
        first = self.identity.from_block if from_block is None else from_block
        async for log in self.chain.logs_newest_first(self.address, topics, from_block=first):
            found.setdefault(("0x" + bytes(log["topics"][3]).hex(), topic_address(log, 1)), self._answer(log))
        return found

    async def answer(self, validator: str, request_hash: str) -> Answer | None:
        """The validator's latest answer to a request, or None."""
        await self.contract()
        topics = (
            VALIDATION_RESPONSE,
            word(parse_address(validator, "validator")),
            None,
            prefixed_hex_bytes(request_hash, "request hash", size=32),
        )
        async for log in self.chain.logs_newest_first(self.address, topics, from_block=self.identity.from_block):
            return self._answer(log)
        return None

    async def of_agent(self, agent_id: int) -> tuple[Validation, ...]:
        """Everything that anybody was asked about an agent, the oldest first. Whom to believe is for the reader."""
        requests = await self.requests(agent_id=agent_id)
        answers = await self.answers(agent_id=agent_id)
        return tuple(Validation(one, answers.get((one.request_hash, one.validator))) for one in requests)

    def _answer(self, log: LogReceipt) -> Answer:
        types = ["uint8", "bytes", "bytes32", "bytes"]
        response, uri, content_hash, tag = self.chain.w3.codec.decode(types, bytes(log["data"]))
        return Answer(int(response), text(uri), "0x" + content_hash.hex(), text(tag), position_of(log))


class ValidationWriter:
    """Asks and answers, as the account of `sender`. Methods raise what `Sender.send` raises, and `ReadBackError`."""

    def __init__(self, reader: ValidationReader, sender: Sender) -> None:
        self.reader: Final = reader
        self.sender: Final = sender

    async def request(self, validator: str, agent_id: int, uri: str, request_hash: str) -> Sent:
        """Asks a validator about an agent that this account owns or operates.

        Raises:
            RevertedError: with reason "exists" when somebody has taken this hash.
        """
        receipt = await self.sender.send(
            await self.request_call(validator, agent_id, uri, request_hash), "asking for a validation"
        )

        async def read() -> bool:
            found = await self.reader.requests(validator=validator, agent_id=agent_id)
            return request_hash in [one.request_hash for one in found]

        await read_back("the validation registry", True, read)
        return Sent.of(receipt)

    async def request_call(self, validator: str, agent_id: int, uri: str, request_hash: str) -> object:
        """The bound call of `request`, unsent."""
        contract = await self.reader.contract()
        return contract.functions.validationRequest(checksum(validator), agent_id, uri, request_hash)

    async def respond(
        self, request_hash: str, response: int, uri: str, content_hash: str, tag: str, *, nonce: int | None = None
    ) -> Sent:
        """Answers a request to this account; a later answer to the same request replaces it.

        Args:
            nonce: see `Sender.send`.
        """
        receipt = await self.sender.send(
            await self.respond_call(request_hash, response, uri, content_hash, tag),
            "answering a validation request",
            nonce=nonce,
        )

        async def read() -> tuple[object, ...]:
            answer = await self.reader.answer(self.sender.address, request_hash)
            return () if answer is None else (answer.response, answer.uri, answer.content_hash, answer.tag)

        await read_back("the validation registry", (response, uri, content_hash, tag), read)
        return Sent.of(receipt)

    async def respond_call(self, request_hash: str, response: int, uri: str, content_hash: str, tag: str) -> object:
        """The bound call of `respond`, unsent."""
        contract = await self.reader.contract()
        return contract.functions.validationResponse(request_hash, response, uri, content_hash, tag)


def topic_address(log: LogReceipt, index: int) -> str:
    """An indexed address of an event."""
    return "0x" + bytes(log["topics"][index])[-20:].hex()


def text(data: bytes) -> str:
    """A string of an event. Anyone may have sent any bytes; those that are not UTF-8 must not keep the rest unread."""
    return data.decode("utf-8", "replace")
