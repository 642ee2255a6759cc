"""The count, from outside: what the chain charged, against the answers in the buyers' hands."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from bench.torture.buyers import Purchase
from bench.torture.world import Blockchain
from service.localchain.deploy import LocalChain

AUTHORIZATION_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


@dataclass(slots=True)
class Charges:
    """What the chain executed.

    Attributes:
        transactions: by nonce, the transaction that spent it.
        transfers: how many transfers the seller received, and `received` what they came to in atomic units.
    """

    transactions: dict[str, str]
    transfers: int
    received: int
    twice: int


@dataclass(slots=True)
class Tally:
    """What a scenario came to. It holds when `wrong` is empty."""

    payments: int = 0
    charged: int = 0
    answered: int = 0
    refused: int = 0
    twice: int = 0
    lost: int = 0
    unpaid: int = 0
    """Answers that the chain knows no payment of."""
    wrong: list[str] = field(default_factory=list)


async def charges(blockchain: Blockchain, chain: LocalChain) -> Charges:
    """Read every charge of this chain by its events."""
    asked: dict[str, Any] = {"address": chain.token, "fromBlock": "0x0", "toBlock": "latest"}
    used = await blockchain.ask("eth_getLogs", {**asked, "topics": [AUTHORIZATION_USED]})
    payee = "0x" + chain.pay_to[2:].lower().rjust(64, "0")
    moved = await blockchain.ask("eth_getLogs", {**asked, "topics": [TRANSFER, None, payee]})
    times = Counter(log["topics"][2] for log in used)
    return Charges(
        transactions={log["topics"][2]: log["transactionHash"] for log in used},
        transfers=len(moved),
        received=sum(int(log["data"], 16) for log in moved),
        twice=sum(count - 1 for count in times.values()),
    )


def count(purchases: list[Purchase], charged: Charges, *, price: int) -> Tally:
    """Compare charges with answers, payment by payment. Everything has to be calm by now."""
    tally = Tally(payments=len(purchases), charged=len(charged.transactions), twice=charged.twice)
    known = set()
    for made in purchases:
        known.add(made.payment.nonce)
        transaction = charged.transactions.get(made.payment.nonce)
        tally.answered += bool(made.answers)
        tally.refused += made.refused is not None
        if transaction is not None and not made.answers:
            tally.lost += 1
            tally.wrong.append(f"charged and not answered: {made.payment.nonce} ({made.refused or 'no refusal'})")
        if transaction is None and made.answers:
            tally.unpaid += 1
            tally.wrong.append(f"answered and not charged: {made.payment.nonce}")
        if transaction is None and not made.answers and made.refused is None:
            tally.wrong.append(f"neither answered nor refused: {made.payment.nonce}")
        if transaction is not None and any(answer.transaction != transaction for answer in made.answers):
            tally.wrong.append(f"the receipt names another transaction than the chain: {made.payment.nonce}")
    if strangers := charged.transactions.keys() - known:
        tally.wrong.append(f"{len(strangers)} charges that nobody signed here")
    if charged.twice or charged.transfers != len(charged.transactions):
        tally.wrong.append(f"{charged.transfers} transfers for {len(charged.transactions)} payments")
    if charged.received != price * charged.transfers:
        tally.wrong.append(f"the seller received {charged.received}, not {charged.transfers} times {price}")
    return tally
