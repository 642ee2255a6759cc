"""`tollseal agent` on a real chain: every command says what it would do, does it, and does it once."""

import json
import os
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from eth_account import Account
from eth_account.signers.local import LocalAccount

from attestation.cli import main
from attestation.fetch import data_uri
from attestation.registry.canonical import TESTNET_REGISTRIES
from attestation.registry.records import KEY_RECORD_SIZE
from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, LocalChain

URI = "https://summaries.example/.well-known/agent-registration.json"
MANIFEST = "sha256:" + "11" * 32
PAYMENT_KEY = "0x" + "aa" * 20
KEY = ("--payment-key", PAYMENT_KEY, "--keyset", "sha256:" + "22" * 32, "--expires-at", "4000000000")
NEXT_KEY = ("--payment-key", "0x" + "bb" * 20, "--keyset", "sha256:" + "33" * 32, "--expires-at", "4000000001")


@dataclass
class Desk:
    """Somebody at a terminal, with the owner's key in the environment."""

    chain: LocalChain
    key: str

    def run(self, *words: str, key: str | None = None, env: dict[str, str] | None = None) -> Result:
        where = ("--rpc", self.chain.rpc, "--registry", self.chain.identity_registry)
        variables = {"TOLLSEAL_AGENT_KEY": key or self.key, **(env or {})}
        return CliRunner().invoke(main, ["agent", *words, *where], env=variables)

    def json(self, *words: str, exit_code: int = 0, **more: Any) -> dict[str, Any]:
        result = self.run(*words, "--json", **more)
        assert result.exit_code == exit_code, result.output
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    def refuses(self, *words: str, says: str, **more: Any) -> None:
        before = self.sent()
        result = self.run(*words, **more)
        assert result.exit_code in (1, 2), result.output
        assert says in " ".join(result.stderr.split()), result.output
        assert "Traceback" not in result.output
        assert self.sent() == before, "something was sent"

    def sent(self) -> int:
        account: LocalAccount = Account.from_key(self.key)
        return int(Deployer(self.chain.rpc, account).w3.eth.get_transaction_count(account.address))

    def metadata(self, key: str, agent_id: int = 0) -> bytes:
        return bytes(self.contract().functions.getMetadata(agent_id, key).call())

    def contract(self) -> Any:
        from attestation.registry.abi import load

        node = Deployer(self.chain.rpc, Account.create()).w3
        return node.eth.contract(address=self.chain.identity_registry, abi=load("identity"))  # type: ignore[call-overload]


@pytest.fixture
def desk(chain: LocalChain) -> Desk:
    return Desk(chain, chain.owner_key)


def key_of(account: LocalAccount) -> str:
    return "0x" + bytes(account.key).hex()


def test_registering_twice_makes_one_agent_and_its_id_is_0(desk: Desk) -> None:
    first = desk.json("register", "--uri", URI, "--manifest", MANIFEST)
    assert first["agent"] == f"eip155:84532:{desk.chain.identity_registry.lower()}:0"
    assert (first["changed"], len(first["transactions"])) == (True, 1)
    assert desk.metadata("tee.manifest") == bytes.fromhex("11" * 32)

    again = desk.json("register", "--uri", URI, "--manifest", MANIFEST)
    assert (again["agent"], again["changed"], again["transactions"]) == (first["agent"], False, [])
    assert desk.json("register", "--uri", URI + "2")["agent"].endswith(":1"), "another URI is another agent"


CHANGES = {
    "publish": ("publish", "0", "--manifest", MANIFEST, *KEY, "--uri", URI + "?2"),
    "rotate": ("rotate", "0", *KEY),
    "revoke-key": ("revoke-key", "0"),
    "set-uri": ("set-uri", "0", "ipfs://elsewhere"),
    "set-wallet": ("set-wallet", "0", "--wallet-key-env", "WALLET"),
    "unset-wallet": ("set-wallet", "0", "--unset"),
    "approve-operator": ("approve-operator", "0x" + "12" * 20),
    "approve for one agent": ("approve-operator", "0x" + "12" * 20, "--agent", "0"),
    "end an approval": ("approve-operator", "OPERATOR", "--revoke"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_planned_made_and_not_repeated(desk: Desk, name: str) -> None:
    desk.json("register", "--uri", URI)
    if name == "revoke-key":
        desk.json("publish", "0", *KEY)
    words = [desk.chain.operator if word == "OPERATOR" else word for word in CHANGES[name]]
    wallet = {"WALLET": key_of(Account.create())}

    before = desk.sent()
    plan = desk.json(*words, "--dry-run", "--eth-price", "2345.67", env=wallet)
    assert desk.sent() == before, "a dry run sends nothing"
    assert plan["changed"] is True
    done = desk.json(*words, env=wallet)
    assert done["changed"] is True
    assert len(done["transactions"]) == len(plan["transactions"]) == desk.sent() - before
    # An estimate leaves out what emptying storage gives back, which is at most a fifth (EIP-3529).
    assert plan["gas"] * 0.78 <= done["gas_used"] <= plan["gas"] * 1.02
    for item in plan["transactions"]:
        assert item["to"] == desk.chain.identity_registry.lower()
        assert item["data"].startswith("0x")

    again = desk.json(*words, env=wallet)
    assert (again["changed"], again["transactions"]) == (False, [])
    assert desk.json(*words, "--dry-run", env=wallet)["changed"] is False


def test_costs_are_exact(desk: Desk) -> None:
    plan = desk.json("register", "--uri", URI, "--dry-run", "--eth-price", "1234.56789")
    item = plan["transactions"][0]
    assert item["gas_limit"] == item["gas"] * 125 // 100
    assert int(item["cost_wei"]) == item["gas"] * int(item["fee_per_gas_wei"])
    for name in ("cost", "max_cost"):
        exact = Decimal(int(item[f"{name}_wei"])) * Decimal("1234.56789") / Decimal(10**18)
        assert Decimal(item[f"{name}_usd"]) == exact
    assert plan["agent"] is None
    assert "depends on the agent" in plan["note"]
    shown = desk.run("register", "--uri", URI, "--dry-run").output
    assert "dry run: nothing was sent" in shown
    assert item["data"] in shown


def test_an_agent_for_another_owner_is_handed_over(desk: Desk, chain: LocalChain) -> None:
    made = desk.json("register", "--uri", URI, "--owner", chain.owner, key=chain.operator_key)
    assert len(made["transactions"]) == 2
    assert desk.json("status", "0")["owner"] == chain.owner.lower()
    assert desk.json("register", "--uri", URI, "--owner", chain.owner, key=chain.operator_key)["changed"] is False
    desk.refuses("register", "--uri", URI, "--owner", "0x" + "99" * 20, key=chain.operator_key, says="has not made")


def test_status_tells_valid_expired_and_malformed_keys_apart(desk: Desk) -> None:
    desk.json("register", "--uri", URI)
    desk.json("publish", "0", "--manifest", MANIFEST, *KEY)
    desk.json("publish", "0", "--replica", "old", *KEY[:-1], "1")
    owner: LocalAccount = Account.from_key(desk.key)
    Deployer(desk.chain.rpc, owner).send(desk.contract().functions.setMetadata(0, "tee.key.evil", b"\x1b[2J"))
    found = desk.json("status", "0")
    assert {key["slot"]: key["state"] for key in found["keys"]} == {
        "tee.key.main": "valid",
        "tee.key.old": "expired",
        "tee.key.evil": "malformed",
    }
    assert (found["manifest"]["digest"], found["manifest"]["state"]) == (MANIFEST, "valid")
    assert found["wallet"] == desk.chain.owner.lower()


def test_what_a_hostile_agent_wrote_cannot_draw_on_a_terminal(desk: Desk) -> None:
    desk.json("register", "--uri", "ipfs://x\x1b[2J\nowner  somebody else")
    owner: LocalAccount = Account.from_key(desk.key)
    key = "tee.key.main\n\x1b]0;title\x07tee.key.forged"
    Deployer(desk.chain.rpc, owner).send(desk.contract().functions.setMetadata(0, key, b"\x01"))
    for words in (("status", "0"), ("transfer-check", "0"), ("find",)):
        shown = desk.run(*words).output
        assert not any(ord(character) < 32 and character != "\n" for character in shown)
        assert not any(line.startswith(("owner  somebody", "tee.key.forged")) for line in shown.splitlines())


def test_the_key_of_a_past_block_is_found(desk: Desk) -> None:
    desk.json("register", "--uri", URI)
    desk.json("publish", "0", *KEY)
    then = desk.json("status", "0")["block"]
    desk.json("publish", "0", *NEXT_KEY)
    assert [key["payment_key"] for key in desk.json("status", "0")["keys"]] == ["0x" + "bb" * 20]
    past = desk.json("status", "0", "--at-block", str(then))
    assert [(key["payment_key"], key["state"]) for key in past["keys"]] == [(PAYMENT_KEY, "valid")]
    desk.json("revoke-key", "0")
    assert desk.json("status", "0")["keys"] == []
    assert len(desk.json("status", "0", "--at-block", str(then))["keys"]) == 1
    desk.refuses("status", "0", "--at-block", "99999999", says="is not there yet")


def test_a_rotation_leaves_the_key_before_it(desk: Desk) -> None:
    desk.json("register", "--uri", URI)
    desk.json("rotate", "0", *KEY)
    desk.json("rotate", "0", *NEXT_KEY)
    found = {key["payment_key"] for key in desk.json("status", "0")["keys"]}
    assert found == {PAYMENT_KEY, "0x" + "bb" * 20}
    assert len(desk.metadata("tee.key.main")) == len(desk.metadata("tee.key.main--2")) == KEY_RECORD_SIZE
    desk.json("rotate", "0", *KEY[:1], "0x" + "cc" * 20, *KEY[2:-1], "4000000002")
    found = {key["payment_key"] for key in desk.json("status", "0")["keys"]}
    assert found == {"0x" + "bb" * 20, "0x" + "cc" * 20}, "the one that ends first makes room"


def test_a_sale_is_told_and_what_it_leaves_is_stale(desk: Desk, stranger: LocalAccount) -> None:
    desk.json("register", "--uri", URI)
    desk.json("publish", "0", "--manifest", MANIFEST, *KEY)
    assert desk.json("transfer-check", "0")["clean"] is True
    before = desk.json("status", "0")["block"]
    owner: LocalAccount = Account.from_key(desk.key)
    transfer = desk.contract().functions.transferFrom(owner.address, stranger.address, 0)
    Deployer(desk.chain.rpc, owner).send(transfer)

    found = desk.json("transfer-check", "0", exit_code=1)
    assert found["owner"] == stranger.address.lower()
    assert [(each["from"], each["to"]) for each in found["transfers"]] == [
        (owner.address.lower(), stranger.address.lower())
    ]
    assert {each["key"] for each in found["stale"]} == {"tee.manifest", "tee.key.main"}
    assert found["wallet"] is None
    assert {key["state"] for key in desk.json("status", "0")["keys"]} == {"stale"}
    assert desk.json("status", "0", "--at-block", str(before))["keys"][0]["state"] == "valid", "it was then"

    theirs = Desk(desk.chain, key_of(stranger))
    theirs.json("revoke-key", "0")
    theirs.json("publish", "0", "--manifest", MANIFEST)
    assert theirs.json("transfer-check", "0")["clean"] is True
    desk.refuses("publish", "0", *KEY, says="neither the agent's owner nor an operator")


def test_agents_are_found_by_owner_service_and_trust(desk: Desk, stranger: LocalAccount) -> None:
    def file(name: str, service: str, trust: str) -> str:
        document = {
            "type": "https://eips.ethereum.org/EIPS/eip-8004#registration-v1",
            "name": name,
            "services": [{"name": service, "endpoint": "https://summaries.example/"}],
            "supportedTrust": [trust],
        }
        return data_uri(json.dumps(document).encode())

    desk.json("register", "--uri", file("first", "web", "tee-attestation"))
    desk.json("register", "--uri", file("second\x1b[2J", "MCP", "reputation"))
    theirs = Desk(desk.chain, key_of(stranger))
    theirs.json("register", "--uri", "http://127.0.0.1:1/never-followed")

    def ids(*words: str) -> list[int]:
        return [int(each["agent"].rsplit(":", 1)[1]) for each in desk.json("find", *words)["agents"]]

    assert ids() == [2, 1, 0]
    assert ids("--owner", desk.chain.owner) == [1, 0]
    assert ids("--registered-by", stranger.address) == [2]
    assert ids("--service", "mcp") == [1]
    assert ids("--trust", "tee-attestation") == [0]
    assert ids("--service", "web", "--trust", "reputation") == []
    assert ids("--limit", "1") == [2]
    shown = desk.run("find", "--service", "mcp").output
    assert "second" in shown
    assert "\x1b" not in shown


# Keys


def test_an_encrypted_keystore_signs(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text(
        json.dumps(Account.encrypt(bytes.fromhex(desk.key[2:]), "correct horse", kdf="pbkdf2", iterations=2))
    )
    words = ("register", "--uri", URI, "--keystore", str(file))
    desk.refuses(*words, says="use --password-fd or --password-env")
    desk.refuses(*words, "--password-env", "PASSWORD", env={"PASSWORD": "wrong"}, says="another password")
    desk.refuses(*words, "--password-env", "NOWHERE", says="NOWHERE is not set")
    assert desk.json(*words, "--password-env", "PASSWORD", env={"PASSWORD": "correct horse"})["changed"] is True
    read, write = os.pipe()
    os.write(write, b"correct horse\n")
    os.close(write)
    assert desk.json(*words, "--password-fd", str(read))["changed"] is False
    os.close(read)


SIGNER = """
import json, os, sys
from eth_account import Account
from eth_account.messages import encode_typed_data
account = Account.from_key(os.environ["OUTSIDE"])
asked = json.load(sys.stdin)
assert asked["version"] == 1
how = os.environ.get("HOW", "well")
if how == "refuse":
    sys.exit(3)
if how == "nonsense" and asked["action"] != "address":
    print("sure"); sys.exit()
if asked["action"] == "address":
    answer = {"address": account.address}
elif asked["action"] == "sign-transaction":
    fields = {k: v if k in ("to", "data") else int(v, 16) for k, v in asked["transaction"].items()}
    if how == "other receiver":
        fields["to"] = "0x" + "00" * 19 + "01"
    if how == "more gas":
        fields["maxFeePerGas"] += 1
    if how == "other account":
        account = Account.create()
    answer = {"transaction": "0x" + bytes(account.sign_transaction(fields).raw_transaction).hex()}
else:
    signed = account.sign_message(encode_typed_data(full_message=asked["typedData"]))
    answer = {"signature": "0x" + bytes(signed.signature).hex()}
print(json.dumps(answer))
"""


def test_a_program_signs_and_what_it_returns_is_checked(desk: Desk, tmp_path: Path) -> None:
    program = tmp_path / "signer.py"
    program.write_text(SIGNER)
    words = ("register", "--uri", URI, "--signer", f"{sys.executable} {program}")
    for how, says in {
        "refuse": "refused to sign (exit code 3)",
        "nonsense": "no JSON object",
        "other receiver": "its to is not what was asked",
        "more gas": "its maxFeePerGas is not what was asked",
        "other account": "signed as",
    }.items():
        desk.refuses(*words, env={"OUTSIDE": desk.key, "HOW": how}, says=says)
    desk.refuses(*words[:-1], str(tmp_path / "absent"), says="could not be started")
    assert desk.json(*words, env={"OUTSIDE": desk.key})["changed"] is True

    wallet = Account.create()
    consent = ("set-wallet", "0", "--wallet-signer", f"{sys.executable} {program}")
    assert desk.json(*consent, env={"OUTSIDE": key_of(wallet)})["changed"] is True
    assert desk.json("status", "0")["wallet"] == wallet.address.lower()


def test_a_wallet_that_did_not_agree_is_not_set(desk: Desk) -> None:
    desk.json("register", "--uri", URI)
    desk.refuses(
        "set-wallet", "0", "0x" + "12" * 20, "--wallet-key-env", "W", env={"W": key_of(Account.create())},
        says="the new wallet did not sign",
    )  # fmt: skip
    desk.refuses("set-wallet", "0", says="the new wallet signs")


@pytest.mark.parametrize("key", ["", "0x12", "secret-words-of-a-key"])
def test_a_key_that_is_none_is_not_quoted(desk: Desk, key: str) -> None:
    result = desk.run("register", "--uri", URI, env={"TOLLSEAL_AGENT_KEY": key})
    assert result.exit_code == 1
    assert "TOLLSEAL_AGENT_KEY" in result.stderr
    assert not key or key not in result.output


# Bad input


def test_a_wrong_chain_address_or_agent_is_a_sentence(desk: Desk, chain: LocalChain) -> None:
    key = {"TOLLSEAL_AGENT_KEY": desk.key}
    rpc = ("--rpc", chain.rpc)
    registry = chain.identity_registry.lower()
    for words, says in {
        ("status", f"agent:1:{registry}:0"): "serves chain 84532, not chain 1",
        ("status", f"agent:84532:{chain.buyer}:0"): "there is no contract at",
        ("status", f"agent:84532:{chain.token}:0"): "",
        ("status", f"agent:eip155:84532:{registry}:0"): "has no agent 0",
        ("status", "agent:84532:0"): "must be an agent's id",
        ("status", "-1"): "",
        ("status", "0", "--network", "eip155:987654"): "has no canonical registry",
        ("set-uri", f"agent:84532:{registry}:7", "ipfs://x"): "has no agent 7",
    }.items():
        result = CliRunner().invoke(main, ["agent", *words, *rpc], env=key)
        assert result.exit_code in (1, 2), (words, result.output)
        assert says in " ".join(result.output.split()), (words, result.output)
        assert "Traceback" not in result.output


def test_an_account_without_gas_or_rights_or_under_a_cap_sends_nothing(desk: Desk, chain: LocalChain) -> None:
    desk.json("register", "--uri", URI)
    desk.refuses("register", "--uri", "ipfs://b", key=chain.buyer_key, says="insufficient funds")
    desk.refuses("publish", "0", *KEY, key=chain.buyer_key, says="neither the agent's owner nor an operator")
    desk.refuses("publish", "0", *KEY, "--max-fee-gwei", "0.000000001", says="the cap is 1")
    desk.refuses("publish", "0", *KEY, "--max-gas", "21000", says="the cap is 21000")
    desk.refuses("publish", "0", *KEY[:-2], says="together")
    desk.refuses("publish", "0", says="name what to publish")
    desk.refuses("publish", "0", "--manifest", "11", says="sha256:<64")
    desk.refuses("publish", "0", *KEY, "--replica", "No 1", says="1 to 32 characters")
    desk.refuses("register", "--uri", URI, "--eth-price", "1e3", says="not a plain decimal")


def test_without_a_node_the_canonical_registry_is_known_and_the_node_is_asked_for(desk: Desk) -> None:
    result = CliRunner().invoke(main, ["agent", "status", "0"], env={"TOLLSEAL_RPC": ""})
    assert result.exit_code == 2
    assert "--rpc" in result.output


def test_on_a_known_chain_the_canonical_address_is_the_default(desk: Desk, anvil: Anvil) -> None:
    node = Deployer(anvil.rpc, Account.create())
    code = node.w3.eth.get_code(node.w3.to_checksum_address(desk.chain.identity_registry))
    canonical = TESTNET_REGISTRIES.identity
    node.anvil("anvil_setCode", canonical, code.to_0x_hex())
    try:
        result = CliRunner().invoke(
            main,
            ["agent", "register", "--uri", URI, "--json", "--rpc", anvil.rpc],
            env={"TOLLSEAL_AGENT_KEY": desk.key},
        )
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["agent"].startswith(f"eip155:84532:{canonical}:")
    finally:
        node.anvil("anvil_setCode", canonical, "0x")
