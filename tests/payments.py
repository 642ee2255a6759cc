"""Signed payments for tests: made by the buyer's side alone, so that no code of ours checks its own work."""

import base64
import json
import secrets
import time
from typing import Any

from eth_account import Account
from x402.schemas import PaymentPayload, PaymentRequirements

from service.payment.authorization import Authorization, match_requirements
from service.payment.terms import requirements_for
from service.pricing import Asset, Price

BUYER_KEY = "0x" + "11" * 32
PAY_TO = "0x" + "22" * 20
PRICE = 10_000
TOKEN = Asset("eip155:84532", "0x" + "33" * 20, 6, "USDC", "2", "USDC")

_TYPES = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}


def offer(asset: Asset = TOKEN, *, amount: int = PRICE, pay_to: str = PAY_TO) -> PaymentRequirements:
    """What the service would offer for one call."""
    return requirements_for(Price(amount, asset, pay_to, max_timeout_seconds=600))


def pay(
    requirements: PaymentRequirements,
    *,
    key: str = BUYER_KEY,
    signing_key: str | None = None,
    payer: str | None = None,
    to: str | None = None,
    value: int | None = None,
    valid_after: int = 0,
    valid_before: int | None = None,
    nonce: str | None = None,
) -> PaymentPayload:
    """A buyer's payment of `requirements`; whatever is given instead of None deviates from them, and is signed."""
    message: dict[str, Any] = {
        "from": payer or Account.from_key(key).address,
        "to": to or requirements.pay_to,
        "value": int(requirements.amount) if value is None else value,
        "validAfter": valid_after,
        "validBefore": int(time.time()) + 600 if valid_before is None else valid_before,
        "nonce": nonce or "0x" + secrets.token_hex(32),
    }
    domain = {
        "name": requirements.extra["name"],
        "version": requirements.extra["version"],
        "chainId": int(requirements.network.split(":")[1]),
        "verifyingContract": requirements.asset,
    }
    signed = Account.sign_typed_data(
        signing_key or key, domain, _TYPES, {**message, "nonce": bytes.fromhex(message["nonce"][2:])}
    )
    numbers = {name: str(message[name]) for name in ("value", "validAfter", "validBefore")}
    return PaymentPayload(
        accepted=requirements,
        payload={"authorization": {**message, **numbers}, "signature": "0x" + bytes(signed.signature).hex()},
    )


def authorize(requirements: PaymentRequirements | None = None, **deviations: Any) -> Authorization:
    """A payment that has been matched with its own offer."""
    requirements = requirements or offer()
    return match_requirements(pay(requirements, **deviations), [requirements])


def as_document(payload: PaymentPayload) -> dict[str, Any]:
    """The JSON object inside a `PAYMENT-SIGNATURE` header."""
    document: dict[str, Any] = payload.model_dump(mode="json", by_alias=True, exclude_none=True)
    return document


def as_header(document: Any) -> str:
    """The header's value for any JSON value."""
    return base64.b64encode(json.dumps(document).encode()).decode()
