"""Fixtures around a real local chain. One node for a test session; fresh contracts and accounts for every test."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from attestation.onchain import AgentReference
from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, LocalChain, deploy
from service.localchain.toolchain import ensure_anvil

CACHE_DIR = Path.home() / ".cache" / "tollseal"
FAR_FUTURE = 1 << 40
"""Seconds; after any block these tests mine."""


@pytest.fixture(scope="session")
def anvil() -> Iterator[Anvil]:
    """A running node with instant blocks."""
    with Anvil(ensure_anvil(CACHE_DIR)) as node:
        yield node


@pytest.fixture
def chain(anvil: Anvil) -> LocalChain:
    """Fresh contracts and accounts on the session's node. The agent registry is empty: the first agent is 0."""
    return deploy(anvil.rpc)


@pytest.fixture
def stranger(anvil: Anvil) -> LocalAccount:
    """An account with gas money that nobody knows."""
    account: LocalAccount = Account.create()
    Deployer(anvil.rpc, account).fund(account.address)
    return account


def agent_of(chain: LocalChain, agent_id: int = 0) -> AgentReference:
    """An agent of the chain's identity registry."""
    return AgentReference(chain.chain_id, chain.identity_registry.lower(), agent_id)


@dataclass(frozen=True)
class Authorization:
    """An EIP-3009 authorization and its signature."""

    kind: str
    message: dict[str, Any]
    signature: bytes

    @property
    def nonce(self) -> str:
        return f"0x{self.message['nonce'].hex()}"

    def arguments(self) -> tuple[Any, ...]:
        """The call's arguments for the bytes-signature overload."""
        return (*self.message.values(), self.signature)

    def vrs_arguments(self) -> tuple[Any, ...]:
        """The call's arguments for the v, r, s overload."""
        return (*self.message.values(), self.signature[64], self.signature[:32], self.signature[32:64])


def authorize(
    chain: LocalChain,
    key: str,
    *,
    payer: str,
    pay_to: str,
    amount: int,
    valid_after: int = 0,
    valid_before: int = FAR_FUTURE,
    nonce: bytes | None = None,
    kind: str = "TransferWithAuthorization",
    version: str = "2",
) -> Authorization:
    """Signs an EIP-3009 authorization for the chain's token with `key`."""
    types = {
        kind: [
            {"name": "from", "type": "address"},
            {"name": "to", "type": "address"},
            {"name": "value", "type": "uint256"},
            {"name": "validAfter", "type": "uint256"},
            {"name": "validBefore", "type": "uint256"},
            {"name": "nonce", "type": "bytes32"},
        ]
    }
    message = {
        "from": to_checksum_address(payer),
        "to": to_checksum_address(pay_to),
        "value": amount,
        "validAfter": valid_after,
        "validBefore": valid_before,
        "nonce": secrets.token_bytes(32) if nonce is None else nonce,
    }
    domain = {"name": "USDC", "version": version, "chainId": chain.chain_id, "verifyingContract": chain.token}
    signed = Account.sign_typed_data(key, domain, types, message)
    return Authorization(kind, message, bytes(signed.signature))
