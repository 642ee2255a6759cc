"""Every setting of the service, built once in `main` and passed in. Nothing else reads the environment."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from attestation.registry.canonical import registries
from attestation.registry.records import SECOND_SLOT
from service.payment.networks import BASE_SEPOLIA
from service.pricing import Asset, Payee, PriceRule, prices_for

Address = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$")]
Caip2 = Annotated[str, StringConstraints(pattern=r"^eip155:[1-9][0-9]{0,17}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Origin = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+/?$")]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]


class Settings(BaseSettings):
    """Read from ``TOLLSEAL_*`` environment variables. docs/operations.md lists them.

    Raises:
        pydantic.ValidationError: a value is missing or out of its range; the field is named.
    """

    model_config = SettingsConfigDict(env_prefix="TOLLSEAL_", extra="ignore", frozen=True, hide_input_in_errors=True)

    # Where it listens, and what the world calls it
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8402
    public_url: Origin | None = None
    """Origin that buyers use, such as https://summaries.example. Offers then always name it; without it they name the
    host that the buyer asked for, which is right only where nothing stands between."""

    tls: Literal["none", "enclave"] = "none"
    """`enclave` serves HTTPS with a key of the enclave, which the keyset lists. `none` leaves TLS to a proxy, which can
    then read every document; buyers are told so."""

    # Who answers
    backend: str = "embedded:qwen2.5-coder-1.5b"
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    context_size: Annotated[int, Field(ge=512)] | None = None
    inference_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 600
    slots: Annotated[int, Field(ge=1, le=1024)] = 1
    queue: Annotated[int, Field(ge=0, le=10_000)] = 8
    cache_dir: Path = Path.home() / ".cache" / "tollseal"
    ollama_models_dir: Path | None = None
    backend_api_key: SecretStr | None = None
    max_document_bytes: Annotated[int, Field(ge=1_000, le=8_000_000)] = 1_000_000

    # What it is paid, and how
    network: Caip2 = BASE_SEPOLIA
    asset: Address = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
    asset_name: str = "USDC"
    asset_version: str = "2"
    asset_decimals: Annotated[int, Field(ge=0, le=36)] = 6
    pay_to: Address
    price: str = "0.01"
    """US dollars per call, as a decimal."""
    payment_timeout_seconds: Annotated[int, Field(ge=30, le=86_400)] = 900
    facilitator: Literal["local"] | HttpUrl = "local"
    rpc_url: HttpUrl
    operator_key: SecretStr
    """Pays for gas: settlements of the local facilitator, and registry updates. Owns nothing else."""

    # Who it is
    enclave: str
    """URI of the enclave, such as ``simulated:``. There is no default: nobody runs a simulated one by accident."""
    registry_network: Caip2 = BASE_SEPOLIA
    registry_rpc_url: HttpUrl | None = None
    """Node of the registry's chain; `rpc_url` when absent."""
    identity_registry: Address | None = None
    """The chain's canonical ERC-8004 registry when absent."""
    reputation_registry: Address | None = None
    validation_registry: Address | None = None
    """Of the same chain; the canonical ones when absent. The page about the agent reads them."""
    ask_validators: tuple[Address, ...] = ()
    """Asked to check every new key of this service; each request costs the operator gas."""
    trusted_validators: tuple[Address, ...] = ()
    """Whose validations the page about the agent counts."""
    registry_from_block: Annotated[int, Field(ge=0)] = 0
    """The first block whose events matter, no later than the agent's registration: some nodes serve few at a time."""
    registry_confirmations: Annotated[int, Field(ge=1, le=100)] = 1
    """Blocks from a transaction's own on that must be there before it counts."""
    agent_owner: Address
    agent_id: Annotated[int, Field(ge=0)] | None = None
    mint_agent: bool = False
    """Register a new agent when the owner has none."""
    agent_name: str = "Tollseal summaries"
    agent_description: str = "Summaries of documents, paid by the call with x402. Every answer carries a receipt."
    replica: Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,28}[a-z0-9])?$")] = "main"
    keys_on_stop: Literal["clear", "expire", "keep"] = "clear"
    """What an orderly stop does with this replica's key records. `expire` lets them end at that moment, which makes the
    next start's record cheaper than `clear` does."""
    keyset_lifetime_seconds: Annotated[int, Field(ge=600, le=31 * 86_400)] = 7 * 86_400

    # Which build it is
    pinned_manifest: Digest | None = None
    """Start only as this build."""
    source_url: HttpUrl | None = None
    source_commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = None
    image_digest: Digest | None = None

    # What it remembers
    ledger_url: str = "sqlite:///tollseal-ledger.db"

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.replica.endswith(SECOND_SLOT):
            raise ValueError(f"replica must not end in {SECOND_SLOT}: such names stand for a replica's second slot")
        # Building them checks them: a price that the asset cannot express is refused here, not at the first sale.
        _ = self.registry_address
        prices_for(self.price_rule, [self.payee], input_tokens=0, max_timeout_seconds=self.payment_timeout_seconds)
        return self

    @property
    def registry_address(self) -> str:
        """The identity registry.

        Raises:
            ValueError: none is set, and the chain has no canonical one.
        """
        if self.identity_registry is not None:
            return self.identity_registry
        canonical = registries(self.registry_chain_id)
        if canonical is None:
            raise ValueError(f"identity_registry must be set: {self.registry_network} has no canonical one")
        return canonical.identity

    @property
    def beside_registry(self) -> tuple[str | None, str | None]:
        """The reputation and the validation registry; None where none is set and the chain has no canonical one."""
        canonical = registries(self.registry_chain_id)
        if canonical is None or canonical.identity != self.registry_address.lower():
            return self.reputation_registry, self.validation_registry
        return self.reputation_registry or canonical.reputation, self.validation_registry or canonical.validation

    @property
    def origin(self) -> str:
        """Where the service is found, without a slash at the end."""
        scheme = "https" if self.tls == "enclave" else "http"
        return (self.public_url or f"{scheme}://{self.host}:{self.port}").rstrip("/")

    @property
    def payee(self) -> Payee:
        """The token that is accepted, and who receives it."""
        asset = Asset(
            network=self.network,
            address=self.asset,
            decimals=self.asset_decimals,
            name=self.asset_name,
            version=self.asset_version,
            symbol=self.asset_name,
        )
        return Payee(asset=asset, pay_to=self.pay_to)

    @property
    def price_rule(self) -> PriceRule:
        """How a call is priced."""
        return PriceRule(per_call=self.price)

    @property
    def registry_chain_id(self) -> int:
        return int(self.registry_network.removeprefix("eip155:"))
