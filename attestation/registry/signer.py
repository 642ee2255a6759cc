"""Who signs transactions and EIP-712 documents: a key in this process, or a program of the operator's own.

A program is asked over standard input and answers on standard output, one JSON document each (docs/formats.md,
"External signers"). What it returns is checked: it must be exactly what was asked, signed by the account it named.
"""

import asyncio
import json
import shlex
from collections.abc import Mapping
from typing import Any, Final, Protocol

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from attestation.encoding import address as parse_address
from attestation.encoding import as_object, parse_json, prefixed_hex_bytes
from attestation.errors import TollsealError
from attestation.registry.errors import SignerError

PROTOCOL_VERSION: Final = 1
SIGNER_TIMEOUT: Final = 180.0
"""Seconds for one answer: a person may have to press a button."""
MAX_ANSWER: Final = 256 * 1024

TRANSACTION_FIELDS: Final = ("chainId", "nonce", "to", "value", "data", "gas", "maxFeePerGas", "maxPriorityFeePerGas")
"""What is signed of an EIP-1559 transaction; its access list is empty."""


class Signer(Protocol):
    """One account that signs. `address` is lower-case."""

    @property
    def address(self) -> str: ...

    async def sign_transaction(self, transaction: Mapping[str, Any]) -> bytes:
        """The raw EIP-1559 transaction with the fields `TRANSACTION_FIELDS`. Raises SignerError."""

    async def sign_typed_data(self, document: Mapping[str, Any]) -> bytes:
        """The account's signature over an EIP-712 document. Raises SignerError."""


class LocalSigner:
    """Signs with a key in this process."""

    def __init__(self, account: LocalAccount) -> None:
        self._account = account

    @property
    def address(self) -> str:
        return str(self._account.address).lower()

    async def sign_transaction(self, transaction: Mapping[str, Any]) -> bytes:
        fields = {name: transaction[name] for name in TRANSACTION_FIELDS}
        return bytes(self._account.sign_transaction({**fields, "type": 2}).raw_transaction)

    async def sign_typed_data(self, document: Mapping[str, Any]) -> bytes:
        return bytes(self._account.sign_message(encode_typed_data(full_message=dict(document))).signature)


class CommandSigner:
    """Signs with a program; see the module. Make one with `open`."""

    def __init__(self, command: tuple[str, ...], address: str, *, timeout_seconds: float = SIGNER_TIMEOUT) -> None:
        self._command = command
        self._address = parse_address(address, "signer address")
        self._timeout = timeout_seconds

    @classmethod
    async def open(cls, command: str, *, timeout_seconds: float = SIGNER_TIMEOUT) -> "CommandSigner":
        """Asks the program for its account.

        Args:
            command: program and arguments, split like a shell does; no shell is involved.

        Raises:
            SignerError: it could not be run, or gave no address.
        """
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise SignerError(f"the signer command cannot be read: {error}") from error
        if not words:
            raise SignerError("the signer command is empty")
        unnamed = cls(words, "0x" + "0" * 40, timeout_seconds=timeout_seconds)
        answer = await unnamed._ask("address", {})
        try:
            return cls(words, str(answer.get("address")), timeout_seconds=timeout_seconds)
        except TollsealError as error:
            raise SignerError(f"{words[0]} gave no address") from error

    @property
    def address(self) -> str:
        return self._address

    async def sign_transaction(self, transaction: Mapping[str, Any]) -> bytes:
        fields = {name: transaction[name] for name in TRANSACTION_FIELDS}
        written = {name: hex(value) if isinstance(value, int) else value for name, value in fields.items()}
        answer = await self._ask(
            "sign-transaction", {"address": self._address, "transaction": {"type": "0x2", **written}}
        )
        raw = self._bytes(answer, "transaction")
        try:
            signed = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
            sender = str(Account.recover_transaction(raw)).lower()
        except Exception as error:
            raise SignerError(f"{self._command[0]} answered with something that is no signed transaction") from error
        for name, value in fields.items():
            if _plain(signed.get(name)) != _plain(value):
                raise SignerError(f"{self._command[0]} signed another transaction: its {name} is not what was asked")
        if sender != self._address:
            raise SignerError(f"{self._command[0]} signed as {sender}, not as {self._address}")
        return raw

    async def sign_typed_data(self, document: Mapping[str, Any]) -> bytes:
        answer = await self._ask("sign-typed-data", {"address": self._address, "typedData": document})
        return self._bytes(answer, "signature")

    def _bytes(self, answer: dict[str, Any], name: str) -> bytes:
        try:
            return prefixed_hex_bytes(answer.get(name), name)
        except TollsealError as error:
            raise SignerError(f"{self._command[0]} answered without a {name} (0x and lower-case hex)") from error

    async def _ask(self, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        program = self._command[0]
        asked = json.dumps({"version": PROTOCOL_VERSION, "action": action, **request}).encode()
        try:
            # Its stderr is ours: what it asks a person goes to that person.
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
        except OSError as error:
            raise SignerError(f"{program} could not be started: {error.strerror or error}") from error
        try:
            async with asyncio.timeout(self._timeout):
                answer, _ = await process.communicate(asked)
        except TimeoutError as error:
            raise SignerError(f"{program} did not answer within {self._timeout:.0f} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise SignerError(f"{program} refused to sign (exit code {process.returncode})")
        if len(answer) > MAX_ANSWER:
            raise SignerError(f"{program} answered with more than {MAX_ANSWER} bytes")
        try:
            return as_object(parse_json(answer, "signer answer"), "signer answer")
        except TollsealError as error:
            raise SignerError(f"{program} answered with something that is no JSON object") from error


def signer_of(account: LocalAccount | Signer) -> Signer:
    """A key in this process as a signer; a signer as it is."""
    return LocalSigner(account) if isinstance(account, LocalAccount) else account


def _plain(value: Any) -> int | bytes:
    """A field in one form, whichever of hex text, bytes and integer it has; an address or data as bytes."""
    if isinstance(value, int):
        return value
    if isinstance(value, bytes):
        return bytes(value)
    return bytes.fromhex(str(value).removeprefix("0x"))
