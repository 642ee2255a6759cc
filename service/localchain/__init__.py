"""A local chain for development and tests: anvil, the contracts of `contracts/`, and funded accounts.

`toolchain` fetches the programs, `anvil` runs the node, `deploy` puts the contracts on it. Nothing here is used against
a public chain.
"""
