"""What a command would send: the same steps as `IdentityWriter`, estimated instead of sent."""

from collections.abc import Mapping
from typing import Any

from hexbytes import HexBytes
from web3.types import TxReceipt

from attestation.registry.errors import RegistryError
from attestation.registry.sender import Planned
from attestation.registry.writer import IdentityWriter, Registered


class PlanEndsError(RegistryError):
    """The steps that follow depend on what this one would make, so they cannot be estimated."""


class PlanningWriter(IdentityWriter):
    """Writes nothing: each method estimates its transaction, adds it to `planned`, and reads nothing back."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.planned: list[Planned] = []

    async def register(
        self, agent_uri: str, metadata: Mapping[str, bytes] | None = None, *, nonce: int | None = None
    ) -> Registered:
        """Raises PlanEndsError: which agent it would be is not known."""
        await super().register(agent_uri, metadata, nonce=nonce)
        raise PlanEndsError("what follows a registration depends on the agent that it makes")

    async def _send(self, function: Any, what: str, *, nonce: int | None = None) -> TxReceipt:
        del nonce
        self.planned.append(await self.sender.plan(function, what))
        nothing = HexBytes(bytes(32))
        return {"transactionHash": nothing, "gasUsed": 0, "blockNumber": 0, "logs": []}  # type: ignore[typeddict-item]

    def _minted(self, receipt: TxReceipt) -> int:
        del receipt
        raise PlanEndsError("what follows a registration depends on the agent that it makes")

    async def _seen(self, *_: object) -> None:
        """Nothing was written that could be seen."""
