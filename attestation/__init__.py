"""Tollseal attestation: proving what answered, and checking it.

Everything a client, an auditor or a validator needs, and nothing of the service. The layout is the architecture:
pure values and checks (`digest`, `keyset`, `receipt`, `payment_proof`, `http_signature`, `manifest`, `evidence`,
`policy`, `verifier`), the attester side (`enclave`), the chain (`registry`), and what talks to the network (`client`).
"""
