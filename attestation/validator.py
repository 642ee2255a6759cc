"""The validator: watches for requests to its account, judges each, and answers it once.

What was answered is asked of the chain, never of a file: before an answer is sent, every transaction of this account is
waited for, then an answer to this request is looked for again, and the answer is sent with the account nonce of that
moment or not at all. A validator that was killed between seeing and answering, or between sending and seeing it mined,
therefore answers once, and so do two that share the account. The journal only says where to go on reading
and which requests to come back to; without it the validator reads the whole history again and answers nothing twice.
"""

import fcntl
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

from attestation import encoding
from attestation.checker import unix_now
from attestation.digest import jcs
from attestation.errors import MalformedError, TollsealError
from attestation.publishing import Publisher, content_hash, write_file
from attestation.registry.readback import Sent
from attestation.registry.sender import Planned
from attestation.registry.validation import Request, ValidationWriter
from attestation.validator_judge import Judge, Judgement

JOURNAL_FORMAT: Final = "tollseal.validator/1"
OVERLAP_BLOCKS: Final = 64
"""Blocks that are read again in every round: a reorganisation may have put a request into one that was read."""
MAX_ATTEMPTS: Final = 10
FIRST_RETRY_SECONDS: Final = 30
MAX_RETRY_SECONDS: Final = 3_600
"""A request that cannot be decided is tried again after 30 s, 60 s, ... and is left pending after MAX_ATTEMPTS."""


class Status(Enum):
    """What a round did about a request."""

    ANSWERED = "answered"
    WOULD_ANSWER = "would answer"
    """In a dry run."""
    UNDECIDED = "undecided"
    """It stays pending, and is tried again later."""
    GIVEN_UP = "given up"
    """It stays pending."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request and what was done. `response` and `transaction` are None where there was none."""

    request_hash: str
    agent_id: int
    status: Status
    response: int | None
    tag: str
    reason: str
    transaction: str | None
    gas_used: int | None
    planned: Planned | None = None
    """What answering would take, in a dry run."""

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["planned"]
        return {**fields, "status": self.status.value}


@dataclass(frozen=True, slots=True)
class Round:
    """What one look at the chain came to. `deployed` is False where the chain has no validation registry."""

    deployed: bool
    block: int
    outcomes: tuple[Outcome, ...]


@dataclass(slots=True)
class _Open:
    """A request that could not be decided yet. Times are unix seconds."""

    block: int
    attempts: int = 0
    not_before: int = 0


@dataclass(slots=True)
class Journal:
    """Where to go on: the next block to read, and the requests to come back to."""

    path: Path
    subject: str
    """Chain, registry and validator that it is about."""
    next_block: int = 0
    open: dict[str, _Open] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, subject: str) -> "Journal":
        """The journal at `path`, or a new one.

        Raises:
            MalformedError: the file is something else, or about another validator.
            OSError: it cannot be read.
        """
        if not path.exists():
            return cls(path, subject)
        where = str(path)
        document = encoding.as_object(encoding.parse_json(path.read_bytes(), where), where)
        encoding.only(document, where, {"format", "subject", "next_block", "open"})
        if (document["format"], document["subject"]) != (JOURNAL_FORMAT, subject):
            raise MalformedError(where, f"is not a validator's journal about {subject}; name another file")
        entries = encoding.as_object(document["open"], f"{where}.open")
        names = ("block", "attempts", "not_before")
        return cls(
            path,
            subject,
            encoding.integer(document["next_block"], f"{where}.next_block"),
            {
                request_hash: _Open(*(encoding.integer(entry.get(name), f"{where}.open.{name}") for name in names))
                for request_hash, value in entries.items()
                for entry in [encoding.as_object(value, f"{where}.open.{request_hash}")]
            },
        )

    def write(self) -> None:
        """Replaces the file in one step."""
        document = {
            "format": JOURNAL_FORMAT,
            "subject": self.subject,
            "next_block": self.next_block,
            "open": {request_hash: asdict(entry) for request_hash, entry in self.open.items()},
        }
        write_file(self.path, json.dumps(document, indent=2).encode())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps a second validator with the same journal away.

        Raises:
            TollsealError: there is one.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f"{self.path.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TollsealError(f"another validator works with {self.path}") from error
            yield


class Validator:
    """Answers the requests to one account.

    Args:
        writer: answers, as the validator's account.
        judge: judges.
        publisher: makes evidence readable; what goes onto the chain is the judgement without its exchanges.
        journal: where to go on.
        confirmations: blocks that must stand on a request, its own included, before it is looked at.
        agents: answer for these agents only; None answers for all. Each answer costs the validator gas.
        clock: unix seconds.
        progress: is told what is going on, in a few words.
    """

    def __init__(
        self,
        writer: ValidationWriter,
        judge: Judge,
        publisher: Publisher,
        journal: Journal,
        *,
        confirmations: int = 1,
        agents: Collection[int] | None = None,
        clock: Callable[[], int] = unix_now,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._writer = writer
        self._reader = writer.reader
        self._judge = judge
        self._publisher = publisher
        self._journal = journal
        self._confirmations = confirmations
        self._agents = agents
        self._clock = clock
        self._progress = progress

    async def round(self, *, dry_run: bool = False) -> Round:
        """Looks once at what was asked since the last time, and answers what can be decided.

        Raises:
            RegistryError: the chain could not be asked or written to. What was done until then is done; the next round
                goes on from there.
        """
        chain, journal = self._reader.chain, self._journal
        await chain.check()
        with chain.asking("the newest block"):
            newest = int(await chain.w3.eth.block_number)
        if not await self._reader.deployed():
            return Round(deployed=False, block=newest, outcomes=())
        confirmed = newest - self._confirmations + 1
        if journal.next_block > newest + OVERLAP_BLOCKS:
            journal.next_block, journal.open = 0, {}  # another chain by the same name: a local one starts over
        outcomes = []
        for request in await self._unanswered(confirmed):
            outcome = await self._handle(request, dry_run=dry_run)
            if outcome is not None:
                outcomes.append(outcome)
        if not dry_run:
            journal.next_block = max(confirmed + 1, 0)
            journal.write()
        return Round(deployed=True, block=newest, outcomes=tuple(outcomes))

    async def _unanswered(self, to_block: int) -> list[Request]:
        us, journal = self._writer.sender.address, self._journal
        tried = [entry.block for entry in journal.open.values() if entry.attempts < MAX_ATTEMPTS]
        first = max(self._reader.identity.from_block, min([journal.next_block - OVERLAP_BLOCKS, *tried]))
        requests = await self._reader.requests(validator=us, from_block=max(first, 0), to_block=to_block)
        answered = await self._reader.answers(validator=us, from_block=max(first, 0)) if requests else {}
        for request_hash, _ in answered:
            journal.open.pop(request_hash, None)
        return [
            one
            for one in requests
            if (one.request_hash, us) not in answered and (self._agents is None or one.agent_id in self._agents)
        ]

    async def _handle(self, request: Request, *, dry_run: bool) -> Outcome | None:
        entry = self._journal.open.get(request.request_hash) or _Open(request.position.block)
        if entry.attempts >= MAX_ATTEMPTS or entry.not_before > self._clock():
            return None
        self._progress(f"judging {request.request_hash} about agent {request.agent_id}")
        judgement = await self._judge.judge(request, self._reader.identity.registry_id)
        if judgement.response is None:
            return self._later(request, entry, judgement, dry_run=dry_run)
        whole = {} if self._publisher.inline else {"exchanges": judgement.exchanges}
        content = jcs({**judgement.document, **whole})
        uri = self._publisher.uri(content)
        arguments = (request.request_hash, judgement.response, uri, content_hash(content), judgement.tag)
        if dry_run:
            planned = await self._writer.sender.plan(
                await self._writer.respond_call(*arguments), "answering a validation request"
            )
            return replace(_outcome(request, judgement, Status.WOULD_ANSWER), planned=planned)
        nonce = await self._writer.sender.settled_nonce()
        if await self._reader.answer(self._writer.sender.address, request.request_hash) is not None:
            return None  # sent before this process was started, or by another one
        self._progress(f"answering {request.request_hash} with {judgement.response}")
        self._publisher.publish(content)
        sent = await self._writer.respond(*arguments, nonce=nonce)
        self._journal.open.pop(request.request_hash, None)
        return _outcome(request, judgement, Status.ANSWERED, sent)

    def _later(self, request: Request, entry: _Open, judgement: Judgement, *, dry_run: bool) -> Outcome:
        entry.attempts += 1
        entry.not_before = self._clock() + min(FIRST_RETRY_SECONDS << (entry.attempts - 1), MAX_RETRY_SECONDS)
        if not dry_run:
            self._journal.open[request.request_hash] = entry
            self._journal.write()
        status = Status.UNDECIDED if entry.attempts < MAX_ATTEMPTS else Status.GIVEN_UP
        return _outcome(request, judgement, status)


def _outcome(request: Request, judgement: Judgement, status: Status, sent: Sent | None = None) -> Outcome:
    return Outcome(
        request_hash=request.request_hash,
        agent_id=request.agent_id,
        status=status,
        response=judgement.response,
        tag=judgement.tag,
        reason=judgement.reason,
        transaction=None if sent is None else sent.transaction,
        gas_used=None if sent is None else sent.gas_used,
    )
