"""Which payment networks carry real money.

Networks are CAIP-2 identifiers (`eip155:<chain id>`). The table lists chains whose tokens have no value; everything
else, unknown and malformed names included, counts as a mainnet. So a new chain must be added here before a simulated
enclave may take payments on it, and a typing error can never turn a mainnet into a testnet.
"""

from typing import Final

BASE: Final = "eip155:8453"
BASE_SEPOLIA: Final = "eip155:84532"

KNOWN_TESTNETS: Final = frozenset(
    {
        "eip155:1337",  # local development chains
        "eip155:31337",
        "eip155:80002",  # Polygon Amoy
        BASE_SEPOLIA,  # also the id of our own local chain
        "eip155:421614",  # Arbitrum Sepolia
        "eip155:560048",  # Ethereum Hoodi
        "eip155:11155111",  # Ethereum Sepolia
        "eip155:11155420",  # OP Sepolia
    }
)


def is_mainnet_network(network: str) -> bool:
    """Whether payments on `network` (CAIP-2) must be taken for real money: true unless it is a known testnet."""
    return network not in KNOWN_TESTNETS
