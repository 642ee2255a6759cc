"""What the commands of `tollseal agent` share: which registry, which agent, which account signs, what it may cost."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from attestation import encoding
from attestation.account import DEFAULT_KEY_ENV, Keys
from attestation.commands import http_url, json_option
from attestation.devstack import local_stack
from attestation.errors import MalformedError
from attestation.money import parse_amount
from attestation.onchain import AgentReference
from attestation.registry.canonical import registries
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.sender import FeeCaps
from attestation.terminal import printable

DEFAULT_NETWORK: Final = "eip155:84532"
PRICE_DECIMALS: Final = 18

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Target:
    """A registry, through a node."""

    rpc: str
    chain_id: int
    registry: str
    from_block: int = 0

    def reader(self) -> IdentityReader:
        return IdentityReader(self.rpc, self.chain_id, self.registry, from_block=self.from_block)

    def reference(self, agent_id: int) -> AgentReference:
        return AgentReference(self.chain_id, self.registry.lower(), agent_id)


@dataclass(frozen=True, slots=True)
class Change:
    """How a change is made."""

    keys: Keys
    dry_run: bool
    eth_price: str | None
    fees: FeeCaps
    confirmations: int


def parse_agent(text: str) -> AgentReference | int:
    """An agent's id, or a reference: ``agent:<chain>:<registry>:<id>``, with or without ``agent:`` and ``eip155:``.

    Raises:
        MalformedError: neither.
    """
    if text.isascii() and text.isdigit() and len(text) < 79:
        return int(text)
    reference = text.removeprefix("agent:").removeprefix("eip155:")
    return AgentReference.parse("eip155:" + reference.lower())


def _target(context: click.Context, agent: str | None) -> tuple[Target, int | None]:
    """The registry that the options and the agent's own reference name, and the agent's id."""
    given = context.params
    reference: AgentReference | int | None = None
    if agent is not None:
        try:
            reference = parse_agent(agent)
        except MalformedError as error:
            raise click.BadParameter("must be an agent's id, or agent:<chain>:<registry>:<id>") from error
    stack = local_stack() if given["rpc"] is None else None
    rpc = given["rpc"] or (stack.rpc if stack else None)
    if rpc is None:
        raise click.UsageError("name a node of the registry's chain with --rpc or TOLLSEAL_RPC")
    if isinstance(reference, AgentReference):
        target = Target(rpc, reference.chain_id, reference.registry, given["from_block"])
        return target, reference.agent_id
    chain_id = stack.chain_id if stack else chain_id_of(given["network"])
    registry = given["registry"] or (stack.identity_registry if stack else None)
    if registry is None:
        canonical = registries(chain_id)
        if canonical is None:
            raise click.UsageError(f"chain {chain_id} has no canonical registry: name one with --registry")
        registry = canonical.identity
    return Target(rpc, chain_id, registry.lower(), given["from_block"]), reference


def chain_id_of(network: str) -> int:
    """The number in ``eip155:<chain id>``. Raises click.BadParameter when it is none."""
    number = network.removeprefix("eip155:")
    if not (number.isascii() and number.isdigit() and 0 < len(number) < 19 and not number.startswith("0")):
        raise click.BadParameter("must be eip155:<chain id>", param_hint="--network")
    return int(number)


def address_callback(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """For options and arguments that are addresses: in lower case."""
    try:
        return None if value is None else encoding.address(value, "address")
    except MalformedError as error:
        raise click.BadParameter(str(error)) from error


def registry_options(command: F) -> F:
    """--rpc, --network, --registry, --from-block and --json, as `registry_of` reads them."""
    for option in reversed((
        click.option("--rpc", metavar="URL", envvar=["TOLLSEAL_RPC", "TOLLSEAL_REGISTRY_RPC_URL", "TOLLSEAL_RPC_URL"],
                     callback=http_url, help="A node of the registry's chain; a local stack's own by default."),
        click.option("--network", metavar="CAIP2", envvar="TOLLSEAL_REGISTRY_NETWORK", default=DEFAULT_NETWORK,
                     show_default=True, help="The registry's chain, unless AGENT names it."),
        click.option("--registry", metavar="ADDRESS", envvar="TOLLSEAL_IDENTITY_REGISTRY", callback=address_callback,
                     help="The identity registry; the chain's canonical one by default."),
        click.option("--from-block", type=click.IntRange(min=0), default=0, metavar="N",
                     envvar="TOLLSEAL_REGISTRY_FROM_BLOCK", help="The first block whose events matter."),
        json_option,
    )):  # fmt: skip
        command = option(command)
    return command


def signing_options(command: F, *, key_env: str = DEFAULT_KEY_ENV) -> F:
    """Which account signs, and how a change is made; as `change_of` reads them. Keys are never arguments."""
    for option in reversed((
        click.option("--key-env", metavar="NAME", default=None, show_default=key_env,
                     help="The environment variable that holds the private key."),
        click.option("--keystore", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
                     help="An encrypted key (Web3 Secret Storage, version 3)."),
        click.option("--password-fd", type=click.IntRange(min=0), metavar="N",
                     help="Read the keystore's password from this file descriptor."),
        click.option("--password-env", metavar="NAME",
                     help="The environment variable that holds it; without either, you are asked."),
        click.option("--signer", metavar="COMMAND", help="A program that signs (docs/formats.md, External signers)."),
        click.option("--dry-run", is_flag=True, help="Send nothing; show what would be sent and what it would cost."),
        click.option("--eth-price", metavar="USD", help="Also show costs in US dollars, at this price of one ether."),
        click.option("--max-fee-gwei", metavar="GWEI", default="50", show_default=True,
                     help="Send nothing that costs more for one unit of gas."),
        click.option("--max-gas", type=click.IntRange(min=21_000), default=1_000_000, show_default=True,
                     help="Send nothing that needs more gas."),
        click.option("--confirmations", type=click.IntRange(1, 100), default=1, show_default=True,
                     help="Blocks to wait for, the transaction's own included."),
    )):  # fmt: skip
        command = option(command)
    return command


def registry_of(context: click.Context) -> Target:
    """The registry, for a command without an AGENT."""
    return _target(context, None)[0]


def agent_of(context: click.Context, agent: str) -> tuple[Target, int]:
    """The registry and the agent's id, for a command with an AGENT."""
    target, agent_id = _target(context, agent)
    if agent_id is None:
        raise click.UsageError("name an agent")
    return target, agent_id


def change_of(context: click.Context) -> Change:
    """How the change is to be made.

    Raises:
        click.UsageError: the options contradict each other.
    """
    given = context.params
    named = [name for name in ("key_env", "keystore", "signer") if given[name] is not None]
    if len(named) > 1:
        raise click.UsageError("name one account: --key-env, --keystore or --signer")
    env = given["key_env"] if named else DEFAULT_KEY_ENV
    keys = Keys(env, given["keystore"], given["signer"], given["password_fd"], given["password_env"])
    try:
        max_fee = parse_amount(given["max_fee_gwei"], 9, "--max-fee-gwei")
        if given["eth_price"] is not None:
            parse_amount(given["eth_price"], PRICE_DECIMALS, "--eth-price")
    except MalformedError as error:
        raise click.UsageError(str(error)) from error
    fees = FeeCaps(max_fee_per_gas=max_fee, max_gas=given["max_gas"])
    return Change(keys, given["dry_run"], given["eth_price"], fees, given["confirmations"])


def short(text: str) -> str:
    """Text from the chain as one line that a terminal can show: no control characters, no line ends, not too long."""
    line = printable(text)
    return line if len(line) <= 200 else f"{line[:200]}… ({len(line)} characters)"
