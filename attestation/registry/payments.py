"""Whether a payment happened: the chain's own word on an EIP-3009 transfer.

Works on any token that emits what USDC emits: `AuthorizationUsed(payer, nonce)` and then the ERC-20 `Transfer` it
allowed, in one successful transaction.
"""

import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from eth_typing import HexStr
from web3.exceptions import TransactionNotFound
from web3.types import LogReceipt, TxReceipt

from attestation.closing import AsyncCloseable
from attestation.encoding import address as parse_address
from attestation.encoding import prefixed_hex_bytes
from attestation.errors import MalformedError
from attestation.registry.abi import AUTHORIZATION_USED, TRANSFER
from attestation.registry.erc8004 import Position, position_of
from attestation.registry.rpc import DEFAULT_TIMEOUT, Chain, checksum, word

_NETWORK: Final = re.compile(r"eip155:([1-9][0-9]{0,17})")


class Outcome(enum.Enum):
    """What the chain says about a payment."""

    CONFIRMED = "confirmed"
    """Mined, successful, and exactly this payment."""
    UNKNOWN_TRANSACTION = "unknown transaction"
    """The chain does not have it, or not yet."""
    FAILED = "failed"
    """Mined, and it failed: nothing moved."""
    DIFFERENT = "different"
    """Mined and successful, but not this payment."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment as somebody claims it.

    network: CAIP-2, ``eip155:<chain id>``. token, payer, pay_to: addresses in any spelling. amount: atomic units.
    nonce: the authorization's, 0x and 64 lower-case hex characters. transaction: hash, the same form.
    """

    network: str
    token: str
    payer: str
    pay_to: str
    amount: int
    nonce: str
    transaction: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """A payment that the chain shows in a successful transaction: an authorization and the transfer it made.

    Addresses are lower-case; amount in atomic units; nonce 0x and 64 lower-case hex characters; time in unix seconds.
    """

    token: str
    payer: str
    pay_to: str
    amount: int
    nonce: str
    position: Position
    block_time: int


@dataclass(frozen=True, slots=True)
class PaymentFinding:
    """What was found. Block fields are None when there is no such transaction; time is unix seconds."""

    outcome: Outcome
    reason: str
    block: int | None = None
    block_time: int | None = None
    confirmations: int | None = None
    """Blocks on top of and including the payment's own: 1 when it is in the newest block."""

    @property
    def ok(self) -> bool:
        """The payment happened exactly as claimed."""
        return self.outcome is Outcome.CONFIRMED


class PaymentReader(AsyncCloseable):
    """Reads payments on chain `chain_id` through the node at `rpc_url`. Close it, or use it with `async with`.

    Every method raises `WrongChainError` when the node serves another chain, `NoContractError` when there is no
    contract at the token's address, and `RpcError` when the node could not be asked.
    """

    def __init__(self, rpc_url: str, chain_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.chain: Final = Chain(rpc_url, chain_id, timeout=timeout)

    async def aclose(self) -> None:
        """Closes the connection to the node."""
        await self.chain.aclose()

    async def balance_of(self, token: str, account: str) -> int:
        """The account's balance in atomic units."""
        contract = await self.chain.contract("token", token)
        return int(await self.chain.call(contract.functions.balanceOf(checksum(account)), "a balance"))

    async def time(self) -> int:
        """The newest block's time, in unix seconds."""
        await self.chain.check()
        with self.chain.asking("the newest block"):
            return int((await self.chain.w3.eth.get_block("latest"))["timestamp"])

    async def authorization_state(self, token: str, payer: str, nonce: str) -> bool:
        """Whether the payer's nonce is used up, by a transfer or by a cancellation."""
        contract = await self.chain.contract("token", token)
        function = contract.functions.authorizationState(checksum(payer), _nonce(nonce))
        return bool(await self.chain.call(function, "the state of an authorization"))

    async def find_transaction(self, token: str, payer: str, nonce: str, *, from_block: int = 0) -> str | None:
        """The hash of the transaction that used the payer's nonce for a transfer, or None."""
        await self.chain.contract("token", token)
        topics = (AUTHORIZATION_USED, word(parse_address(payer, "payer")), _nonce(nonce))
        async for log in self.chain.logs_newest_first(token, topics, from_block=from_block):
            return log["transactionHash"].to_0x_hex()
        return None

    async def transfers(self, transaction: str) -> tuple[Transfer, ...] | None:
        """The payments in a transaction, of whatever tokens; None when the chain does not have it, or it failed.

        Raises:
            MalformedError: not a transaction's hash.
            RegistryError: see the class.
        """
        await self.chain.check()
        receipt = await self._receipt("0x" + prefixed_hex_bytes(transaction, "payment.transaction", size=32).hex())
        if receipt is None or receipt["status"] != 1:
            return None
        with self.chain.asking("the payment's block"):
            block = await self.chain.w3.eth.get_block(receipt["blockNumber"])
        return tuple(_transfers(receipt["logs"], int(block["timestamp"])))

    async def check(self, payment: Payment) -> PaymentFinding:
        """Compares a claimed payment with the receipt of its transaction and with the token's state.

        Raises:
            MalformedError: a field does not have its form.
            RegistryError: see the class; the answer is then unknown, not negative.
        """
        network = _NETWORK.fullmatch(payment.network)
        if network is None:
            raise MalformedError("payment.network", "must be eip155:<chain id>")
        transaction = "0x" + prefixed_hex_bytes(payment.transaction, "payment.transaction", size=32).hex()
        if int(network[1]) != self.chain.chain_id:
            return PaymentFinding(Outcome.DIFFERENT, f"was made on {payment.network}, not on {self._network}")
        await self.chain.contract("token", payment.token)
        receipt = await self._receipt(transaction)
        if receipt is None:
            return PaymentFinding(Outcome.UNKNOWN_TRANSACTION, f"{self._network} has no transaction {transaction}")
        outcome, reason = await self._compare(payment, receipt)
        with self.chain.asking("the payment's block"):
            block = await self.chain.w3.eth.get_block(receipt["blockNumber"])
            newest = int(await self.chain.w3.eth.block_number)
        number = int(receipt["blockNumber"])
        return PaymentFinding(outcome, reason, number, int(block["timestamp"]), max(1, newest - number + 1))

    @property
    def _network(self) -> str:
        return f"eip155:{self.chain.chain_id}"

    async def _receipt(self, transaction: str) -> TxReceipt | None:
        with self.chain.asking("the payment's receipt"):
            try:
                return await self.chain.w3.eth.get_transaction_receipt(HexStr(transaction))
            except TransactionNotFound:
                return None

    async def _compare(self, payment: Payment, receipt: TxReceipt) -> tuple[Outcome, str]:
        if receipt["status"] != 1:
            return Outcome.FAILED, "the transaction failed"
        problem = _mismatch(payment, receipt["logs"])
        if problem is not None:
            return Outcome.DIFFERENT, problem
        if not await self.authorization_state(payment.token, payment.payer, payment.nonce):
            return Outcome.DIFFERENT, "the token says that this authorization is unused"
        return Outcome.CONFIRMED, "the transfer is on the chain exactly as claimed"


def _mismatch(payment: Payment, logs: Sequence[LogReceipt]) -> str | None:
    """What keeps the logs from being this payment, or None.

    The transfer that counts is the one its authorization made: the first of the token after AuthorizationUsed, before
    the next AuthorizationUsed. A transaction may carry several payments, and none may pass for another.
    """
    token = parse_address(payment.token, "payment.token")
    payer, pay_to = parse_address(payment.payer, "payment.payer"), parse_address(payment.pay_to, "payment.pay_to")
    authorization = [AUTHORIZATION_USED, word(payer), _nonce(payment.nonce)]
    ours = [log for log in sorted(logs, key=lambda log: log["logIndex"]) if log["address"].lower() == token]
    topics = [[bytes(topic) for topic in log["topics"]] for log in ours]
    if authorization not in topics:
        return "the transaction does not use the payer's nonce in this token"
    for log, words in list(zip(ours, topics, strict=True))[topics.index(authorization) + 1 :]:
        if words[:1] == [AUTHORIZATION_USED]:
            break
        if len(words) == 3 and words[0] == TRANSFER:
            if words[1] != word(payer):
                return "the transfer takes from another account"
            if words[2] != word(pay_to):
                return f"the transfer pays 0x{words[2][-20:].hex()}, not {pay_to}"
            amount = int.from_bytes(log["data"], "big")
            return None if amount == payment.amount else f"the transfer moves {amount}, not {payment.amount}"
    return "the authorization moved nothing"


def _transfers(logs: Sequence[LogReceipt], block_time: int) -> Iterator[Transfer]:
    """Each authorization with the first transfer of its token after it and before the next one; see `_mismatch`."""
    open_: dict[str, tuple[bytes, bytes]] = {}
    for log in sorted(logs, key=lambda log: log["logIndex"]):
        token, words = log["address"].lower(), [bytes(topic) for topic in log["topics"]]
        if len(words) != 3:
            continue
        if words[0] == AUTHORIZATION_USED:
            open_[token] = (words[1], words[2])
        elif words[0] == TRANSFER and token in open_:
            payer, nonce = open_.pop(token)
            if words[1] == payer:
                yield Transfer(
                    token=token,
                    payer="0x" + payer[-20:].hex(),
                    pay_to="0x" + words[2][-20:].hex(),
                    amount=int.from_bytes(log["data"], "big"),
                    nonce="0x" + nonce.hex(),
                    position=position_of(log),
                    block_time=block_time,
                )


def _nonce(value: str) -> bytes:
    return prefixed_hex_bytes(value, "payment.nonce", size=32)
