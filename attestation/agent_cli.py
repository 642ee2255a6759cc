"""`tollseal agent`: an agent on the chain, from its registration to its sale."""

from typing import Any

import click

from attestation import agent_find_cli, agent_write_cli
from attestation.agent_options import Target, agent_of, registry_options, short
from attestation.checker import unix_now
from attestation.commands import print_json, run
from attestation.registry.errors import RegistryError
from attestation.registry.history import Entry, history
from attestation.registry.records import KEY_PREFIX, MANIFEST_KEY, MANIFEST_SIZE, parse_manifest
from attestation.registry.transfer import TransferReport, transfer_report
from attestation.terminal import console, print_fields


@click.group()
def agent() -> None:
    """An ERC-8004 agent: register it, publish what it runs, find and check it."""


for command in (
    agent_write_cli.register,
    agent_write_cli.publish,
    agent_write_cli.rotate,
    agent_write_cli.revoke_key,
    agent_write_cli.set_uri_command,
    agent_write_cli.set_wallet_command,
    agent_write_cli.approve_operator_command,
    agent_find_cli.find,
):
    agent.add_command(command)


@agent.command()
@click.argument("agent")
@click.option("--at-block", type=click.IntRange(min=0), metavar="N", help="Show the keys valid in this block.")
@registry_options
@click.pass_context
def status(context: click.Context, /, agent: str, at_block: int | None, as_json: bool, **_: Any) -> None:
    """Show what the chain says of AGENT: owner, URI, wallet, build, and the key of each replica."""
    target, agent_id = agent_of(context, agent)
    run(_status(target, agent_id, at_block, as_json=as_json), as_json=as_json)


async def _status(target: Target, agent_id: int, at_block: int | None, *, as_json: bool) -> int:
    async with target.reader() as reader:
        seen = await transfer_report(reader, agent_id)
        entries = await history(reader, agent_id)
        now, block = unix_now(), await reader.chain.block_number()
        if at_block is not None:
            if at_block > block:
                raise RegistryError(f"block {at_block} is not there yet: the newest is {block}")
            with reader.chain.asking(f"block {at_block}"):
                now = int((await reader.chain.w3.eth.get_block(at_block))["timestamp"])
            shown = [entry for entry in entries if entry.holds_at(at_block)]
        else:
            shown = [entry for entry in entries if entry.until is None]
    manifest = next((entry for entry in reversed(shown) if entry.key == MANIFEST_KEY), None)
    result: dict[str, Any] = {
        "agent": str(target.reference(agent_id)),
        "owner": seen.owner,
        "agent_uri": seen.agent_uri,
        "wallet": seen.wallet,
        "manifest": None if manifest is None else _manifest_json(manifest, at_block),
        "keys": [_key_json(entry, now, at_block) for entry in shown if entry.key.startswith(KEY_PREFIX)],
        "transfers": len(seen.transfers),
        "block": block if at_block is None else at_block,
    }
    if as_json:
        print_json(result)
        return 0
    fields = [
        ("agent", result["agent"]),
        ("owner", seen.owner),
        ("uri", short(seen.agent_uri) or "none"),
        ("wallet", seen.wallet or "none"),
        ("build", "none" if manifest is None else _manifest_text(result["manifest"])),
        *((short(key["slot"]), _key_text(key)) for key in result["keys"]),
    ]
    print_fields(console(), fields)
    return 0


def _manifest_json(entry: Entry, at_block: int | None) -> dict[str, Any]:
    digest = parse_manifest(entry.value) if len(entry.value) == MANIFEST_SIZE else None
    return {"digest": digest, "written_block": entry.written.block, "state": _state(entry, at_block, digest is None)}


def _key_json(entry: Entry, now: int, at_block: int | None) -> dict[str, Any]:
    record = entry.record
    state = _state(entry, at_block, record is None)
    if record is not None and state == "valid" and record.expires_at <= now:
        state = "expired"
    return {
        "slot": entry.key,
        "payment_key": record.payment_key if record else None,
        "keyset_digest": record.keyset_digest if record else None,
        "expires_at": record.expires_at if record else None,
        "written_block": entry.written.block,
        "state": state,
    }


def _state(entry: Entry, at_block: int | None, malformed: bool) -> str:
    if malformed:
        return "malformed"
    # An entry that holds at a block lapsed after it, if at all.
    return "stale" if at_block is None and entry.lapsed is not None else "valid"


def _manifest_text(manifest: dict[str, Any]) -> str:
    return f"{manifest['digest'] or 'not a digest'} ({manifest['state']}, block {manifest['written_block']})"


def _key_text(key: dict[str, Any]) -> str:
    if key["payment_key"] is None:
        return f"not a key record (block {key['written_block']})"
    return f"{key['payment_key']} until {key['expires_at']} ({key['state']}, block {key['written_block']})"


@agent.command("transfer-check")
@click.argument("agent")
@registry_options
@click.pass_context
def transfer_check(context: click.Context, /, agent: str, as_json: bool, **_: Any) -> None:
    """Say what a sale has left of AGENT: exit 1 while anything of an earlier owner is still shown.

    A transfer clears the wallet and ends approvals for the agent, but keeps all other metadata: the old owner's keys.
    """
    target, agent_id = agent_of(context, agent)
    run(_transfer_check(target, agent_id, as_json=as_json), as_json=as_json)


async def _transfer_check(target: Target, agent_id: int, *, as_json: bool) -> int:
    async with target.reader() as reader:
        seen = await transfer_report(reader, agent_id)
    if as_json:
        print_json(_transfer_json(target, seen))
    else:
        last = seen.transfers[0] if seen.transfers else None
        sold = "never" if last is None else f"from {last.sender} to {last.receiver} in block {last.position.block}"
        out = console()
        print_fields(
            out,
            [
                ("agent", str(target.reference(agent_id))),
                ("owner", seen.owner),
                ("changed hands", sold),
                ("wallet", seen.wallet or "none"),
                *((short(entry.key), f"stands (block {entry.written.block})") for entry in seen.standing),
                *(
                    (short(entry.key), f"STALE: an earlier owner's, block {entry.written.block}")
                    for entry in seen.stale
                ),
            ],
        )
        if not seen.clean:
            out.print("The owner empties or overwrites what is stale (publish, revoke-key) before anybody buys.")
    return 0 if seen.clean else 1


def _transfer_json(target: Target, seen: TransferReport) -> dict[str, Any]:
    return {
        "agent": str(target.reference(seen.agent_id)),
        "owner": seen.owner,
        "agent_uri": seen.agent_uri,
        "wallet": seen.wallet,
        "clean": seen.clean,
        "transfers": [
            {"from": each.sender, "to": each.receiver, "block": each.position.block} for each in seen.transfers
        ],
        "standing": [{"key": each.key, "written_block": each.written.block} for each in seen.standing],
        "stale": [{"key": each.key, "written_block": each.written.block} for each in seen.stale],
    }
