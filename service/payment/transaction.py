"""A transaction of ours as values: the moment it is made in, its versions on the way, its receipt."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service.payment.erc3009 import Log, parse_logs
from service.payment.evm_rpc import Call, ChainError, NodeRefusedError, hash_text, json_object, quantity
from service.payment.fees import Fees, Market


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The account and the chain at one moment.

    Attributes:
        pending: the account's next nonce, as the node sees it.
        balance: wei.
        gas_limit: of a block.
        sent: how many transactions this process had sent by then.
    """

    market: Market
    pending: int
    balance: int
    gas_limit: int
    sent: int
    idle: bool


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction in a block that is deep enough.

    Attributes:
        logs: its events, none when it failed.
        checks: the answers to the questions that came with it, asked once it was in its block.
    """

    transaction: str
    block: int
    succeeded: bool
    gas_used: int
    logs: list[Log]
    checks: list[Any]


@dataclass(slots=True)
class Sent:
    """A transaction on its way.

    Attributes:
        attempts: hash and signed bytes of each version; they differ in their fees.
        mined: None when somebody else has used its nonce.
    """

    nonce: int
    to: str
    data: bytes
    gas: int
    checks: Sequence[Call]
    fees: Fees
    mined: asyncio.Future[Mined | None]
    attempts: list[tuple[str, str]] = field(default_factory=list)
    priced_at: float = 0.0
    given_at: float = 0.0
    overtaken_at: float | None = None

    @property
    def transaction(self) -> str:
        """Hash of the version that pays most."""
        return self.attempts[-1][0]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the node says about a transaction in a block; its block may be replaced yet."""

    transaction: str
    block: int
    block_hash: str
    succeeded: bool
    gas_used: int
    logs: list[Log]

    @classmethod
    def read(cls, value: Any, transaction: str) -> "Receipt":
        """A node's answer about the transaction with this hash.

        Raises:
            ChainError: it is not a receipt of that transaction.
        """
        receipt = json_object(value, "receipt")
        if hash_text(receipt.get("transactionHash")) != transaction:
            raise ChainError("the node answered with the receipt of another transaction")
        succeeded = quantity(receipt.get("status"))
        if succeeded > 1:
            raise ChainError("the node answered with a receipt that makes no sense")
        return cls(
            transaction,
            quantity(receipt.get("blockNumber")),
            hash_text(receipt.get("blockHash")),
            bool(succeeded),
            quantity(receipt.get("gasUsed")),
            parse_logs(receipt.get("logs")) if succeeded else [],
        )

    def mined(self, checks: list[Any]) -> Mined:
        """The transaction, once its block is deep enough."""
        return Mined(self.transaction, self.block, self.succeeded, self.gas_used, self.logs, checks)


def is_known(error: NodeRefusedError) -> bool:
    """Whether the node refuses a transaction because it has it already."""
    words = error.refusal.lower()
    return "already known" in words or "already imported" in words or "known transaction" in words


def nonce_is_taken(error: NodeRefusedError) -> bool:
    """Whether the node refuses a transaction because another one has its nonce."""
    words = error.refusal.lower()
    return "nonce too low" in words or "nonce is too low" in words or "replacement" in words
