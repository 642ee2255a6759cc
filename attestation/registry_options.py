"""What commands about agents share: which agent, on which chain, in which registries."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from attestation.agent_options import Change, F, address_callback, chain_id_of, change_of, parse_agent
from attestation.commands import http_url
from attestation.devstack import local_stack
from attestation.errors import MalformedError
from attestation.onchain import AgentReference
from attestation.publishing import Publisher
from attestation.registry.canonical import registries


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
    """For arguments that are agents: with their chain and registry."""
    try:
        found = parse_agent(value)
    except MalformedError as error:
        raise click.BadParameter(str(error)) from error
    if isinstance(found, int):
        raise click.BadParameter("must be agent:<chain>:<registry>:<id>, such as agent:84532:0x8004...:0")
    return found


def _network(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else chain_id_of(value)


def change_as(context: click.Context, key_env: str) -> Change:
    """How a change is to be made, with the key in the variable `key_env` unless another account is named."""
    change = change_of(context)
    named = [context.params[name] for name in ("key_env", "keystore", "signer")]
    return change if any(named) else replace(change, keys=replace(change.keys, env=key_env))


def _address_option(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, metavar="ADDRESS", callback=address_callback, help=text)


identity_option = _address_option("--registry", "The identity registry; the chain's canonical one by default.")
validation_option = _address_option("--validation-registry", "The validation registry; the canonical one by default.")
reputation_option = _address_option("--reputation-registry", "The reputation registry; the canonical one by default.")
network_option = click.option(
    "--network", metavar="CAIP2", callback=_network, help="The chain, such as eip155:8453; a local stack's by default."
)
from_block_option = click.option(
    "--from-block",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="First block whose events matter, where a node serves few blocks at a time.",
)


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
    stack = local_stack()
    if stack is not None and (
        (rpc or stack.rpc).rstrip("/") != stack.rpc.rstrip("/")
        or chain_id not in (None, stack.chain_id)
        or identity not in (None, stack.identity_registry.lower())
    ):
        stack = None
    rpc = rpc or (stack.rpc if stack else None)
    chain_id = chain_id or (stack.chain_id if stack else None)
    if rpc is None:
        raise click.UsageError("name a node of the chain with --rpc")
    if chain_id is None:
        raise click.UsageError("name the chain with --network")
    known = registries(chain_id)
    if stack is not None:
        identity = stack.identity_registry.lower()
        reputation = reputation or stack.reputation_registry.lower()
        validation = validation or stack.validation_registry.lower()
    elif known is not None and identity in (None, known.identity):
        identity = known.identity
        reputation, validation = reputation or known.reputation, validation or known.validation
    if identity is None:
        raise click.UsageError(f"no identity registry is known on chain {chain_id}: name it with --registry")
    return Place(rpc, chain_id, identity, reputation, validation, local=stack is not None)
