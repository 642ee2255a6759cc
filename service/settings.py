"""Every setting of the service, built once in `main` and passed in. Nothing else reads the environment."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, StringConstraints, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from attestation.pricing import PriceRule
from attestation.registry.canonical import registries
from attestation.registry.records import SECOND_SLOT
from service.payment.fees import DEFAULT_MAX_FEE
from service.payment.networks import BASE_SEPOLIA
from service.payment.options import (
    LOCAL,
    Address,
    Amount,
    Caip2,
    Endpoint,
    Facilitators,
    HttpUrl,
    PaymentOption,
    PriceOption,
    check_authorizations,
    json_text,
)
from service.payment.records import Retention
from service.pricing import Payee, check_rule

Json = BeforeValidator(json_text)
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Origin = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+/?$")]


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
    first_token_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    next_token_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Of streamed answers, on top of the limit for the whole."""
    chat: bool = True
    """Sell chat completions too, not only summaries."""
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
    price: Amount = "0.01"
    """US dollars per call, as a decimal."""
    price_rules: Annotated[dict[Endpoint, PriceOption], NoDecode, Json] = {}
    """Endpoints that are priced otherwise, by their path."""
    payment_timeout_seconds: Annotated[int, Field(ge=30, le=86_400)] = 900
    settle: Literal["before", "after"] = "after"
    """Whether money moves before or after the answer is made."""
    settlement_depth: Annotated[int, Field(ge=1, le=128)] = 1
    """Blocks that a transfer must be in or under before it counts."""
    facilitator: Annotated[Facilitators, NoDecode] = (LOCAL,)
    facilitator_auth: Annotated[dict[HttpUrl, SecretStr], NoDecode, Json] = {}
    """Value of the Authorization header for a facilitator, by its URL."""
    facilitator_timeout_seconds: Annotated[int, Field(ge=1, le=600)] = 60
    """For one request to a facilitator; a settlement is answered when it is in a block."""
    rpc_url: HttpUrl
    payments: Annotated[tuple[PaymentOption, ...], NoDecode, Json, Field(max_length=16)] = ()
    """Further ways to pay, beside the one that the settings above describe."""
    operator_key: SecretStr
    """Pays for gas: settlements of the local facilitator, and registry updates. Owns nothing else."""

    # How it settles, when the facilitator is our own
    max_fee_wei: Annotated[int, Field(ge=1, le=10**15)] = DEFAULT_MAX_FEE
    """Per unit of gas. While gas costs more, nothing is settled and nothing is sold."""
    max_head_age_seconds: Annotated[int, Field(ge=10)] | None = None
    """How old the payment chain's latest block may be before nothing is sold; None where blocks are made on demand."""
    wallet_factories: tuple[Address, ...] = ()
    """Contracts that may be called to deploy a payer's wallet before its transfer (ERC-6492)."""
    serve_facilitator: bool = False
    """Let others verify and settle payments here, at our expense for gas."""

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
    ledger_url: Annotated[str, Field(repr=False)] = "sqlite:///tollseal-ledger.db"
    """`sqlite:///FILE`, or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE` for several replicas."""
    reconcile_seconds: Annotated[int, Field(ge=5, le=86_400)] = 60
    """How often payments are looked for that a stopped process, a facilitator or the chain has left unfinished."""
    payment_retention_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """How long finished payments are kept, with their answers. Unfinished ones stay until they are finished."""
    receipt_retention_days: Annotated[int, Field(ge=1, le=3650)] = 30
    max_receipts: Annotated[int, Field(ge=1)] = 100_000
    max_answer_megabytes: Annotated[int, Field(ge=1)] = 1_000
    """All stored answers together. The oldest settled ones are dropped first, and made again for who asks again."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.replica.endswith(SECOND_SLOT):
            raise ValueError(f"replica must not end in {SECOND_SLOT}: such names stand for a replica's second slot")
        # Building them checks them: a price that an asset cannot express is refused here, not at the first sale.
        _ = self.registry_address
        for option in (PriceOption(per_call=self.price), *self.price_rules.values()):
            check_rule(option.rule, self.payees)
        self._check_options()
        return self

    def _check_options(self) -> None:
        networks: dict[str, PaymentOption] = {}
        seen: set[tuple[str, str]] = set()
        for option in self.payment_options:
            key = (option.network, option.asset.lower())
            if key in seen:
                raise ValueError(f"payments: {option.asset} on {option.network} is named twice")
            seen.add(key)
            first = networks.setdefault(option.network, option)
            if (first.rpc_url, first.facilitator) != (option.rpc_url, option.facilitator):
                raise ValueError(f"payments: all tokens on {option.network} need the same rpc_url and facilitator")
        used = {url for option in self.payment_options for url in option.facilitator}
        check_authorizations(self.facilitator_auth, used)

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

    @cached_property
    def payment_options(self) -> tuple[PaymentOption, ...]:
        """Every way to pay, in the order in which they are offered."""
        first = PaymentOption(
            network=self.network,
            asset=self.asset,
            asset_name=self.asset_name,
            asset_version=self.asset_version,
            asset_decimals=self.asset_decimals,
            pay_to=self.pay_to,
            rpc_url=self.rpc_url,
            facilitator=self.facilitator,
        )
        return (first, *self.payments)

    @cached_property
    def payees(self) -> tuple[Payee, ...]:
        """The tokens that are accepted, and who receives them, in the same order."""
        return tuple(option.payee for option in self.payment_options)

    def price_rule(self, endpoint: str | None = None) -> PriceRule:
        """How a call of an endpoint is priced; of all that have no rule of their own when None."""
        return self._rules.get(endpoint or "", self._rules[""])

    @cached_property
    def _rules(self) -> dict[str, PriceRule]:
        """Endpoint -> rule; the one of all others is found under the empty name."""
        own = {str(endpoint): option.rule for endpoint, option in self.price_rules.items()}
        return {"": PriceOption(per_call=self.price).rule, **own}

    @property
    def retention(self) -> Retention:
        """What the ledger keeps, at most."""
        return Retention(
            max_receipts=self.max_receipts,
            receipt_max_age_seconds=self.receipt_retention_days * 86_400,
            payment_max_age_seconds=self.payment_retention_days * 86_400,
            max_answer_bytes=self.max_answer_megabytes * 1_000_000,
        )

    @property
    def registry_chain_id(self) -> int:
        return int(self.registry_network.removeprefix("eip155:"))
