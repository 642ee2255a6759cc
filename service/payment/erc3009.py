"""EIP-3009 tokens on the wire: calls, events, and which payments a transaction has made.

Pure functions. Only fixed types occur, so calls are encoded by hand. Source: EIP-3009, "Specification"; the overload
that takes one signature of bytes is Circle's (USDC 2.2), for contract wallets. Solidity ABI specification.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from service.payment.authorization import Authorization
from service.payment.evm_rpc import ChainError, hex_data

# First four bytes of the signature's hash.
AUTHORIZATION_STATE: Final = bytes.fromhex("e94a0102")  # authorizationState(address,bytes32)
BALANCE_OF: Final = bytes.fromhex("70a08231")  # balanceOf(address)
DECIMALS: Final = bytes.fromhex("313ce567")  # decimals()
DOMAIN_SEPARATOR: Final = bytes.fromhex("3644e515")  # DOMAIN_SEPARATOR()
TRANSFER_VRS: Final = bytes.fromhex("e3ee160e")
"""transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"""
TRANSFER_BYTES: Final = bytes.fromhex("cf092995")
"""transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"""

AUTHORIZATION_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
AUTHORIZATION_CANCELED: Final = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


@dataclass(frozen=True, slots=True)
class Log:
    """An event. `address` and `topics` are lower case; `data` is not decoded."""

    address: str
    topics: tuple[str, ...]
    data: Any
    transaction: Any = None
    block: Any = None


@dataclass(frozen=True, slots=True)
class Moved:
    """What a token's `Transfer` event says; addresses are 32-byte words, `amount` is None when it is not one word."""

    payer: str
    pay_to: str
    amount: int | None


NonceKey: TypeAlias = tuple[str, str, str]
"""Token, payer as a topic, nonce."""


def word(value: int | str) -> bytes:
    """A number or an address as 32 bytes."""
    return int(value, 16).to_bytes(32) if isinstance(value, str) else value.to_bytes(32)


def topic(address: str) -> str:
    """An address as an event's topic."""
    return "0x" + word(address).hex()


def balance_of(holder: str) -> bytes:
    """The call that asks for a balance."""
    return BALANCE_OF + word(holder)


def authorization_state(authorization: Authorization) -> bytes:
    """The call that asks whether the authorization's nonce is spent."""
    return AUTHORIZATION_STATE + word(authorization.payer) + word(authorization.nonce)


def transfer_by_key(authorization: Authorization, signature: bytes) -> bytes:
    """The call that executes what a key has signed.

    The form with v, r and s: 96 bytes shorter than the other, and a few hundred gas cheaper.

    Args:
        signature: r, s and v, which may be 0 or 1 for 27 or 28; tokens only take the latter.
    """
    v = signature[64] + 27 if signature[64] < 27 else signature[64]
    return TRANSFER_VRS + _head(authorization) + v.to_bytes(32) + signature[:64]


def transfer_by_wallet(authorization: Authorization, signature: bytes) -> bytes:
    """The call that executes what a contract wallet accepts (ERC-1271)."""
    padding = bytes(-len(signature) % 32)
    return TRANSFER_BYTES + _head(authorization) + word(7 * 32) + word(len(signature)) + signature + padding


def parse_logs(value: Any) -> list[Log]:
    """The events in a node's answer.

    Raises:
        ChainError: it is not a list of events.
    """
    if not isinstance(value, list):
        raise ChainError("the node answered with something that is not a list of events")
    found = []
    for log in value:
        topics = log.get("topics") if isinstance(log, dict) else None
        if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
            raise ChainError("the node answered with an event that makes no sense")
        lower = tuple(topic.lower() for topic in topics)
        address = str(log.get("address")).lower()
        found.append(Log(address, lower, log.get("data"), log.get("transactionHash"), log.get("blockNumber")))
    return found


def transfers(logs: Sequence[Log]) -> dict[NonceKey, Moved | None]:
    """What each authorization used in a transaction has moved; None when nothing.

    A transaction may execute many, so only the token's next `Transfer` counts; both USDC and OpenZeppelin's ERC-3009
    emit it right after `AuthorizationUsed`.

    Args:
        logs: of one transaction, in their order.
    """
    moved: dict[NonceKey, Moved | None] = {}
    open_: dict[str, NonceKey] = {}
    for log in logs:
        if len(log.topics) == 3 and log.topics[0] == AUTHORIZATION_USED:
            key = (log.address, log.topics[1], log.topics[2])
            moved.setdefault(key, None)
            open_[log.address] = key
        elif len(log.topics) == 3 and log.topics[0] == TRANSFER and log.address in open_:
            moved[open_.pop(log.address)] = Moved(log.topics[1], log.topics[2], _amount(log.data))
    return moved


def paid_by(authorization: Authorization) -> Moved:
    """What the transfer of an authorization looks like when it pays exactly us."""
    return Moved(topic(authorization.payer), topic(authorization.pay_to), authorization.amount)


def nonce_key(authorization: Authorization) -> NonceKey:
    """What `transfers` knows an authorization by."""
    return (authorization.asset, topic(authorization.payer), authorization.nonce)


def message_of(authorization: Authorization) -> dict[str, Any]:
    """What the payer has signed, as `attestation.payment_proof.authorization_signer` takes it."""
    return {
        "from": authorization.payer,
        "to": authorization.pay_to,
        "value": authorization.amount,
        "validAfter": authorization.valid_after,
        "validBefore": authorization.valid_before,
        "nonce": bytes.fromhex(authorization.nonce[2:]),
    }


def one_word(value: bytes) -> int:
    """The number in a contract's answer.

    Raises:
        ChainError: it is not one 32-byte word.
    """
    if len(value) != 32:
        raise ChainError("the contract did not answer with one 32-byte value; it may not be an EIP-3009 token")
    return int.from_bytes(value)


def _head(authorization: Authorization) -> bytes:
    return b"".join(
        word(value)
        for value in (
            authorization.payer,
            authorization.pay_to,
            authorization.amount,
            authorization.valid_after,
            authorization.valid_before,
            authorization.nonce,
        )
    )


def _amount(data: Any) -> int | None:
    try:
        value = hex_data(data)
    except ChainError:
        return None
    return int.from_bytes(value) if len(value) == 32 else None
