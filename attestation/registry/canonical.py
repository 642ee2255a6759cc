"""Where the ERC-8004 registries are: the same addresses on every chain of a class."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Registries:
    """The three registries of one chain. `validation` is named by the project but not deployed on every chain."""

    identity: str
    reputation: str
    validation: str


MAINNET_REGISTRIES: Final = Registries(
    identity="0x8004a169fb4a3325136eb29fa0ceb6d2e539a432",
    reputation="0x8004baa17c55a88189ae136b182e5fda19de9b63",
    validation="0x8004cc8439f36fd5f9f049d9ff86523df6daab58",
)
TESTNET_REGISTRIES: Final = Registries(
    identity="0x8004a818bfb912233c491871b3d84c89a494bd9e",
    reputation="0x8004b663056a597dffe9eccc1965a193b7388713",
    validation="0x8004cb1bf31daf7788923b405b754f57aceb4272",
)

MAINNET_CHAIN_IDS: Final = frozenset({1, 8453, 42161})
"""Ethereum, Base, Arbitrum One."""
TESTNET_CHAIN_IDS: Final = frozenset(
    {
        80002,  # Polygon Amoy
        84532,  # Base Sepolia; also the id of our own local chain
        421614,  # Arbitrum Sepolia
        560048,  # Hoodi
        11155111,  # Sepolia
        11155420,  # OP Sepolia
    }
)
LOCAL_CHAIN_IDS: Final = frozenset({1337, 31337})
"""What development nodes call themselves by default; nothing canonical lives there."""


def registries(chain_id: int) -> Registries | None:
    """The canonical registries of a chain, or None when this table does not know the chain."""
    if chain_id in MAINNET_CHAIN_IDS:
        return MAINNET_REGISTRIES
    return TESTNET_REGISTRIES if chain_id in TESTNET_CHAIN_IDS else None


def is_valueless(chain_id: int) -> bool:
    """True only for chains known to carry nothing of value. An unknown chain counts as one that does."""
    return chain_id in TESTNET_CHAIN_IDS or chain_id in LOCAL_CHAIN_IDS
