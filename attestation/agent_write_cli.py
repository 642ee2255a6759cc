"""The commands of `tollseal agent` that change something on the chain. Each is safe to repeat."""

from pathlib import Path
from typing import Any

import click
import httpx

from attestation import report
from attestation.account import Keys, open_signer
from attestation.agent_change import perform
from attestation.agent_options import (
    address_callback,
    agent_of,
    change_of,
    registry_of,
    registry_options,
    signing_options,
)
from attestation.checker import ServiceChecker
from attestation.commands import http_url
from attestation.encoding import address, parse_json
from attestation.errors import MalformedError, ServiceError
from attestation.keyset import ALGO_PAYMENT, parse_keyset
from attestation.manifest import manifest_digest, parse_manifest
from attestation.payment_proof import address_of
from attestation.policy import Policy
from attestation.registry.changes import (
    approve_for_agent,
    approve_operator,
    rotate_key,
    set_uri,
    set_wallet,
    unset_wallet,
)
from attestation.registry.publication import Publication, clear_keys, combine, ensure_agent, publish_records
from attestation.registry.records import (
    KEY_PREFIX,
    MANIFEST_KEY,
    SECOND_SLOT,
    KeyRecord,
    encode_key,
    encode_manifest,
    key_name,
)
from attestation.registry.writer import IdentityWriter
from attestation.verdict import Status

KEY_OPTIONS = (
    click.option(
        "--from", "url", callback=http_url, help="Take what is published from the service at this URL, after checking."
    ),
    click.option("--payment-key", metavar="ADDRESS", callback=address_callback, help="The key that signs offers."),
    click.option("--keyset", "keyset_digest", metavar="DIGEST", help="sha256:... of the keyset."),
    click.option("--expires-at", type=click.IntRange(min=1), metavar="UNIX", help="When the keyset ends."),
)


def key_options(command: Any) -> Any:
    for option in reversed(KEY_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.option("--uri", required=True, help="Of the registration file: https:, data: or ipfs:.")
@click.option("--owner", metavar="ADDRESS", callback=address_callback, help="Who shall own it; the signer by default.")
@click.option("--manifest", metavar="DIGEST", help="Also publish this build; only for an agent that the signer keeps.")
@signing_options
@registry_options
@click.pass_context
def register(context: click.Context, /, uri: str, owner: str | None, manifest: str | None, as_json: bool,
             **_: Any) -> None:  # fmt: skip
    """Register an agent, unless there is one with this URI.

    An agent for another --owner is handed over at once; the owner must have approved the signer before.
    """
    if manifest is not None and owner is not None:
        raise click.UsageError("--manifest is for an agent that the signer keeps: an owner has not said it")
    metadata = {} if manifest is None else {MANIFEST_KEY: _usable(encode_manifest, manifest)}

    async def act(writer: IdentityWriter) -> Publication:
        return await ensure_agent(
            writer, agent_uri=uri, owner=owner or writer.address, mint=True, by_uri=True, metadata=metadata
        )

    perform(registry_of(context), change_of(context), act, as_json=as_json)


@click.command()
@click.argument("agent")
@click.option("--uri", help="Where the registration file is.")
@click.option("--manifest", metavar="DIGEST", help="sha256:... of the build manifest.")
@click.option("--replica", default="main", show_default=True, help="Whose key it is.")
@key_options
@signing_options
@registry_options
@click.pass_context
def publish(context: click.Context, /, agent: str, uri: str | None, manifest: str | None, replica: str, url: str | None,
            payment_key: str | None, keyset_digest: str | None, expires_at: int | None, as_json: bool,
            **_: Any) -> None:  # fmt: skip
    """Make the chain say what AGENT runs: its URI, its build, a replica's key. Only differences are sent."""
    target, agent_id = agent_of(context, agent)
    record = _record(payment_key, keyset_digest, expires_at)
    if url is None and record is None and manifest is None and uri is None:
        raise click.UsageError("name what to publish: --uri, --manifest, a key, or a service with --from")
    records: dict[str, bytes] = {}
    if manifest is not None:
        records[MANIFEST_KEY] = _usable(encode_manifest, manifest)
    if record is not None:
        records[_usable(key_name, replica)] = _usable(encode_key, record)

    async def act(writer: IdentityWriter) -> Publication:
        if url is not None:
            slot, served, digest = await _served_by(url, str(target.reference(agent_id)))
            records.update({KEY_PREFIX + slot: encode_key(served), MANIFEST_KEY: encode_manifest(digest)})
        await writer.reader.owner_of(agent_id)
        moved = [] if uri is None else [await set_uri(writer, agent_id, uri)]
        return combine(agent_id, *moved, await publish_records(writer, agent_id, records))

    perform(target, change_of(context), act, as_json=as_json, agent_id=agent_id)


@click.command()
@click.argument("agent")
@click.option("--replica", default="main", show_default=True, help="Whose key it is.")
@key_options
@signing_options
@registry_options
@click.pass_context
def rotate(context: click.Context, /, agent: str, replica: str, url: str | None, payment_key: str | None,
           keyset_digest: str | None, expires_at: int | None, as_json: bool, **_: Any) -> None:  # fmt: skip
    """Publish a replica's new key in the other one of its two slots, so that both are known for a while."""
    target, agent_id = agent_of(context, agent)
    given = _record(payment_key, keyset_digest, expires_at)
    if (url is None) == (given is None):
        raise click.UsageError("name the new key, or a service with --from")
    _usable(key_name, replica)

    async def act(writer: IdentityWriter) -> Publication:
        record = given
        if record is None:
            _, record, _ = await _served_by(str(url), str(target.reference(agent_id)))
        await writer.reader.owner_of(agent_id)
        return await rotate_key(writer, agent_id, replica, record)

    perform(target, change_of(context), act, as_json=as_json, agent_id=agent_id)


@click.command("revoke-key")
@click.argument("agent")
@click.option("--replica", default="main", show_default=True, help="Empty both slots of this replica.")
@signing_options
@registry_options
@click.pass_context
def revoke_key(context: click.Context, /, agent: str, replica: str, as_json: bool, **_: Any) -> None:
    """Empty a replica's slots: from then on nobody buys under its keys. Earlier purchases stay verifiable."""
    target, agent_id = agent_of(context, agent)
    _usable(key_name, replica)
    slots = [replica] if replica.endswith(SECOND_SLOT) else [replica, replica + SECOND_SLOT]

    async def act(writer: IdentityWriter) -> Publication:
        await writer.reader.owner_of(agent_id)
        return await clear_keys(writer, agent_id, slots)

    perform(target, change_of(context), act, as_json=as_json, agent_id=agent_id)


@click.command("set-uri")
@click.argument("agent")
@click.argument("uri")
@signing_options
@registry_options
@click.pass_context
def set_uri_command(context: click.Context, /, agent: str, uri: str, as_json: bool, **_: Any) -> None:
    """Point AGENT at the registration file at URI."""
    target, agent_id = agent_of(context, agent)

    async def act(writer: IdentityWriter) -> Publication:
        return await set_uri(writer, agent_id, uri)

    perform(target, change_of(context), act, as_json=as_json, agent_id=agent_id)


@click.command("set-wallet")
@click.argument("agent")
@click.argument("wallet", required=False, callback=address_callback)
@click.option("--unset", is_flag=True, help="Leave the agent without a wallet.")
@click.option("--wallet-key-env", metavar="NAME", help="The environment variable that holds the new wallet's key.")
@click.option(
    "--wallet-keystore",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The new wallet's encrypted key.",
)
@click.option("--wallet-password-env", metavar="NAME", help="The environment variable that holds its password.")
@click.option("--wallet-password-fd", type=click.IntRange(min=0), metavar="N", help="Read its password from here.")
@click.option("--wallet-signer", metavar="COMMAND", help="A program that signs for the new wallet.")
@signing_options
@registry_options
@click.pass_context
def set_wallet_command(context: click.Context, /, agent: str, wallet: str | None, unset: bool,
                       wallet_key_env: str | None, wallet_keystore: Path | None, wallet_password_env: str | None,
                       wallet_password_fd: int | None, wallet_signer: str | None, as_json: bool,
                       **_: Any) -> None:  # fmt: skip
    """Set AGENT's wallet to WALLET, which agrees by signing (EIP-712). WALLET may be left out: it is the signer's."""
    target, agent_id = agent_of(context, agent)
    named = [each for each in (wallet_key_env, wallet_keystore, wallet_signer) if each is not None]
    if unset and (named or wallet):
        raise click.UsageError("--unset takes no wallet")
    if not unset and len(named) != 1:
        raise click.UsageError("the new wallet signs: --wallet-key-env, --wallet-keystore or --wallet-signer")
    keys = Keys(wallet_key_env, wallet_keystore, wallet_signer, wallet_password_fd, wallet_password_env)

    async def act(writer: IdentityWriter) -> Publication:
        if unset:
            return await unset_wallet(writer, agent_id)
        signer = await open_signer(keys)
        return await set_wallet(writer, agent_id, wallet or signer.address, signer.sign_typed_data)

    perform(target, change_of(context), act, as_json=as_json, agent_id=agent_id)


@click.command("approve-operator")
@click.argument("operator", callback=address_callback)
@click.option("--agent", help="For this agent only, until it changes hands; by default for all agents of the signer.")
@click.option("--revoke", is_flag=True, help="End an approval for all agents.")
@signing_options
@registry_options
@click.pass_context
def approve_operator_command(context: click.Context, /, operator: str, agent: str | None, revoke: bool, as_json: bool,
                             **_: Any) -> None:  # fmt: skip
    """Let OPERATOR, the account that a service pays gas with, act for the signer's agents."""
    if agent is not None and revoke:
        raise click.UsageError("--revoke is for an approval for all agents")
    target, agent_id = (registry_of(context), None) if agent is None else agent_of(context, agent)

    async def act(writer: IdentityWriter) -> Publication | None:
        if agent_id is not None:
            return await approve_for_agent(writer, agent_id, operator)
        return await approve_operator(writer, operator, approved=not revoke)

    perform(target, change_of(context), act, as_json=as_json, agent_id=agent_id)


def _record(payment_key: str | None, keyset_digest: str | None, expires_at: int | None) -> KeyRecord | None:
    given = (payment_key, keyset_digest, expires_at)
    if all(value is None for value in given):
        return None
    if payment_key is None or keyset_digest is None or expires_at is None:
        raise click.UsageError("a key is --payment-key, --keyset and --expires-at together")
    record = KeyRecord(address(payment_key, "--payment-key"), keyset_digest, expires_at)
    _usable(encode_key, record)
    return record


def _usable(encode: Any, value: Any) -> Any:
    try:
        return encode(value)
    except MalformedError as error:
        raise click.UsageError(str(error)) from error


async def _served_by(url: str, agent: str) -> tuple[str, KeyRecord, str]:
    """Slot, key record and build of a running service, which must prove them and say that it is this agent."""
    async with ServiceChecker(policy=Policy(allow_simulated=True)) as checker:
        found = await checker.attest(httpx.URL(url))
    for check in ("keyset.binding", "build.manifest"):
        outcome = found.verdict.check(check)
        if outcome.status is not Status.PASS:
            raise ServiceError(f"{url} does not prove what it runs: {check}: {outcome.detail}")
    keyset = parse_keyset(report.attestation_of(found.attestation)["workload_keyset"])
    if keyset.subject != agent:
        raise ServiceError(f"{url} says that it is {keyset.subject or 'no agent yet'}, not {agent}")
    record = KeyRecord(address_of(keyset.key(ALGO_PAYMENT).public_key), keyset.digest, keyset.not_after)
    slot = report.key_slot_of(found.attestation).removeprefix(KEY_PREFIX)
    return slot, record, manifest_digest(parse_manifest(parse_json(found.manifest.body, "manifest")))
