"""Transactions survive shared accounts, slow, limiting, lying and reorganised nodes; nothing is half-written."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from eth_account import Account

from attestation.registry import rpc
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import (
    AgentChoiceError,
    NonceTakenError,
    RateLimitedError,
    RpcError,
    UnconfirmedError,
    UnknownAgentError,
)
from attestation.registry.publication import ensure_agent
from attestation.registry.writer import IdentityWriter
from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, LocalChain
from tests.rpcproxy import Node, node_between, rpc_error

URI = "https://summaries.example/.well-known/agent-registration.json"


@pytest_asyncio.fixture
async def node(chain: LocalChain) -> AsyncIterator[Node]:
    async with node_between(chain.rpc) as node:
        yield node


@pytest_asyncio.fixture
async def reader(chain: LocalChain, node: Node) -> AsyncIterator[IdentityReader]:
    """The registry through the node in between."""
    async with IdentityReader(node.url, chain.chain_id, chain.identity_registry, timeout=5) as reader:
        yield reader


@pytest.fixture
def owner(chain: LocalChain, reader: IdentityReader) -> IdentityWriter:
    return IdentityWriter(reader, Account.from_key(chain.owner_key), receipt_timeout=5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_FIRST_PAUSE", 0.01)


def writer(reader: IdentityReader, key: str, **more: Any) -> IdentityWriter:
    return IdentityWriter(reader, Account.from_key(key), receipt_timeout=20, **more)


# One account, several processes


async def test_many_processes_write_with_one_account(chain: LocalChain, reader: IdentityReader) -> None:
    await writer(reader, chain.owner_key).register(URI)
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            # A writer each: they share an account and no lock.
            group.create_task(writer(reader, chain.owner_key).set_metadata(0, f"k{number}", bytes([number + 1])))
    for number in range(6):
        assert await reader.get_metadata(0, f"k{number}") == bytes([number + 1])


async def test_a_taken_nonce_is_not_sent_with_when_it_was_named(owner: IdentityWriter, reader: IdentityReader) -> None:
    nonce = await owner.settled_nonce()
    await owner.register(URI)
    with pytest.raises(NonceTakenError, match="took its place"):
        await owner.register(URI, nonce=nonce)
    with pytest.raises(UnknownAgentError):
        await reader.owner_of(1)


@pytest.mark.parametrize("own_accounts", [False, True], ids=["one account", "an account each"])
async def test_processes_that_start_at_the_same_moment_use_one_agent(
    chain: LocalChain, reader: IdentityReader, own_accounts: bool
) -> None:
    keys = [chain.operator_key] * 4
    if own_accounts:
        owner, keys = writer(reader, chain.owner_key), []
        for _ in range(3):
            account = Account.create()
            Deployer(chain.rpc, account).fund(account.address)
            await owner.set_operator(account.address, approved=True)
            keys.append("0x" + bytes(account.key).hex())
    found = await asyncio.gather(
        *(ensure_agent(writer(reader, key), agent_uri=URI, owner=chain.owner, mint=True) for key in keys)
    )
    assert len({each.agent_id for each in found}) == 1
    kept = found[0].agent_id
    assert await reader.token_uri(kept) == URI
    for each in found:
        if each.withdrawn is not None:
            assert own_accounts
            assert each.withdrawn > kept
            assert await reader.token_uri(each.withdrawn) == ""
    # And whoever comes later finds the same.
    again = await ensure_agent(writer(reader, keys[-1]), agent_uri=URI, owner=chain.owner, mint=True)
    assert (again.agent_id, again.transactions) == (kept, ())


async def test_a_gift_of_an_agent_with_our_uri_is_not_taken_for_ours(
    chain: LocalChain, reader: IdentityReader, stranger: Any
) -> None:
    giver = IdentityWriter(reader, stranger)
    await giver.register(URI)
    await giver.transfer(0, chain.owner)
    with pytest.raises(AgentChoiceError):
        await ensure_agent(writer(reader, chain.operator_key), agent_uri=URI, owner=chain.owner)


# Nodes that misbehave


async def test_a_node_that_limits_is_asked_again_when_it_says(reader: IdentityReader, node: Node) -> None:
    limited = [1, 1]
    node.refuse = lambda _: (
        web.Response(status=429, headers={"retry-after": "0"}) if limited and limited.pop() else None
    )
    await reader.check()
    assert len(node.asked) == 4  # two refusals, the chain id, the code


@pytest.mark.parametrize("body", [True, False], ids=["as JSON-RPC", "as HTTP"])
async def test_a_node_that_goes_on_limiting_is_a_sentence_and_not_asked_for_smaller_pieces(
    chain: LocalChain, owner: IdentityWriter, reader: IdentityReader, node: Node, body: bool
) -> None:
    await owner.register(URI)
    node.asked.clear()

    def limit(asked: dict[str, Any]) -> web.Response | None:
        if asked["method"] != "eth_getLogs":
            return None
        if body:
            return rpc_error(asked, 429, "Too Many Requests")
        return web.Response(status=429, headers={"retry-after": "3600"})

    node.refuse = limit
    with pytest.raises(RateLimitedError, match="limits how often") as caught:
        await reader.last_transfer(0)
    assert caught.value.seconds == (None if body else 3600)
    assert node.asked.count("eth_getLogs") == 1


async def test_logs_come_in_pieces_that_the_node_serves(
    chain: LocalChain, anvil: Anvil, owner: IdentityWriter, reader: IdentityReader, node: Node
) -> None:
    sent = (await owner.register(URI, {"colour": b"red"})).sent
    Deployer(anvil.rpc, Account.create()).anvil("anvil_mine", hex(120))
    sizes: list[int] = []

    def miserly(asked: dict[str, Any]) -> web.Response | None:
        if asked["method"] != "eth_getLogs":
            return None
        low, high = (int(asked["params"][0][name], 16) for name in ("fromBlock", "toBlock"))
        sizes.append(high - low + 1)
        return rpc_error(asked, -32005, "block range too large") if high - low + 1 > 40 else None

    node.refuse = miserly
    found = await reader.last_metadata_set(0, "colour")
    assert found is not None
    assert found.block == sent.block
    served = [size for size in sizes if size <= 40]
    assert max(served) > min(served), "pieces grow again where that is possible"


async def test_a_hiccup_while_waiting_changes_nothing(
    owner: IdentityWriter, reader: IdentityReader, node: Node
) -> None:
    failures = [0] * 4
    node.refuse = lambda asked: (
        web.Response(status=500) if asked["method"] == "eth_getTransactionReceipt" and failures and not failures.pop()
        else None
    )  # fmt: skip
    assert (await owner.register(URI)).agent_id == 0


async def test_a_receipt_of_another_transaction_is_not_believed(
    owner: IdentityWriter, reader: IdentityReader, node: Node
) -> None:
    def lie(asked: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        if asked["method"] == "eth_getTransactionReceipt" and answer.get("result"):
            answer["result"]["from"] = "0x" + "12" * 20
        return answer

    node.rewrite = lie
    quick = IdentityWriter(reader, owner.sender.signer, receipt_timeout=1)
    with pytest.raises(UnconfirmedError):
        await quick.register(URI)


async def test_a_receipt_for_what_was_never_mined_is_not_believed(
    chain: LocalChain, reader: IdentityReader, node: Node, owner: IdentityWriter
) -> None:
    """The node swallows the transaction and shows a receipt, which names a block that does not have it."""
    await owner.register(URI)
    made: dict[str, str] = {}

    def swallow(asked: dict[str, Any]) -> web.Response | None:
        if asked["method"] == "eth_sendRawTransaction":
            return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": "0x" + "00" * 32})
        if asked["method"] == "eth_getTransactionReceipt":
            made["hash"] = asked["params"][0]
            receipt = {
                "transactionHash": asked["params"][0], "blockHash": "0x" + "11" * 32, "blockNumber": "0x1",
                "from": chain.owner.lower(), "to": chain.identity_registry.lower(), "status": "0x1", "gasUsed": "0x1",
                "cumulativeGasUsed": "0x1", "logs": [], "logsBloom": "0x" + "00" * 256, "transactionIndex": "0x0",
                "contractAddress": None, "effectiveGasPrice": "0x1", "type": "0x2",
            }  # fmt: skip
            return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": receipt})
        return None

    node.refuse = swallow
    quick = IdentityWriter(reader, owner.sender.signer, receipt_timeout=1)
    with pytest.raises(UnconfirmedError):
        await quick.set_metadata(0, "k", b"v")


async def test_a_block_that_is_replaced_is_waited_for_again(
    chain: LocalChain, anvil: Anvil, reader: IdentityReader, node: Node
) -> None:
    """The block with the transaction is rolled back, and the transaction is mined again in another one."""
    real, raw = Deployer(anvil.rpc, Account.create()), []

    def note(asked: dict[str, Any]) -> None:
        if asked["method"] == "eth_sendRawTransaction":
            raw.append(asked["params"][0])

    node.refuse = note
    patient = writer(reader, chain.owner_key, confirmations=2)
    registering = asyncio.create_task(patient.register(URI))
    await until(lambda: bool(raw) and transactions(real, patient.address) > before(real, patient.address, 1))
    await asyncio.to_thread(real.anvil, "anvil_rollback", 1)
    done, _ = await asyncio.wait([registering], timeout=1)
    assert not done, "it counts only with a block after its own"
    await asyncio.to_thread(real.w3.eth.send_raw_transaction, raw[0])
    await asyncio.to_thread(real.anvil, "anvil_mine", "0x1")
    assert (await registering).agent_id == 0
    assert len(raw) == 1, "nothing was sent twice"


def transactions(node: Deployer, account: str, block: str | int = "latest") -> int:
    return int(node.w3.eth.get_transaction_count(node.w3.to_checksum_address(account), block))  # type: ignore[arg-type]


def before(node: Deployer, account: str, blocks: int) -> int:
    return transactions(node, account, int(node.w3.eth.block_number) - blocks)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a node can only be asked
            await asyncio.sleep(0.05)


async def test_confirmations_are_waited_for(chain: LocalChain, anvil: Anvil, reader: IdentityReader) -> None:
    node = Deployer(anvil.rpc, Account.create())
    patient = writer(reader, chain.owner_key, confirmations=3)
    registering = asyncio.create_task(patient.register(URI))
    done, _ = await asyncio.wait([registering], timeout=1.5)
    assert not done
    await asyncio.to_thread(node.anvil, "anvil_mine", "0x2")
    assert (await registering).agent_id == 0


async def test_a_transaction_that_loses_its_place_is_made_anew(
    chain: LocalChain, anvil: Anvil, reader: IdentityReader
) -> None:
    """Another process with the account replaces the pending transaction with a dearer one of its own."""
    owner = writer(reader, chain.owner_key)
    await owner.register(URI)
    node = Deployer(anvil.rpc, Account.from_key(chain.owner_key))
    await asyncio.to_thread(node.anvil, "evm_setAutomine", False)
    try:
        writing = asyncio.create_task(owner.set_metadata(0, "k", b"v"))
        account = node.account.address
        await until(lambda: transactions(node, account, "pending") > transactions(node, account))
        other: dict[str, Any] = {
            "to": chain.buyer, "value": 0, "gas": 21_000, "chainId": chain.chain_id, "type": 2,
            "maxFeePerGas": 10**12, "maxPriorityFeePerGas": 10**12,
            "nonce": node.w3.eth.get_transaction_count(node.account.address),
        }  # fmt: skip
        node.w3.eth.send_raw_transaction(node.account.sign_transaction(other).raw_transaction)
    finally:
        await asyncio.to_thread(node.anvil, "evm_setAutomine", True)
        await asyncio.to_thread(node.anvil, "evm_mine")
    await writing
    assert await reader.get_metadata(0, "k") == b"v"


async def test_a_node_that_is_slow_is_not_waited_for_for_ever(chain: LocalChain, node: Node) -> None:
    async with IdentityReader(node.url, chain.chain_id, chain.identity_registry, timeout=0.05) as hasty:
        node.down = True
        with pytest.raises(RpcError):
            await hasty.check()
