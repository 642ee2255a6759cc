"""Sends transactions of one account to one chain, so that what is reported as done is done.

Every transaction is estimated first (a refusal costs nothing), capped in price, paid for by a balance that was looked
at, waited for, and its receipt is compared with what was sent. Several processes may share the account: one that finds
its account nonce taken tries again with a fresh one, a bounded number of times. A block that is replaced by another
before enough blocks have followed takes its transactions' receipts with it: then waiting goes on.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from eth_account.signers.local import LocalAccount
from eth_typing import HexStr
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3.exceptions import TransactionNotFound
from web3.types import TxReceipt

from attestation.registry.errors import (
    FeeTooHighError,
    NoGasError,
    NonceTakenError,
    RateLimitedError,
    RevertedError,
    RpcError,
    RpcRefusedError,
    UnconfirmedError,
)
from attestation.registry.rpc import Chain, checksum
from attestation.registry.signer import Signer, signer_of

NONCE_TRIES: Final = 8
"""How often a transaction is made anew because another process took its account nonce."""

_MARGIN: Final = 125
"""Percent of the estimate that is sent along: the same call may cost a little more in the block it lands in."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_LOOKS: Final = 3
"""How often a transaction whose account nonce is used up must be missed before it counts as replaced: one of several
nodes behind an address may know of the nonce before it knows of the receipt."""

_ALREADY_KNOWN: Final = ("already known", "alreadyknown", "already imported", "known transaction")
_NONCE_TAKEN: Final = ("nonce too low", "nonce is too low", "oldnonce", "old nonce", "replacement")
"""What nodes say (go-ethereum, Erigon, Nethermind, Besu, Reth, anvil), in lower case."""


@dataclass(frozen=True, slots=True)
class FeeCaps:
    """The most one transaction may cost.

    max_fee_per_gas: wei for one unit of gas, tip included.
    max_gas: units of gas, the margin over the estimate included.
    """

    max_fee_per_gas: int = 50 * 10**9
    max_gas: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Planned:
    """A transaction that would be sent. Gas in units, fees in wei for one unit.

    gas: the estimate. gas_limit: what is sent along.
    fee: base fee of the newest block and tip. max_fee: the cap that is sent along.
    """

    what: str
    sender: str
    to: str
    data: str
    gas: int
    gas_limit: int
    fee: int
    max_fee: int
    tip: int

    @property
    def cost(self) -> int:
        """Wei, at the newest block's base fee."""
        return self.gas * self.fee

    @property
    def max_cost(self) -> int:
        """Wei, the most it can become."""
        return self.gas_limit * self.max_fee


class Sender:
    """Sends as `account`, which pays the gas.

    Args:
        chain: where to; the caller closes it.
        account: signs and pays: a key, or a `Signer`.
        fees: caps; a transaction beyond them is not sent.
        receipt_timeout: seconds to wait until a transaction is mined and confirmed.
        confirmations: blocks from the transaction's own on that must be there; 1 is its own.
    """

    def __init__(
        self,
        chain: Chain,
        account: LocalAccount | Signer,
        *,
        fees: FeeCaps | None = None,
        receipt_timeout: float = 120.0,
        confirmations: int = 1,
    ) -> None:
        self.chain: Final = chain
        self.signer: Final = signer_of(account)
        self._fees = fees or FeeCaps()
        self._receipt_timeout = receipt_timeout
        self._confirmations = confirmations
        self._one_at_a_time = asyncio.Lock()  # two transactions must not take the same account nonce

    @property
    def address(self) -> str:
        """The account, lower-case."""
        return self.signer.address

    async def plan(self, function: Any, what: str) -> Planned:
        """What sending a contract's function would take. Sends nothing.

        Raises:
            RevertedError: the contract would refuse.
            FeeTooHighError: it would cost more than the caps allow.
            RpcError: the node could not be asked.
        """
        account = checksum(self.address)
        with self.chain.asking(what):
            gas = int(await function.estimate_gas({"from": account}))
        limit = gas * _MARGIN // 100
        if limit > self._fees.max_gas:
            raise FeeTooHighError(f"{what} needs {limit} gas; the cap is {self._fees.max_gas}")
        base, tip = await self._price(what)
        with self.chain.asking(what):
            built = await function.build_transaction(
                {"from": account, "chainId": self.chain.chain_id, "gas": limit, "maxFeePerGas": 0,
                 "maxPriorityFeePerGas": 0, "nonce": 0}
            )  # fmt: skip
        return Planned(
            what=what,
            sender=self.address,
            to=str(built["to"]),
            data=HexBytes(built["data"]).to_0x_hex(),
            gas=gas,
            gas_limit=limit,
            fee=base + tip,
            max_fee=min(2 * base + tip, self._fees.max_fee_per_gas),  # room for the base fee to double
            tip=tip,
        )

    async def send(self, function: Any, what: str, *, nonce: int | None = None) -> TxReceipt:
        """Sends a contract's function and returns the receipt of its success.

        Args:
            what: names the transaction in errors, such as "writing tee.manifest".
            nonce: send with exactly this account nonce, or not at all; see `settled_nonce`.

        Raises:
            NonceTakenError: `nonce` was used by another transaction, or every fresh one was.
            RevertedError, FeeTooHighError, NoGasError, UnconfirmedError, SignerError, RpcError: see there.
        """
        taken = nonce
        for tries in range(NONCE_TRIES if nonce is None else 1):
            await asyncio.sleep(tries * _FIRST_PAUSE)
            planned = await self.plan(function, what)
            await self._check_balance(planned)
            async with self._one_at_a_time:
                taken = await self._count("pending") if nonce is None else nonce
                sent = await self._send_once(planned, taken)
            receipt = None if sent is None else await self._mined(sent, taken, planned)
            if receipt is not None:
                return receipt
        raise NonceTakenError(what, self.address, taken or 0)

    async def settled_nonce(self) -> int:
        """The account's next nonce, after everything that it has sent so far is mined or dropped.

        What is read from the chain after this call and then acted upon with this nonce is acted upon only if the
        account has sent nothing else in between: one of several processes that share the account goes first, and the
        others are told (`NonceTakenError`).

        Raises:
            RpcError: the node could not be asked, or one is still not mined after the receipt timeout.
        """
        with self.chain.asking("the transactions that this account has sent"):
            sent = await self._count("pending")
            async with asyncio.timeout(self._receipt_timeout):
                while (mined := await self._count("latest")) < sent:
                    await asyncio.sleep(0.2)
                    sent = min(sent, await self._count("pending"))
        return mined

    async def _count(self, block: str) -> int:
        with self.chain.asking("the account's nonce"):
            return int(await self.chain.w3.eth.get_transaction_count(checksum(self.address), HexStr(block)))

    async def _price(self, what: str) -> tuple[int, int]:
        """Base fee of the newest block and tip, in wei for one unit of gas."""
        with self.chain.asking("the gas price"):
            block = await self.chain.w3.eth.get_block("latest")
            tip = int(await self.chain.w3.eth.max_priority_fee)
            base = int(block["baseFeePerGas"])
        cap = self._fees.max_fee_per_gas
        if base + tip > cap:
            raise FeeTooHighError(f"{what} would cost {base + tip} wei for one unit of gas; the cap is {cap}")
        return base, tip

    async def _check_balance(self, planned: Planned) -> None:
        with self.chain.asking("the account's balance"):
            balance = int(await self.chain.w3.eth.get_balance(checksum(self.address)))
        if balance < planned.max_cost:
            raise NoGasError(planned.what, self.address, balance, planned.max_cost, self.chain.chain_id)

    async def _send_once(self, planned: Planned, nonce: int) -> HexBytes | None:
        """The hash of what was sent; None when the account nonce was taken before."""
        raw = await self.signer.sign_transaction(
            {
                "chainId": self.chain.chain_id,
                "nonce": nonce,
                "to": checksum(planned.to),
                "value": 0,
                "data": planned.data,
                "gas": planned.gas_limit,
                "maxFeePerGas": planned.max_fee,
                "maxPriorityFeePerGas": planned.tip,
            }
        )
        sent = HexBytes(keccak(raw))
        try:
            with self.chain.asking(planned.what):
                await self.chain.w3.eth.send_raw_transaction(HexBytes(raw))
        except RpcRefusedError as error:
            said = str(error).lower()
            if any(words in said for words in _ALREADY_KNOWN):
                return sent  # by another process that sends the very same, or by a try whose answer was lost
            if any(words in said for words in _NONCE_TAKEN):
                return sent if await self._receipt(sent) is not None else None
            raise
        except RateLimitedError:
            raise
        except RpcError:
            # Whether the node has it is unknown. Waiting for its receipt tells, and cannot do it twice.
            return sent
        return sent

    async def _mined(self, sent: HexBytes, nonce: int, planned: Planned) -> TxReceipt | None:
        """The receipt once it is confirmed; None when another transaction was mined with its account nonce."""
        try:
            async with asyncio.timeout(self._receipt_timeout):
                receipt = await self._wait(sent, nonce, planned)
        except TimeoutError as error:
            raise UnconfirmedError(sent.to_0x_hex(), self._receipt_timeout) from error
        if receipt is not None and receipt["status"] != 1:
            raise RevertedError(planned.what, f"transaction {sent.to_0x_hex()} failed when it was mined")
        return receipt

    async def _wait(self, sent: HexBytes, nonce: int, planned: Planned) -> TxReceipt | None:
        missed, pause = 0, _FIRST_PAUSE
        while True:
            try:
                receipt = await self._confirmed(sent, planned)
                if receipt is not None:
                    return receipt
                missed = missed + 1 if await self._count("latest") > nonce else 0
                if missed >= _LOOKS and await self._receipt(sent) is None:
                    return None
            except RpcError:
                pass  # a hiccup; the time limit ends a long one
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    async def _confirmed(self, sent: HexBytes, planned: Planned) -> TxReceipt | None:
        receipt = await self._receipt(sent)
        if receipt is None:
            return None
        told = (bytes(receipt["transactionHash"]), str(receipt["from"]).lower(), str(receipt["to"]).lower())
        if told != (bytes(sent), self.address, planned.to.lower()):
            raise RpcError(f"the node's receipt of {sent.to_0x_hex()} is of another transaction")
        block = int(receipt["blockNumber"])
        if await self.chain.block_number() - block + 1 < self._confirmations:
            return None
        with self.chain.asking(f"block {block}"):
            there = await self.chain.w3.eth.get_block(block)
        # Of a block that was replaced: the receipt is gone, or will name another one.
        return receipt if there["hash"] == receipt["blockHash"] else None

    async def _receipt(self, sent: HexBytes) -> TxReceipt | None:
        with self.chain.asking(f"the receipt of {sent.to_0x_hex()}"):
            try:
                return await self.chain.w3.eth.get_transaction_receipt(sent)
            except TransactionNotFound:
                return None
