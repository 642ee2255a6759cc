"""The error tree of the chain side.

RegistryError
 ├── RpcError                 the node could not be asked: nothing is known (a check is INCOMPLETE, not FAILED)
 │    ├── RpcRefusedError     it answered, with an error
 │    ├── RpcTimeoutError     it did not answer in time
 │    └── RateLimitedError    it wants to be asked less often
 ├── WrongChainError          the node serves another chain
 ├── NoContractError          nothing is deployed at an address
 ├── UnknownAgentError        no agent has this id
 ├── RevertedError            a contract refused; `reason` is its own word, the message a sentence
 ├── NotOurAgentError         the agent belongs to somebody else
 ├── AgentChoiceError         no agent, or several, where exactly one is needed
 ├── SignerError              the account's key, keystore or signing program did not sign
 ├── NoGasError               the account cannot pay for a transaction
 ├── FeeTooHighError          a transaction would cost more than the caps allow
 ├── NonceTakenError          another transaction of the same account was mined in place of this one
 ├── UnconfirmedError         sent, but not mined in time: it may still be
 └── ReadBackError            mined, but the chain does not show what was written
"""

from typing import Final

from attestation.errors import TollsealError

_SENTENCES: Final = {
    "Not authorized": "this account is neither the agent's owner nor an operator of it",
    "reserved key": "the metadata key agentWallet can only be changed with setAgentWallet",
    "bad wallet": "the zero address cannot be an agent wallet",
    "expired": "the deadline of the wallet's consent has passed",
    "deadline too far": "the deadline of the wallet's consent is more than five minutes away",
    "invalid wallet sig": "the new wallet did not sign this change",
    "Self-feedback not allowed": "an agent's owner and operators cannot rate it",
    "clientAddresses required": "a summary needs the list of clients to count",
    "too many decimals": "a rating has at most 18 decimals",
    "value too large": "a rating is beyond 10**38",
    "index must be > 0": "feedback is numbered from 1",
    "index out of bounds": "there is no feedback with this number",
    "Already revoked": "this feedback was revoked before",
    "Empty URI": "a response needs a URI",
    "bad validator": "the zero address cannot be a validator",
    "exists": "this request hash was taken before",
    "unknown": "no validation request has this hash",
    "not validator": "only the named validator may answer this request",
    "resp>100": "a validation response is at most 100",
}
"""What the contracts' revert strings mean (ERC-8004 contracts v2.0.0)."""

_CUSTOM: Final = {
    "0x7e273289": ("ERC721NonexistentToken", "no agent has this id"),
    "0x177e802f": ("ERC721InsufficientApproval", "this account may not transfer the agent"),
    "0x64283d7b": ("ERC721IncorrectOwner", "the agent belongs to another account"),
    "0x64a0ae92": ("ERC721InvalidReceiver", "this account cannot receive an agent"),
    "0xa9fbf51f": ("ERC721InvalidApprover", "this account may not approve an operator"),
    "0xf645eedf": ("ECDSAInvalidSignature", "the signature is not one"),
    "0xfce698f7": ("ECDSAInvalidSignatureLength", "the signature does not have 65 bytes"),
    "0xd78bce0c": ("ECDSAInvalidSignatureS", "the signature is not in its low-s form"),
}
"""Custom errors of the ERC-721 and ECDSA code under the contracts, by selector."""


class RegistryError(TollsealError):
    """The chain or a registry contract."""


class RpcError(RegistryError):
    """The node could not be reached, timed out, or answered with nonsense. Nothing is known about the question."""


class RpcRefusedError(RpcError):
    """The node answered the question with an error of its own."""


class RpcTimeoutError(RpcError):
    """The node did not answer in time."""


class RateLimitedError(RpcError):
    """The node refuses because it was asked too often. `seconds` is when it wants to be asked again, if it said so."""

    def __init__(self, host: str, what: str, seconds: int | None) -> None:
        when = "later" if seconds is None else f"in {seconds} s"
        super().__init__(
            f"asking {host} for {what}: it limits how often it may be asked; ask again {when}",
            hint="A node with an access key of your own usually allows more.",
        )
        self.seconds = seconds


class WrongChainError(RegistryError):
    """The node serves another chain than the one that was named."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(f"the node serves chain {actual}, not chain {expected}")
        self.expected = expected
        self.actual = actual


class NoContractError(RegistryError):
    """There is no contract at an address of this chain."""

    def __init__(self, address: str, chain_id: int) -> None:
        super().__init__(f"there is no contract at {address} on chain {chain_id}")
        self.address = address


class UnknownAgentError(RegistryError):
    """No agent has this id in this registry."""

    def __init__(self, agent_id: int) -> None:
        super().__init__(f"the registry has no agent {agent_id}")
        self.agent_id = agent_id


class RevertedError(RegistryError):
    """A contract refused the call. `reason` is its revert string, the name of its error, or raw hex."""

    def __init__(self, what: str, reason: str, data: str | None = None) -> None:
        name, sentence = _CUSTOM.get((data or "")[:10], (reason, _SENTENCES.get(reason)))
        super().__init__(f"{what} was refused: {sentence} ({name})" if sentence else f"{what} was refused: {name}")
        self.reason = name


class NotOurAgentError(RegistryError):
    """The agent belongs to another account, or its owner has not made our account an operator."""


class AgentChoiceError(RegistryError):
    """There is no agent where one is needed, or there are several and none is named."""


class SignerError(RegistryError):
    """The account's key, keystore or signing program did not sign what it was asked to."""


class NoGasError(RegistryError):
    """The account cannot pay for a transaction; it was not sent. Amounts are wei."""

    def __init__(self, what: str, account: str, balance: int, needed: int, chain_id: int) -> None:
        super().__init__(
            f"{what} may cost up to {needed} wei for gas, {account} has {balance} (insufficient funds)",
            hint=f"Send {needed - balance} wei or more to {account} on chain {chain_id}.",
        )
        self.account = account


class FeeTooHighError(RegistryError):
    """A transaction would cost more than the caps allow; it was not sent."""


class NonceTakenError(RegistryError):
    """Another transaction of the same account has this account nonce, so this one can never be mined."""

    def __init__(self, what: str, account: str, nonce: int) -> None:
        super().__init__(f"{what}: another transaction of {account} took its place (account nonce {nonce})")
        self.nonce = nonce


class UnconfirmedError(RegistryError):
    """A transaction was sent and not mined in time. It may still be mined."""

    def __init__(self, transaction: str, seconds: float) -> None:
        super().__init__(f"transaction {transaction} was not mined within {seconds:.0f} s; it may still be")
        self.transaction = transaction


class ReadBackError(RegistryError):
    """A transaction was mined, but the chain does not show what it should have written."""
