"""x402 error codes: which are a definite no, and what they mean for a person."""

from typing import Final

from x402.mechanisms.evm.constants import (
    ERR_ASSET_NOT_DEPLOYED_CONTRACT,
    ERR_AUTHORIZATION_VALUE_MISMATCH,
    ERR_EIP3009_NOT_SUPPORTED,
    ERR_FACTORY_NOT_ALLOWED,
    ERR_INSUFFICIENT_BALANCE,
    ERR_INVALID_SIGNATURE,
    ERR_NETWORK_MISMATCH,
    ERR_NONCE_ALREADY_USED,
    ERR_RECIPIENT_MISMATCH,
    ERR_TOKEN_NAME_MISMATCH,
    ERR_TOKEN_VERSION_MISMATCH,
    ERR_TRANSACTION_FAILED,
    ERR_TRANSACTION_SIMULATION_FAILED,
    ERR_UNDEPLOYED_SMART_WALLET,
    ERR_UNSUPPORTED_SCHEME,
    ERR_VALID_AFTER_FUTURE,
    ERR_VALID_BEFORE_EXPIRED,
)

INVALID_REQUIREMENTS: Final = "invalid_payment_requirements"
"""A code of the specification that the SDK has no name for."""

MESSAGES: Final = {
    ERR_ASSET_NOT_DEPLOYED_CONTRACT: "there is no token contract at the asset's address",
    ERR_AUTHORIZATION_VALUE_MISMATCH: "the authorized amount is not the price",
    ERR_EIP3009_NOT_SUPPORTED: "the token does not support EIP-3009",
    ERR_FACTORY_NOT_ALLOWED: "wallets that still have to be deployed by this factory are not accepted",
    ERR_INSUFFICIENT_BALANCE: "the payer's balance is smaller than the price",
    ERR_INVALID_SIGNATURE: "the signature is not the payer's, or is for other terms",
    ERR_NETWORK_MISMATCH: "the payment is for another network",
    ERR_NONCE_ALREADY_USED: "the authorization's nonce is already spent",
    ERR_RECIPIENT_MISMATCH: "the authorization pays another recipient",
    ERR_TOKEN_NAME_MISMATCH: "the token's EIP-712 name is not the offered one",
    ERR_TOKEN_VERSION_MISMATCH: "the token's EIP-712 version is not the offered one",
    ERR_TRANSACTION_FAILED: "the chain refused the transfer",
    ERR_TRANSACTION_SIMULATION_FAILED: "the chain would refuse the transfer",
    ERR_UNDEPLOYED_SMART_WALLET: "the payer is a wallet that is not deployed",
    ERR_UNSUPPORTED_SCHEME: "the payment scheme is not supported",
    ERR_VALID_AFTER_FUTURE: "the authorization is not valid yet",
    ERR_VALID_BEFORE_EXPIRED: "the authorization has expired or is about to",
    "insufficient_funds": "the payer's balance is smaller than the price",
    "invalid_exact_evm_payload_authorization_value": "the authorized amount is not the price",
    "invalid_exact_evm_payload_signature_address": "the signature is not the payer's",
    INVALID_REQUIREMENTS: "the terms are not ones that are settled here, such as another token",
    "invalid_network": "the payment is for a network that is not supported",
    "invalid_payload": "the payment is malformed",
    "invalid_scheme": "the payment scheme is not supported",
}
"""Codes of the x402 v2 specification (section 9) and of the SDK, with our wording."""

DEFINITE: Final = frozenset(MESSAGES) - {
    ERR_NONCE_ALREADY_USED,  # may be our own earlier settlement
    ERR_TRANSACTION_FAILED,  # the SDK says this too when a node timed out after it was given the transaction
    ERR_TRANSACTION_SIMULATION_FAILED,  # and this when the node could not be asked
}
"""Codes after which a transfer certainly was not sent. Every other code, known or not, leaves that open."""


def message_for(reason: str) -> str:
    """A sentence for a person; unknown codes are shown as they are, shortened."""
    return MESSAGES.get(reason, f"the facilitator refused the payment ({reason[:100]})")
