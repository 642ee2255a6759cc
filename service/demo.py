"""The whole product in one go: a chain, a service, a buyer, a proof; then everything is stopped again."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
from eth_account import Account
from rich.console import Console

from attestation import purchase as purchases
from attestation.checker import problem_text
from attestation.client import PURCHASE, Buyer, NotAcceptedError, PayingTransport, Purchase
from attestation.devstack import DevStack
from attestation.errors import ServiceError
from attestation.money import format_amount
from attestation.policy import Policy
from attestation.registry.payments import PaymentReader
from attestation.registry.view import ChainReader
from attestation.report import agent_of
from attestation.spending import Asset, SpendingLimit
from attestation.terminal import console, print_fields, print_verdict, printable
from service.app import Service
from service.inference.weights import FetchProgress
from service.localchain.stack import local_stack

MAX_PRICE: Final = "0.10"
ANSWER_TIMEOUT_SECONDS: Final = 900
BUNDLE: Final = "demo-bundle.json"


class Reporter(Protocol):
    """Is told what is going on."""

    def __call__(self, words: str) -> None: ...

    def fetching(self, step: FetchProgress) -> None: ...


async def run_demo(
    file: Path | None, *, model: str, threads: int, cache_dir: Path, state_dir: Path, reporter: Reporter
) -> int:
    """Buy a summary of `file` (or of the text that comes with the package) on a stack of its own.

    Returns:
        The exit code: 0 when the answer was bought and every check that can pass on simulated hardware passed.
    """
    name, document = _document(file)
    async with local_stack(
        model=model,
        state_dir=state_dir,
        cache_dir=cache_dir,
        threads=threads,
        report=reporter,
        progress=reporter.fetching,
        port=0,
    ) as (stack, _, service):
        out = console()
        _show_start(out, stack, service, name, document)
        async with PaymentReader(stack.rpc, stack.chain_id) as chain:
            before = await chain.balance_of(stack.token, stack.pay_to)
            bought = await _buy(stack, document, reporter)
            if bought is None:
                return 1
            purchase, answer = bought
            received = await chain.balance_of(stack.token, stack.pay_to) - before
        bundle = state_dir / BUNDLE
        _save(purchase, bundle)
        _show_purchase(out, purchase, answer, received)
        print_verdict(out, purchase.verdict)
        print_fields(out, [("proof", f"{bundle}: tollseal verify {bundle} --allow-simulated")])
        return purchase.verdict.exit_code


async def _buy(stack: DevStack, document: str, report: Callable[[str], None]) -> tuple[Purchase, dict[str, Any]] | None:
    """The purchase and the answer; None after the reason why there is none has been shown."""
    buyer = Buyer(
        account=Account.from_key(stack.buyer_key),
        limit=SpendingLimit(MAX_PRICE, (Asset(f"eip155:{stack.chain_id}", stack.token.lower()),)),
        policy=Policy(allow_simulated=True).requiring_chain(),
        chain=ChainReader(stack.rpc),
        progress=report,
    )
    try:
        async with httpx.AsyncClient(transport=PayingTransport(buyer), timeout=ANSWER_TIMEOUT_SECONDS) as http:
            response = await http.post(f"{stack.url}/v1/summarize", json={"document": document})
    except NotAcceptedError as error:
        print_verdict(console(), error.verdict)
        raise
    purchase = response.extensions.get(PURCHASE)
    if not isinstance(purchase, Purchase):
        raise ServiceError(f"the service refused: {problem_text(response.status_code, response.content)}")
    return purchase, response.json()


def _document(file: Path | None) -> tuple[str, str]:
    if file is None:
        return "the text that comes with Tollseal", files("service").joinpath("demo.txt").read_text("utf-8")
    try:
        return str(file), file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ServiceError(f"{file} is not UTF-8 text") from error


def _show_start(out: Console, stack: DevStack, service: Service, name: str, document: str) -> None:
    model = service.backend.identity
    out.print()
    print_fields(
        out,
        [
            ("chain", f"anvil, id {stack.chain_id}, {stack.rpc}"),
            ("model", f"{model.name}, weights sha256:{model.weights_sha256}"),
            ("service", f"{stack.url}, keys born in a {service.enclave.tee_type} enclave"),
            ("build", service.identity.manifest_digest),
            ("document", f"{name}, {len(document.split())} words"),
        ],
    )
    out.print()


def _show_purchase(out: Console, purchase: Purchase, answer: dict[str, Any], received: int) -> None:
    terms = purchases.parse_terms(purchase.bundle.terms)
    payment = purchases.parse_payment(purchase.bundle.answer)
    settlement = purchases.parse_settlement(purchase.bundle.answer)
    usage = answer["usage"]
    accept = terms.accepts[purchase.bundle.offer["acceptIndex"]]
    price = f"{format_amount(int(accept['amount']), 6)} USD ({accept['amount']} units of {accept['asset']})"
    print_fields(out, [("terms", f"{price} on {accept['network']}, signed by the service")])
    out.print()
    out.print(printable(str(answer["summary"]), lines=True), markup=False)
    out.print()
    print_fields(
        out,
        [
            ("paid", f"{format_amount(payment.amount, 6)} USD; the seller's balance grew by {received} units"),
            ("transaction", settlement.transaction),
            ("agent", str(agent_of(purchase.bundle.attestation))),
            ("receipt", str(purchase.bundle.receipt["receipt_id"])),
            (
                "tokens",
                f"{usage['prompt_tokens']} read, {usage['completion_tokens']} written, {answer['finish_reason']}",
            ),
        ],
    )
    out.print()


def _save(purchase: Purchase, path: Path) -> None:
    path.write_text(purchase.bundle.dumps(), encoding="utf-8")
