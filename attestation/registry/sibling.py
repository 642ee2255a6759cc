"""A registry beside the identity registry: reputation or validation, about the same agents."""

from typing import ClassVar, Final, Literal

from web3.contract import AsyncContract

from attestation.encoding import address as parse_address
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import NoContractError, RegistryError


class SiblingReader:
    """The registry of kind `name` at `address`, on the chain and beside the identity registry of `identity`.

    Every method but `deployed` raises `NoContractError` where there is no such registry, and what `IdentityReader`
    raises.
    """

    name: ClassVar[Literal["reputation", "validation"]]

    def __init__(self, identity: IdentityReader, address: str) -> None:
        self.identity: Final = identity
        self.chain: Final = identity.chain
        self.address: Final = parse_address(address, f"{self.name} registry")
        self._checked = False

    async def deployed(self) -> bool:
        """Whether this chain has the registry. That it has none is normal."""
        try:
            await self.contract()
        except NoContractError as error:
            if error.address == self.address:
                return False
            raise
        return True

    async def contract(self) -> AsyncContract:
        """The registry with its ABI, checked.

        Raises:
            RegistryError: it belongs to another identity registry, so its agent ids mean other agents.
        """
        contract = await self.chain.contract(self.name, self.address)
        if not self._checked:
            await self._check(contract)
            self._checked = True
        return contract

    async def _check(self, contract: AsyncContract) -> None:
        await self.identity.check()
        asking = f"the {self.name} registry's agents"
        named = str(await self.chain.call(contract.functions.getIdentityRegistry(), asking))
        if named.lower() != self.identity.address:
            raise RegistryError(
                f"the {self.name} registry at {contract.address.lower()} is about the agents of {named.lower()}, "
                f"not of {self.identity.address}"
            )
