"""Puts the contracts on a fresh local chain and makes the accounts that a local stack needs.

Every key is random and dies with the chain. The accounts are apart as they are in production: the owner holds the agent
NFT, the operator pays gas and acts for the owner, the buyer holds dollars and no gas.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import requests
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import HexStr
from web3 import HTTPProvider, Web3
from web3.contract import Contract
from web3.contract.contract import ContractConstructor, ContractFunction
from web3.types import RPCEndpoint, TxParams, TxReceipt

MULTICALL3: Final = Web3.to_checksum_address("0xcA11bde05977b3631167028862bE2a173976CA11")
"""Where Multicall3 lives on public chains, and where payment facilitators look for it."""

DEFAULT_BUYER_BALANCE: Final = 1_000 * 10**6
"""Atomic units of the 6-decimal token: 1,000 USD."""

_GAS_PRICE: Final = Web3.to_wei(10, "gwei")  # above any base fee that a chain with nearly empty blocks reaches
_DEPLOY_GAS: Final = 6_000_000
_GAS_MONEY: Final = 10**20  # 100 ether in wei: more than a development run can burn
_ARTIFACTS: Final = Path(__file__).parent / "artifacts"
_TIMEOUT: Final = 30.0
_GAS_MARGIN: Final = 125
"""Percent of the estimate that is sent along."""


class DeployError(RuntimeError):
    """A contract could not be put on the local chain."""


@dataclass(frozen=True, slots=True)
class LocalChain:
    """A running local chain. Addresses are checksummed, keys are 0x-prefixed 32-byte hex and kept out of `repr`."""

    rpc: str
    chain_id: int
    token: str
    identity_registry: str
    reputation_registry: str
    validation_registry: str
    pay_to: str
    """Receives payments; nobody holds its key."""
    owner: str
    """Holds the agent NFT once it is minted; deployed the token, so its key can also mint dollars."""
    operator: str
    """Pays gas. The owner has made it an operator of all its agents (ERC-721 setApprovalForAll)."""
    buyer: str
    """Holds dollars and no gas money."""
    owner_key: str = field(repr=False)
    operator_key: str = field(repr=False)
    buyer_key: str = field(repr=False)


@cache
def artifact(name: str) -> dict[str, Any]:
    """A compiled contract: contractName, abi, bytecode (creation code, 0x hex), compiler, sourcesSha256.

    Raises:
        DeployError: there is no such artifact.
    """
    path = _ARTIFACTS / f"{name}.json"
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DeployError(f"no compiled contract {name} at {path}: run `node contracts/compile.mjs`") from error


class Deployer:
    """Sends transactions of one account to the local chain and waits for each."""

    def __init__(self, rpc: str, account: LocalAccount) -> None:
        session = requests.Session()
        session.trust_env = False  # a proxy for the internet must not see, or break, what goes to this machine
        self.w3 = Web3(HTTPProvider(rpc, request_kwargs={"timeout": _TIMEOUT}, session=session))
        self.account = account
        self.chain_id = self.w3.eth.chain_id

    def fund(self, address: str, wei: int = _GAS_MONEY) -> None:
        """Sets the gas balance of `address` (anvil only)."""
        self.anvil("anvil_setBalance", address, hex(wei))

    def anvil(self, method: str, *params: object) -> Any:
        """Calls one of anvil's own JSON-RPC methods.

        Raises:
            DeployError: the node answered with an error.
        """
        answer = self.w3.provider.make_request(RPCEndpoint(method), list(params))
        if "error" in answer:
            raise DeployError(f"{method}: {answer['error']}")
        return answer["result"]

    def deploy(self, name: str, *arguments: object) -> Contract:
        """Deploys the compiled contract `name`; returns it bound to its address.

        Raises:
            DeployError: no such artifact, or the constructor failed.
        """
        built = artifact(name)
        factory = self.w3.eth.contract(abi=built["abi"], bytecode=HexStr(built["bytecode"]))
        receipt = self.send(factory.constructor(*arguments), gas=_DEPLOY_GAS)
        address = receipt["contractAddress"]
        if address is None:
            raise DeployError(f"{name}: the receipt names no contract address")
        return self.w3.eth.contract(address=address, abi=built["abi"])

    def send(self, call: ContractFunction | ContractConstructor, *, gas: int | None = None) -> TxReceipt:
        """Signs and sends one call, waits for its receipt.

        Args:
            gas: units of gas to send along; None asks the node for an estimate.

        Raises:
            web3.exceptions.ContractLogicError: the contract refuses (found by the estimate; nothing was sent).
            DeployError: the transaction was mined and failed.
        """
        params: TxParams = {
            "from": self.account.address,
            "nonce": self.w3.eth.get_transaction_count(self.account.address),
            "chainId": self.chain_id,
            "maxFeePerGas": _GAS_PRICE,
            "maxPriorityFeePerGas": _GAS_PRICE,
        }
        if gas is not None:
            params["gas"] = gas
        transaction = cast(dict[str, Any], call.build_transaction(params))
        if gas is None:
            # The block that it lands in has another time than the one of the estimate, and storing that may cost more.
            transaction["gas"] = transaction["gas"] * _GAS_MARGIN // 100
        signed = self.account.sign_transaction(transaction)
        sent = self.w3.eth.send_raw_transaction(signed.raw_transaction)
        receipt = self.w3.eth.wait_for_transaction_receipt(sent, timeout=_TIMEOUT, poll_latency=0.02)
        if receipt["status"] != 1:
            raise DeployError(f"transaction {sent.to_0x_hex()} failed")
        return receipt


def deploy(rpc: str, *, buyer_balance: int = DEFAULT_BUYER_BALANCE) -> LocalChain:
    """Deploys everything on the anvil at `rpc` and gives the buyer `buyer_balance` atomic units of the token.

    Raises:
        DeployError: a contract did not deploy.
    """
    owner, operator, buyer, pay_to = (Account.create() for _ in range(4))
    deployer = Deployer(rpc, owner)
    deployer.fund(owner.address)
    deployer.fund(operator.address)
    token = deployer.deploy("UsdToken")
    identity = deployer.deploy("IdentityRegistry")
    reputation = deployer.deploy("ReputationRegistry", identity.address)
    validation = deployer.deploy("ValidationRegistry", identity.address)
    if not deployer.w3.eth.get_code(MULTICALL3):
        multicall = deployer.deploy("Multicall3")
        deployer.anvil("anvil_setCode", MULTICALL3, deployer.w3.eth.get_code(multicall.address).to_0x_hex())
    deployer.send(token.functions.mint(buyer.address, buyer_balance))
    deployer.send(identity.functions.setApprovalForAll(operator.address, True))
    return LocalChain(
        rpc=rpc,
        chain_id=deployer.chain_id,
        token=token.address,
        identity_registry=identity.address,
        reputation_registry=reputation.address,
        validation_registry=validation.address,
        pay_to=pay_to.address,
        owner=owner.address,
        operator=operator.address,
        buyer=buyer.address,
        owner_key=_key(owner),
        operator_key=_key(operator),
        buyer_key=_key(buyer),
    )


def _key(account: LocalAccount) -> str:
    return "0x" + bytes(account.key).hex()
