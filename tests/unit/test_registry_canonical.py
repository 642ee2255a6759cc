"""The canonical registries are found by chain, and an unknown chain is never taken for a harmless one."""

import pytest
from eth_utils.address import to_checksum_address

from attestation.registry import canonical

PUBLISHED = {
    8453: (
        "0x8004A169FB4a3325136EB29fA0ceB6D2e539a432",
        "0x8004BAa17C55a88189AE136b182e5fdA19dE9b63",
        "0x8004Cc8439f36fd5F9F049D9fF86523Df6dAAB58",
    ),
    84532: (
        "0x8004A818BFB912233c491871b3d84c89A494BD9e",
        "0x8004B663056A597Dffe9eCcC1965A193B7388713",
        "0x8004Cb1BF31DAf7788923b405b754f57acEB4272",
    ),
}


@pytest.mark.parametrize(
    ("chain_id", "like"), [(1, 8453), (8453, 8453), (42161, 8453), (84532, 84532), (11155111, 84532)]
)
def test_the_addresses_are_the_published_ones(chain_id: int, like: int) -> None:
    found = canonical.registries(chain_id)
    assert found is not None
    # The checksummed spelling proves that no character was lost on the way.
    assert tuple(map(to_checksum_address, (found.identity, found.reputation, found.validation))) == PUBLISHED[like]


def test_an_unknown_chain_has_none() -> None:
    assert canonical.registries(31337) is None
    assert canonical.registries(424242) is None


@pytest.mark.parametrize(
    ("chain_id", "valueless"),
    [(84532, True), (11155111, True), (31337, True), (1, False), (8453, False), (424242, False)],
)
def test_only_known_test_chains_are_valueless(chain_id: int, valueless: bool) -> None:
    assert canonical.is_valueless(chain_id) is valueless
