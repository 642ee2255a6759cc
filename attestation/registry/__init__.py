"""The chain: ERC-8004 identity, what an agent publishes there, and the payments that bought its answers.

    canonical      where the registries are on public chains
    abi            what their functions and events look like
    rpc            one checked connection to one chain
    erc8004        reading the identity registry (no key)
    writer         writing to it (an explicit signer)
    records        the bytes of `tee.manifest` and `tee.key.<replica>`
    publication    keeping an agent and its records as they should be, with as few transactions as possible
    registration   the JSON file behind an agent's URI
    payments       whether a payment really happened
    validation     who was asked to check an agent, and what they answered
    reputation     who rated an agent
    ownership      whose an agent was, and which wallet it had, at any time
    profile        all of an agent's entry at once, for a page
    readback       a mined transaction is believed when the chain shows what it did

Addresses in and out are 0x and 40 lower-case hex characters; any spelling is accepted as input. An agent id may be 0.
"""
