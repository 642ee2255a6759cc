"""What commands about agents share: which agent, on which chain, in which registries."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from attestation.commands import http_url
from attestation.devstack import local_chain
from attestation.encoding import address
from attestation.errors import MalformedError
from attestation.onchain import AgentReference
from attestation.publishing import Publisher
from attestation.registry.canonical import registries

_F = TypeVar("_F", bound=Callable[..., Any])

_AGENT: Final = re.compile(r"(?:agent:|eip155:)?([1-9][0-9]*):(0x[0-9a-fA-F]{40}):([0-9]+)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an agent's registries are. None where this chain has no known one and none was named."""

    rpc: str
    chain_id: int
    identity: str
    reputation: str | None
    validation: str | None
    local: bool
    """On the chain of a local stack: its service is at a private address."""


def agent_argument(_context: click.Context, _parameter: click.Parameter, value: str) -> AgentReference:
    """An agent from ``<chain id>:<identity registry>:<agent id>``, with or without ``agent:`` or ``eip155:`` before."""
    match = _AGENT.fullmatch(value)
    if match is None:
        raise click.BadParameter("must be <chain id>:<identity registry>:<agent id>, such as 84532:0x8004...:0")
    try:
        return AgentReference.parse(f"eip155:{match[1]}:{match[2].lower()}:{match[3]}")
    except MalformedError as error:
        raise click.BadParameter(str(error)) from error


def _address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else address(value, "it")
    except MalformedError as error:
        raise click.BadParameter(str(error)) from error


def address_option(name: str, text: str, *, required: bool = False) -> Callable[[_F], _F]:
    """An option that takes an address, in any spelling of its case."""
    return click.option(name, metavar="ADDRESS", callback=_address, required=required, help=text)


identity_option = address_option("--identity-registry", "Instead of the chain's canonical identity registry.")
validation_option = address_option("--validation-registry", "Instead of the chain's canonical validation registry.")
reputation_option = address_option("--reputation-registry", "Instead of the chain's canonical reputation registry.")
chain_option = click.option(
    "--chain", "chain_id", type=click.IntRange(min=1), metavar="ID", help="The chain's id, such as 8453 for Base."
)
from_block_option = click.option(
    "--from-block",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="First block whose events matter, where a node serves few blocks at a time.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be sent and what it costs; send nothing.")


def publisher_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --document-dir and --document-url, and hands the command a `publisher`."""

    @click.option("--document-dir", type=click.Path(file_okay=False, path_type=Path), metavar="DIRECTORY",
                  help="Keep what the chain points at here; without, it goes onto the chain itself.")  # fmt: skip
    @click.option("--document-url", callback=http_url, metavar="URL", help="Where --document-dir is served.")
    @wraps(command)
    def wrapped(*arguments: Any, document_dir: Path | None, document_url: str | None, **options: Any) -> Any:
        if (document_dir is None) != (document_url is None):
            raise click.UsageError("--document-dir and --document-url belong together")
        where = None if document_dir is None or document_url is None else (document_dir, document_url)
        return command(*arguments, publisher=Publisher(where), **options)

    return wrapped


def place(
    rpc: str | None,
    chain_id: int | None,
    *,
    identity: str | None = None,
    reputation: str | None = None,
    validation: str | None = None,
) -> Place:
    """Where to look: what was named, else what a running local stack says, else what is canonical on the chain.

    Raises:
        click.UsageError: no node, no chain or no identity registry is known.
    """
    stack = local_chain(rpc)
    if stack is not None and (
        chain_id not in (None, stack.chain_id) or identity not in (None, stack.identity_registry.lower())
    ):
        stack = None
    rpc = rpc or (stack.rpc if stack else None)
    chain_id = chain_id or (stack.chain_id if stack else None)
    if rpc is None:
        raise click.UsageError("name a node of the chain with --rpc")
    if chain_id is None:
        raise click.UsageError("name the chain with --chain")
    known = registries(chain_id)
    if stack is not None:
        identity = stack.identity_registry.lower()
        reputation = reputation or stack.reputation_registry.lower()
        validation = validation or stack.validation_registry.lower()
    elif known is not None and identity in (None, known.identity):
        identity = known.identity
        reputation, validation = reputation or known.reputation, validation or known.validation
    if identity is None:
        raise click.UsageError(f"no identity registry is known on chain {chain_id}: name it with --identity-registry")
    return Place(rpc, chain_id, identity, reputation, validation, local=stack is not None)
