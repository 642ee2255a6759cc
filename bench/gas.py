"""What an agent costs on the chain, in gas: every operation of the registry client, once, on a local chain.

Prints a table and writes bench/out/gas.json: {operation: gas}. Run it with `python -m bench.gas`. With `--rpc` and
`--registry` it measures another registry on a development node, such as the canonical contract.
"""

import argparse
import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

from eth_account import Account
from eth_account.signers.local import LocalAccount

from attestation.registry.changes import set_wallet, unset_wallet
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.publication import Desired, clear_keys, ensure_agent, publish, publish_key
from attestation.registry.records import MANIFEST_KEY, KeyRecord, encode_manifest
from attestation.registry.signer import LocalSigner
from attestation.registry.writer import IdentityWriter
from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, deploy
from service.localchain.toolchain import ensure_anvil

OUT: Final = Path(__file__).parent / "out" / "gas.json"
CACHE_DIR: Final = Path.home() / ".cache" / "tollseal"
URI: Final = "https://summaries.example/.well-known/agent-registration.json"
AIMS: Final = {
    "first registration, owner apart from operator": 450_000,
    "first registration, owner is operator": 450_000,
    "boot, only the key changed": 100_000,
}
"""What an operation may cost at most; the program fails when one costs more."""


class Counted:
    """Gas by operation, in the order measured."""

    def __init__(self) -> None:
        self.gas: dict[str, int] = {}

    def add(self, operation: str, gas: int) -> None:
        self.gas[operation] = self.gas.get(operation, 0) + gas


def funded(rpc: str) -> LocalAccount:
    """A new account with gas money."""
    account: LocalAccount = Account.create()
    Deployer(rpc, account).fund(account.address)
    return account


def record(number: int) -> KeyRecord:
    """A key record whose bytes differ from those of every other number."""
    return KeyRecord("0x" + f"{number:02x}" * 20, "sha256:" + f"{number:02x}" * 32, 1_900_000_000 + number)


async def first_registrations(reader: IdentityReader, rpc: str, counted: Counted) -> tuple[IdentityWriter, int]:
    """Everything of a first start, for both kinds of ownership; the second agent's writer and id."""
    owner, operator, alone = funded(rpc), funded(rpc), funded(rpc)
    last: tuple[IdentityWriter, int] | None = None
    consent = await IdentityWriter(reader, owner).set_operator(operator.address, approved=True)
    counted.add("approving an operator for all agents", consent.gas_used)
    for writer, holder, name in (
        (IdentityWriter(reader, operator), owner, "owner apart from operator"),
        (IdentityWriter(reader, alone), alone, "owner is operator"),
    ):
        desired = Desired(URI, "sha256:" + "11" * 32, "main", record(1))
        made = await ensure_agent(
            writer,
            agent_uri=URI,
            owner=holder.address,
            mint=True,
            metadata={MANIFEST_KEY: encode_manifest(desired.manifest_digest)},
        )
        done = await publish(writer, made.agent_id, desired)
        counted.add(f"first registration, {name}", made.gas_used + done.gas_used)
        last = writer, made.agent_id
    assert last is not None
    return last


async def measure(rpc: str, chain_id: int, registry: str) -> dict[str, int]:
    """Gas of each operation."""
    counted = Counted()
    async with IdentityReader(rpc, chain_id, registry) as reader:
        writer, agent_id = await first_registrations(reader, rpc, counted)
        desired = Desired(URI, "sha256:" + "11" * 32, "main", record(1))
        counted.add("boot, nothing changed", (await publish(writer, agent_id, desired)).gas_used)
        desired = replace(desired, key=record(2))
        counted.add("boot, only the key changed", (await publish(writer, agent_id, desired)).gas_used)
        desired = replace(desired, key=record(3), manifest_digest="sha256:" + "12" * 32)
        counted.add("boot, key and build changed", (await publish(writer, agent_id, desired)).gas_used)
        counted.add("stop, the key ends now", await _write(writer, agent_id, "main", record(4)))
        counted.add("boot after that", await _write(writer, agent_id, "main", record(5)))
        counted.add("stop, the slot is emptied", (await clear_keys(writer, agent_id, ["main"])).gas_used)
        counted.add("boot after that one", await _write(writer, agent_id, "main", record(6)))
        counted.add("first rotation (second slot)", await _write(writer, agent_id, "main--2", record(7)))
        counted.add("later rotation", await _write(writer, agent_id, "main", record(8)))
        counted.add("first key of another replica", await _write(writer, agent_id, "second", record(9)))
        counted.add("URI changed", (await writer.set_agent_uri(agent_id, URI + "?v=2")).gas_used)
        wallet = Account.create()
        signer = LocalSigner(wallet)
        counted.add("wallet set", (await set_wallet(writer, agent_id, wallet.address, signer.sign_typed_data)).gas_used)
        counted.add("wallet removed", (await unset_wallet(writer, agent_id)).gas_used)
        counted.add("operator approved for one agent", (await writer.approve(agent_id, wallet.address)).gas_used)
        counted.add("sold", (await writer.transfer(agent_id, funded(rpc).address)).gas_used)
    return counted.gas


async def _write(writer: IdentityWriter, agent_id: int, slot: str, key: KeyRecord) -> int:
    return (await publish_key(writer, agent_id, slot, key)).gas_used


def show(gas: dict[str, int]) -> bool:
    """Print the table; says whether every aim was met."""
    met = True
    for operation, used in gas.items():
        aim = AIMS.get(operation)
        met = met and (aim is None or used <= aim)
        note = "" if aim is None else f"   at most {aim:,}" + ("" if used <= aim else "  EXCEEDED")
        print(f"{operation:48}{used:>9,}{note}")
    return met


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rpc", help="a development node that knows anvil_setBalance")
    options.add_argument("--registry", help="an identity registry on it")
    options.add_argument("--chain-id", type=int, default=84532)
    given = options.parse_args()
    if given.rpc:
        gas = asyncio.run(measure(given.rpc, given.chain_id, given.registry))
    else:
        with Anvil(ensure_anvil(CACHE_DIR)) as node:
            chain = deploy(node.rpc)
            gas = asyncio.run(measure(chain.rpc, chain.chain_id, chain.identity_registry))
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(gas, indent=2) + "\n", encoding="utf-8")
    if not show(gas):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
