"""Settling payments: the official SDK's facilitator with 8 threads against ours, on the same kind of chain.

Two chains: one that makes a block for every transaction at once, one that makes a block every two seconds. All payments
of a round are there when its clock starts; it stops when the last one is settled. Fifty payers, each with many
authorisations, pay one recipient; signing is done before. Rounds of both alternate, and the median round counts.

Writes bench/out/settlement.json: {"instant" | "two_second": {"sdk" | "ours": {"settled_per_s", "gas_per_payment"},
"rate_ratio", "gas_ratio"}}.
"""

import asyncio
import json
import secrets
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eth_account import Account
from eth_account.signers.local import LocalAccount
from x402 import x402FacilitatorSync
from x402.mechanisms.evm.exact.facilitator import ExactEvmScheme
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.schemas import PaymentPayload, PaymentRequirements

from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, LocalChain, artifact, deploy
from service.localchain.toolchain import ensure_anvil
from service.payment.authorization import Authorization, match_requirements
from service.payment.evm_rpc import Node, quantity
from service.payment.facilitator import Settled
from service.payment.local import LocalFacilitator
from service.payment.terms import requirements_for
from service.pricing import Asset, Price

ROUNDS: Final = 3
PAYERS: Final = 50
THREADS: Final = 8
AMOUNT: Final = 10_000
OUT: Final = Path(__file__).parent / "out" / "settlement.json"
CACHE: Final = Path.home() / ".cache" / "tollseal"


@dataclass(frozen=True)
class Mode:
    """One kind of chain, and how many payments a round of either facilitator has on it."""

    name: str
    block_seconds: int
    sdk_payments: int
    our_payments: int


MODES: Final = (Mode("instant", 0, 160, 1_000), Mode("two_second", 2, 16, 900))


class Bench:
    """A chain with funded payers."""

    def __init__(self, chain: LocalChain) -> None:
        self.chain = chain
        self.asset = Asset(f"eip155:{chain.chain_id}", chain.token, 6, "USDC", "2", "USDC")
        self.terms = requirements_for(Price(AMOUNT, self.asset, chain.pay_to, max_timeout_seconds=3_600))
        self.payers: list[LocalAccount] = [Account.create() for _ in range(PAYERS)]
        owner = Deployer(chain.rpc, Account.from_key(chain.owner_key))
        token = owner.w3.eth.contract(
            address=owner.w3.to_checksum_address(chain.token), abi=artifact("UsdToken")["abi"]
        )
        for payer in self.payers:
            owner.send(token.functions.mint(payer.address, 10**12))
        # The recipient has been paid before, as every recipient but a new one.
        owner.send(token.functions.mint(chain.pay_to, 1))

    def sign(self, count: int) -> list[Authorization]:
        """Payments of the payers in turn."""
        return [match_requirements(self._pay(self.payers[number % PAYERS]), [self.terms]) for number in range(count)]

    def _pay(self, payer: LocalAccount) -> PaymentPayload:
        message: dict[str, Any] = {
            "from": payer.address,
            "to": self.terms.pay_to,
            "value": AMOUNT,
            "validAfter": int(time.time()) - 600,
            "validBefore": int(time.time()) + 3_600,
            "nonce": secrets.token_bytes(32),
        }
        words = [("from", "address"), ("to", "address"), ("value", "uint256")]
        words += [("validAfter", "uint256"), ("validBefore", "uint256"), ("nonce", "bytes32")]
        domain = {
            "name": self.asset.name,
            "version": self.asset.version,
            "chainId": self.asset.chain_id,
            "verifyingContract": self.terms.asset,
        }
        types = {"TransferWithAuthorization": [{"name": name, "type": kind} for name, kind in words]}
        signed = Account.sign_typed_data(payer.key, domain, types, message)
        texts = {name: str(message[name]) for name in ("value", "validAfter", "validBefore")}
        authorization = {**message, **texts, "nonce": "0x" + message["nonce"].hex()}
        return PaymentPayload(
            accepted=self.terms,
            payload={"authorization": authorization, "signature": "0x" + bytes(signed.signature).hex()},
        )

    async def gas(self, transactions: Sequence[str]) -> int:
        """Gas that these transactions have used together."""
        node = Node(self.chain.rpc)
        receipts = await node.batch([("eth_getTransactionReceipt", [hash_]) for hash_ in sorted(set(transactions))])
        await node.close()
        return sum(quantity(receipt["gasUsed"]) for receipt in receipts)


class Sdk:
    """The SDK's facilitator; each settlement holds a thread until its block."""

    def __init__(self, bench: Bench) -> None:
        operator = Account.create()
        Deployer(bench.chain.rpc, operator).fund(operator.address)
        signer = FacilitatorWeb3Signer("0x" + bytes(operator.key).hex(), bench.chain.rpc)
        self._facilitator = x402FacilitatorSync()
        self._facilitator.register([bench.asset.network], ExactEvmScheme(signer))
        self._threads = ThreadPoolExecutor(THREADS)

    async def settle(self, payments: Sequence[Authorization]) -> list[str]:
        def one(payload: PaymentPayload, terms: PaymentRequirements) -> str:
            settled = self._facilitator.settle(payload, terms)
            assert settled.success, settled
            return str(settled.transaction)

        loop = asyncio.get_running_loop()
        tasks = [
            loop.run_in_executor(self._threads, one, payment.payload, payment.requirements) for payment in payments
        ]
        return list(await asyncio.gather(*tasks))

    async def close(self) -> None:
        self._threads.shutdown()


class Ours:
    """The facilitator of this project."""

    def __init__(self, bench: Bench) -> None:
        self._facilitator = LocalFacilitator(
            rpc_url=bench.chain.rpc, operator_key=bench.chain.operator_key, assets=[bench.asset]
        )

    async def settle(self, payments: Sequence[Authorization]) -> list[str]:
        results = await asyncio.gather(*(self._facilitator.settle(payment) for payment in payments))
        transactions = [result.transaction for result in results if isinstance(result, Settled)]
        assert len(transactions) == len(payments), [result for result in results if not isinstance(result, Settled)][:3]
        return transactions

    async def close(self) -> None:
        await self._facilitator.close()


async def measure(mode: Mode) -> dict[str, Any]:
    """Both facilitators on one chain, in turn."""
    with Anvil(ensure_anvil(CACHE, print)) as node:
        bench = Bench(deploy(node.rpc))
        peers: dict[str, tuple[Sdk | Ours, int]] = {
            "sdk": (Sdk(bench), mode.sdk_payments),
            "ours": (Ours(bench), mode.our_payments),
        }
        for facilitator, _ in peers.values():
            await facilitator.settle(bench.sign(THREADS))
        node.mine_every(mode.block_seconds)
        rates: dict[str, list[float]] = {name: [] for name in peers}
        gas: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(ROUNDS):
            for name, (facilitator, count) in peers.items():
                payments = bench.sign(count)
                started = time.perf_counter()
                transactions = await facilitator.settle(payments)
                rates[name].append(count / (time.perf_counter() - started))
                gas[name].append(await bench.gas(transactions) / count)
        for facilitator, _ in peers.values():
            await facilitator.close()
    result: dict[str, Any] = {
        name: {
            "settled_per_s": round(statistics.median(rates[name]), 1),
            "gas_per_payment": round(statistics.median(gas[name])),
        }
        for name in peers
    }
    result["rate_ratio"] = round(result["ours"]["settled_per_s"] / result["sdk"]["settled_per_s"], 1)
    result["gas_ratio"] = round(result["ours"]["gas_per_payment"] / result["sdk"]["gas_per_payment"], 3)
    return result


async def main() -> None:
    results = {mode.name: await measure(mode) for mode in MODES}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"{'chain':12}{'':6}{'settled/s':>12}{'gas/payment':>14}")
    for mode, result in results.items():
        for name in ("sdk", "ours"):
            print(f"{mode:12}{name:6}{result[name]['settled_per_s']:>12}{result[name]['gas_per_payment']:>14}")
        print(f"{'':12}{'ratio':6}{result['rate_ratio']:>12}{result['gas_ratio']:>14}")
    print(f"median of {ROUNDS} rounds; {PAYERS} payers, one recipient; SDK with {THREADS} threads; {OUT.name}")


if __name__ == "__main__":
    asyncio.run(main())
