"""Whether a transfer would be executed now: first what can be said without a node, then what the chain says.

The chain is asked by simulating the very call that settles (`eth_call`), so that whatever the token insists on counts:
balance, nonce, validity by the chain's clock, a wallet's own opinion, a pause, a blocklist. Only for a call that fails
the reasons are looked up.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from x402.mechanisms.evm.constants import (
    ERR_AUTHORIZATION_VALUE_MISMATCH,
    ERR_FACTORY_NOT_ALLOWED,
    ERR_INSUFFICIENT_BALANCE,
    ERR_INVALID_SIGNATURE,
    ERR_NETWORK_MISMATCH,
    ERR_NONCE_ALREADY_USED,
    ERR_RECIPIENT_MISMATCH,
    ERR_TOKEN_NAME_MISMATCH,
    ERR_TOKEN_VERSION_MISMATCH,
    ERR_TRANSACTION_SIMULATION_FAILED,
    ERR_UNDEPLOYED_SMART_WALLET,
    ERR_UNSUPPORTED_SCHEME,
    ERR_VALID_AFTER_FUTURE,
    ERR_VALID_BEFORE_EXPIRED,
)
from x402.mechanisms.evm.erc6492 import has_deployment_info, is_erc6492_signature, parse_erc6492_signature

from attestation.eip712 import SIGNATURE_BYTES
from attestation.errors import EvidenceError
from attestation.payment_proof import authorization_signer
from service.payment.authorization import Authorization
from service.payment.erc3009 import (
    authorization_state,
    balance_of,
    message_of,
    one_word,
    transfer_by_key,
    transfer_by_wallet,
)
from service.payment.evm_rpc import Call, ChainError, Node, NodeRefusedError, hex_data, json_object, quantity, readable
from service.payment.facilitator import Invalid
from service.payment.multicall import MULTICALL3, ContractCall, aggregate, results
from service.payment.reasons import INVALID_REQUIREMENTS, message_for
from service.payment.terms import SCHEME
from service.pricing import Asset

EXPIRY_MARGIN_SECONDS: Final = 6
"""An authorization that ends sooner is not verified: its transaction might not be in a block in time."""

KEY_GAS: Final = 250_000
"""Gas that the transfer of a plain key may use alone; USDC's needs less than half."""

WALLET_GAS: Final = 500_000
"""The same with a contract wallet's check of the signature."""

DEPLOYMENT_GAS: Final = 2_500_000
"""The same, with the deployment of a wallet before it."""

_ERROR_STRING: Final = bytes.fromhex("08c379a0")  # Error(string)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An authorization of our terms, with the calls that execute it.

    Attributes:
        by_key: the payer's own key has signed, so no foreign code runs, unless the payer has code all the same
            (EIP-7702).
        calls: the transfer last; before it the deployment of the payer's wallet, if there is one (ERC-6492).
    """

    authorization: Authorization
    by_key: bool
    calls: tuple[ContractCall, ...]

    @property
    def gas(self) -> int:
        """Gas that it may use when it is executed alone."""
        if len(self.calls) > 1:
            return DEPLOYMENT_GAS
        return KEY_GAS if self.by_key else WALLET_GAS


@dataclass(frozen=True, slots=True)
class Refused:
    """The chain would not execute the transfer.

    Attributes:
        reason: an x402 error code.
        message: the same for people.
        chain_time: unix seconds of the block that the reason was read from.
    """

    reason: str
    message: str
    chain_time: int


Finding: TypeAlias = Refused | ChainError | None
"""None when the transfer would be executed; a `ChainError` when the node could not say so about this one."""


def prepare(authorization: Authorization, assets: Sequence[Asset], factories: frozenset[str]) -> Prepared | Invalid:
    """What can be said without a node: are these our terms, and is this a signature that a token may accept.

    Args:
        assets: the tokens that are settled.
        factories: addresses (lower case) that may deploy a payer's wallet; see ERC-6492.
    """
    wrong = _terms_problem(authorization, assets)
    if wrong is not None:
        return invalid(wrong)
    signature = bytes.fromhex(authorization.signature[2:])
    if len(signature) == SIGNATURE_BYTES and _signer(authorization, signature) == authorization.payer:
        call = (authorization.asset, transfer_by_key(authorization, signature))
        return Prepared(authorization, by_key=True, calls=(call,))
    if not is_erc6492_signature(signature):
        call = (authorization.asset, transfer_by_wallet(authorization, signature))
        return Prepared(authorization, by_key=False, calls=(call,))
    try:
        wrapped = parse_erc6492_signature(signature)
    except ValueError:
        return invalid(ERR_INVALID_SIGNATURE)
    factory = "0x" + wrapped.factory.hex()
    if not has_deployment_info(wrapped) or factory not in factories:
        return invalid(ERR_FACTORY_NOT_ALLOWED)
    call = (authorization.asset, transfer_by_wallet(authorization, wrapped.inner_signature))
    return Prepared(authorization, by_key=False, calls=((factory, wrapped.factory_calldata), call))


def window_problem(authorization: Authorization, now: float) -> Invalid | None:
    """Why the authorization is not valid now (unix seconds), by our own clock."""
    if authorization.valid_before < now + EXPIRY_MARGIN_SECONDS:
        return invalid(ERR_VALID_BEFORE_EXPIRED)
    return invalid(ERR_VALID_AFTER_FUTURE) if authorization.valid_after > now else None


def invalid(reason: str) -> Invalid:
    """An x402 error code with its sentence."""
    return Invalid(reason, message_for(reason))


class Simulator:
    """Asks a node whether transfers would be executed, each for itself.

    Args:
        sender: the operator's address, which the calls come from.
        clock: unix seconds; tells a payment that is not valid yet from a chain that is behind.
    """

    def __init__(self, node: Node, sender: str, clock: Callable[[], float] = time.time) -> None:
        self._node = node
        self._sender = sender
        self._clock = clock

    def now(self) -> float:
        """Unix seconds by our own clock."""
        return self._clock()

    async def check(self, payments: Sequence[Prepared]) -> list[Finding]:
        """What would become of each transfer, alone, on top of the latest block: one request, two when some fail.

        Raises:
            ChainError: the node could not be asked.
        """
        answers = await self._node.batch([self.call(payment) for payment in payments])
        said = [_failure(payment, answer) for payment, answer in zip(payments, answers, strict=True)]
        failed = [(payment, text) for payment, text in zip(payments, said, strict=True) if isinstance(text, str)]
        reasons = iter(await self._explain(failed) if failed else [])
        return [next(reasons) if isinstance(one, str) else one for one in said]

    def call(self, payment: Prepared) -> Call:
        """The question that simulates one transfer."""
        target, data = payment.calls[-1] if len(payment.calls) == 1 else (MULTICALL3, aggregate(payment.calls))
        return ("eth_call", [self.transaction(target, data, payment.gas), "latest"])

    def transaction(self, target: str, data: bytes, gas: int) -> dict[str, str]:
        """A call as nodes take it; the fee is left out, so that an operator without money can ask too."""
        return {"from": self._sender, "to": target, "data": "0x" + data.hex(), "gas": hex(gas)}

    async def _explain(self, failed: Sequence[tuple[Prepared, str]]) -> list[Refused]:
        calls: list[Call] = [("eth_getBlockByNumber", ["latest", False])]
        for payment, _ in failed:
            paid = payment.authorization
            calls += [
                ("eth_call", [{"to": paid.asset, "data": "0x" + authorization_state(paid).hex()}, "latest"]),
                ("eth_call", [{"to": paid.asset, "data": "0x" + balance_of(paid.payer).hex()}, "latest"]),
                ("eth_getCode", [paid.payer, "latest"]),
            ]
        block, *answers = await self._node.batch(calls)
        chain_time = quantity(json_object(block, "latest block").get("timestamp"))
        found = []
        for index, (payment, text) in enumerate(failed):
            state, balance, code = (hex_data(answer) for answer in answers[3 * index : 3 * index + 3])
            reason = _reason(payment, one_word(state) != 0, one_word(balance), code != b"", chain_time, text)
            known = reason != ERR_TRANSACTION_SIMULATION_FAILED or not text
            message = message_for(reason) if known else f"{message_for(reason)}: {text}"
            found.append(Refused(reason, message, chain_time))
        return found


def _reason(payment: Prepared, spent: bool, balance: int, has_code: bool, chain_time: int, text: str) -> str:
    paid = payment.authorization
    if spent:
        return ERR_NONCE_ALREADY_USED
    if chain_time >= paid.valid_before:
        return ERR_VALID_BEFORE_EXPIRED
    if chain_time <= paid.valid_after:
        return ERR_VALID_AFTER_FUTURE
    runs_wallet = has_code or len(payment.calls) > 1
    if not payment.by_key and not runs_wallet:
        long = len(paid.signature) // 2 - 1 > SIGNATURE_BYTES
        return ERR_UNDEPLOYED_SMART_WALLET if long else ERR_INVALID_SIGNATURE
    if balance < paid.amount:
        return ERR_INSUFFICIENT_BALANCE
    refused_by_wallet = runs_wallet and (not text or "signature" in text.lower())
    return ERR_INVALID_SIGNATURE if refused_by_wallet else ERR_TRANSACTION_SIMULATION_FAILED


def _failure(payment: Prepared, answer: Any) -> str | ChainError | None:
    """What the token says against the transfer, empty when it gives no reason; None when it is for it.

    A node that fails to simulate one transfer says nothing about the others: that failure is an answer too.
    """
    if isinstance(answer, NodeRefusedError):
        return (revert_text(answer.data) or answer.refusal) if answer.reverted else answer
    try:
        data = hex_data(answer)
        if len(payment.calls) == 1:
            return None
        success, said = results(data, len(payment.calls))[-1]
    except ChainError as error:
        return error
    return None if success else revert_text(said)


def revert_text(data: bytes) -> str:
    """The text that a contract reverted with, at most 200 printable characters; empty when it gave none."""
    if data[:4] != _ERROR_STRING or len(data) < 68:
        return ""
    length = int.from_bytes(data[36:68])
    return readable(data[68 : 68 + min(length, 200)].decode("utf-8", "replace"))


def _signer(authorization: Authorization, signature: bytes) -> str | None:
    extra = authorization.requirements.extra
    try:
        return authorization_signer(
            network=authorization.network,
            asset=authorization.asset,
            token_name=extra["name"],
            token_version=extra["version"],
            message=message_of(authorization),
            signature=signature,
        )
    except EvidenceError:
        return None


def _terms_problem(authorization: Authorization, assets: Sequence[Asset]) -> str | None:
    terms = authorization.requirements
    if authorization.scheme != SCHEME or terms.scheme != SCHEME:
        return ERR_UNSUPPORTED_SCHEME
    networks = {asset.network for asset in assets}
    if authorization.network not in networks or terms.network.lower() != authorization.network:
        return ERR_NETWORK_MISMATCH
    asset = next((one for one in assets if one.address.lower() == authorization.asset), None)
    if asset is None or terms.asset.lower() != authorization.asset:
        return INVALID_REQUIREMENTS
    if terms.pay_to.lower() != authorization.pay_to:
        return ERR_RECIPIENT_MISMATCH
    if terms.amount != str(authorization.amount):
        return ERR_AUTHORIZATION_VALUE_MISMATCH
    if terms.extra.get("name") != asset.name:
        return ERR_TOKEN_NAME_MISMATCH
    return ERR_TOKEN_VERSION_MISMATCH if terms.extra.get("version") != asset.version else None
