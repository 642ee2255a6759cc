"""What the chain says, asked by hand: raw JSON-RPC calls, and none of the product's readers."""

from typing import Any

import httpx
from eth_abi.abi import decode, encode
from eth_utils.crypto import keccak


class Node:
    """A JSON-RPC node."""

    def __init__(self, rpc: str) -> None:
        self.rpc = rpc

    def ask(self, method: str, *params: Any) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = httpx.post(self.rpc, json=request, timeout=10, trust_env=False).json()
        assert "error" not in answer, answer
        return answer["result"]

    def call(self, contract: str, signature: str, answer: str, *arguments: Any) -> Any:
        """A view function's only return value, such as call(token, "balanceOf(address)", "uint256", holder)."""
        types = [kind for kind in signature.partition("(")[2][:-1].split(",") if kind]
        data = keccak(text=signature)[:4] + encode(types, arguments)
        result = self.ask("eth_call", {"to": contract, "data": "0x" + data.hex()}, "latest")
        return decode([answer], bytes.fromhex(result[2:]))[0]


class Token(Node):
    """An ERC-20 token with EIP-3009."""

    def __init__(self, rpc: str, address: str) -> None:
        super().__init__(rpc)
        self.address = address

    def balance_of(self, holder: str) -> int:
        return int(self.call(self.address, "balanceOf(address)", "uint256", holder))


class Registry(Node):
    """An ERC-8004 identity registry."""

    def __init__(self, rpc: str, address: str) -> None:
        super().__init__(rpc)
        self.address = address

    def metadata(self, agent_id: int, key: str) -> bytes:
        return bytes(self.call(self.address, "getMetadata(uint256,string)", "bytes", agent_id, key))

    def token_uri(self, agent_id: int) -> str:
        return str(self.call(self.address, "tokenURI(uint256)", "string", agent_id))

    def owner_of(self, agent_id: int) -> str:
        return str(self.call(self.address, "ownerOf(uint256)", "address", agent_id))

    def agents(self) -> int:
        """How many agents were ever registered: one event each."""
        topic = "0x" + keccak(text="Registered(uint256,string,address)").hex()
        found = self.ask("eth_getLogs", {"address": self.address, "topics": [topic], "fromBlock": "0x0"})
        return len(found)
