"""The error tree of the verifying side.

    TollsealError
     ├── MalformedError            bytes or JSON that do not have the published shape
     ├── EvidenceError             evidence that is not genuine, or not what it claims
     ├── EnclaveError              the attester cannot produce keys or evidence
     ├── ManifestError             a build manifest that cannot be computed, or differs from the pinned one
     ├── ServiceError              the service answered something a buyer must not accept
     ├── SpendingError             the buyer's own limits, or the record of what was spent, forbid a payment
     └── RegistryError             the chain or a registry contract (attestation.registry.errors)

Every error says what was wrong in words for a person; `diagnostics` adds what to do about it.
"""


class TollsealError(Exception):
    """The root of every error that this distribution raises on purpose."""

    hint: str | None = None
    """What the reader can do about it, or None."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint

    def diagnostics(self) -> str:
        """The message and the hint, as lines for a terminal."""
        return f"{self}\n{self.hint}" if self.hint else str(self)


class MalformedError(TollsealError):
    """Input that does not have its published shape; `where` names the field."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where


class EvidenceError(TollsealError):
    """Evidence that is not genuine, or does not say what it must say."""


class EnclaveError(TollsealError):
    """The enclave cannot produce keys or evidence. There is no fallback: the start has failed."""


class ManifestError(TollsealError):
    """The build manifest cannot be computed, or differs from the pinned one."""


class SpendingError(TollsealError):
    """The buyer's own limits forbid a payment, or what was spent cannot be read or written."""


class ServiceError(TollsealError):
    """The service answered something that a buyer must not accept, or nothing at all."""

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
