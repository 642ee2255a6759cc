"""Paid requests, signed before the clock starts: every one buys another document with another payment."""

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from coincurve import PrivateKey
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak

from bench.sellers import PATH

FAR: Final = 1 << 40
"""A `valid_before` beyond any run, in unix seconds."""

_TYPE: Final = (
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    "bytes32 nonce)"
)

_DOCUMENT: Final = (
    "The harbour commission met on Tuesday to decide what becomes of the old grain terminal. Its engineers had "
    "measured the quay walls in spring and found cracks as wide as a thumb. Repairing them would cost eleven million, "
    "replacing them twice that. Fishermen asked for a cold store; the museum wants the machinery. A vote is expected "
    "in March. Reference "
)


@dataclass(frozen=True, slots=True)
class Order:
    """One request, with the payment for it where it is paid for."""

    body: bytes
    payment: str | None

    def wire(self, host: str) -> bytes:
        """The request's bytes on a kept-alive connection."""
        paid = "" if self.payment is None else f"PAYMENT-SIGNATURE: {self.payment}\r\n"
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self.body)}\r\n{paid}\r\n"
        )
        return head.encode() + self.body


def new_body() -> bytes:
    """A request for a summary that nobody has made before."""
    return json.dumps({"document": _DOCUMENT + secrets.token_hex(8), "max_words": 40}).encode()


@dataclass(frozen=True, slots=True)
class Signed:
    """A payment: the value of its PAYMENT-SIGNATURE header, and the nonce that the chain knows it by (0x, hex)."""

    header: str
    nonce: str


class Purse:
    """Signs payments of one 402's terms: EIP-3009 transfer authorizations with nonces of their own.

    What all payments of these terms have in common is encoded once, so that signing a hundred thousand takes seconds.

    Args:
        terms: the 402 document; its first `accepts` is paid.
        key: the payer's private key; a random one when None.
        valid_before: unix seconds.
        echo_resource: say in the payment what it is for, as the SDK's clients do. One that may be presented to any of
            several addresses must not: x402 leaves it to the payer.
    """

    def __init__(
        self,
        terms: Mapping[str, Any],
        *,
        key: bytes | None = None,
        valid_before: int = FAR,
        echo_resource: bool = True,
    ) -> None:
        self._common = {"x402Version": 2, "accepted": terms["accepts"][0]}
        if echo_resource:
            self._common["resource"] = terms["resource"]
        self._accepted = terms["accepts"][0]
        domain = {
            "name": self._accepted["extra"]["name"],
            "version": self._accepted["extra"]["version"],
            "chainId": int(self._accepted["network"].partition(":")[2]),
            "verifyingContract": self._accepted["asset"],
        }
        types = {"Empty": [{"name": "nothing", "type": "uint256"}]}
        self._domain = encode_typed_data(domain, types, {"nothing": 0}).header
        account = Account.from_key(key or secrets.token_bytes(32))
        self.payer = str(account.address)
        self._message = {
            "from": self.payer,
            "to": self._accepted["payTo"],
            "value": self._accepted["amount"],
            "validAfter": "0",
            "validBefore": str(valid_before),
        }
        words = (int(self.payer, 16), int(self._accepted["payTo"], 16), int(self._accepted["amount"]), 0, valid_before)
        self._struct = keccak(text=_TYPE) + b"".join(word.to_bytes(32, "big") for word in words)
        self._key = PrivateKey(bytes(account.key))

    def sign(self) -> Signed:
        """A payment with a fresh nonce."""
        nonce = secrets.token_bytes(32)
        digest = keccak(b"\x19\x01" + self._domain + keccak(self._struct + nonce))
        signed = self._key.sign_recoverable(digest, hasher=None)
        document = {
            **self._common,
            "payload": {
                "authorization": {**self._message, "nonce": "0x" + nonce.hex()},
                "signature": "0x" + signed[:64].hex() + f"{signed[64] + 27:02x}",
            },
        }
        encoded = base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()
        return Signed(encoded, "0x" + nonce.hex())
