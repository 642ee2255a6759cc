"""Which payment networks carry real money.

Networks are CAIP-2 identifiers (`eip155:<chain id>`). Everything that is not known to be without value counts as a
mainnet, unknown and malformed names included: a typing error can never turn a mainnet into a testnet.
"""

import re
from typing import Final

from attestation.registry.canonical import is_valueless

BASE: Final = "eip155:8453"
BASE_SEPOLIA: Final = "eip155:84532"

_EVM: Final = re.compile(r"eip155:([1-9][0-9]{0,17})")


def is_mainnet_network(network: str) -> bool:
    """Whether payments on `network` (CAIP-2) must be taken for real money: true unless it is a known testnet."""
    match = _EVM.fullmatch(network)
    return match is None or not is_valueless(int(match[1]))
