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

_KEY: Final = secrets.token_bytes(32)
_PAYER: Final[str] = Account.from_key(_KEY).address
_VALID_BEFORE: Final = 1 << 40

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


class Purse:
    """Signs payments of one 402's terms: EIP-3009 transfer authorizations with nonces of their own.

    What all payments of these terms have in common is encoded once, so that signing a hundred thousand takes seconds.

    Args:
        terms: the 402 document; its first `accepts` is paid.
    """

    def __init__(self, terms: Mapping[str, Any]) -> None:
        self._terms = terms
        self._accepted = terms["accepts"][0]
        domain = {
            "name": self._accepted["extra"]["name"],
            "version": self._accepted["extra"]["version"],
            "chainId": int(self._accepted["network"].partition(":")[2]),
            "verifyingContract": self._accepted["asset"],
        }
        types = {"Empty": [{"name": "nothing", "type": "uint256"}]}
        self._domain = encode_typed_data(domain, types, {"nothing": 0}).header
        self._message = {
            "from": _PAYER,
            "to": self._accepted["payTo"],
            "value": self._accepted["amount"],
            "validAfter": "0",
            "validBefore": str(_VALID_BEFORE),
        }
        words = (int(_PAYER, 16), int(self._accepted["payTo"], 16), int(self._accepted["amount"]), 0, _VALID_BEFORE)
        self._struct = keccak(text=_TYPE) + b"".join(word.to_bytes(32, "big") for word in words)
        self._key = PrivateKey(_KEY)

    def payment(self) -> str:
        """The value of a PAYMENT-SIGNATURE header, with a fresh nonce."""
        nonce = secrets.token_bytes(32)
        digest = keccak(b"\x19\x01" + self._domain + keccak(self._struct + nonce))
        signed = self._key.sign_recoverable(digest, hasher=None)
        document = {
            "x402Version": 2,
            "resource": self._terms["resource"],
            "accepted": self._accepted,
            "payload": {
                "authorization": {**self._message, "nonce": "0x" + nonce.hex()},
                "signature": "0x" + signed[:64].hex() + f"{signed[64] + 27:02x}",
            },
        }
        return base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()
