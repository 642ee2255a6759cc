"""`tollseal summarize`, and the options by which a buyer says what he is willing to pay."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount

from attestation import purchase as purchases
from attestation.bundle import Bundle
from attestation.buying import Buyer, NotAcceptedError, Purchase, StreamBrokenError
from attestation.checker import problem_text
from attestation.client import PURCHASE, PayingTransport
from attestation.commands import (
    allow_simulated_option,
    complain,
    http_url,
    json_option,
    policy_option,
    print_json,
    rpc_option,
    run,
    with_consent,
)
from attestation.devstack import local_stack
from attestation.encoding import address
from attestation.errors import MalformedError
from attestation.event_stream import DONE, EventReader, parse_event
from attestation.http_signature import is_stream
from attestation.money import format_amount, parse_amount
from attestation.policy import Policy
from attestation.registry.view import ChainReader
from attestation.spend_ledger import SpendLedger
from attestation.spending import KNOWN_ASSETS, USD_DECIMALS, Asset, SpendingLimit
from attestation.terminal import console, print_fields, print_verdict, printable

BUYER_KEY: Final = "TOLLSEAL_BUYER_KEY"
DEFAULT_MAX_PRICE: Final = "0.10"
DEFAULT_MAX_PER_DAY: Final = "5.00"
ANSWER_TIMEOUT_SECONDS: Final = 900
STREAM_ATTEMPTS: Final = 4
"""How often a stream that broke off is asked for again, with the same payment, before the command ends."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _amount(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        if value is not None:
            parse_amount(value, USD_DECIMALS if parameter.name != "max_price" else 6)
    except MalformedError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _addresses(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(address(value, "address") for value in values)
    except MalformedError as error:
        raise click.BadParameter(str(error)) from error


def _assets(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Asset, ...]:
    found = []
    for value in values:
        network, _, token = value.rpartition(":")
        try:
            found.append(Asset(network, address(token, "--asset")))
        except MalformedError as error:
            raise click.BadParameter(str(error)) from error
    return tuple(found)


def _ledger_path() -> Path:
    """Where the XDG base directory specification puts a user's data; a relative path there is to be ignored."""
    home = Path(os.environ.get("XDG_DATA_HOME") or "")
    return (home if home.is_absolute() else Path.home() / ".local" / "share") / "tollseal" / "spend.db"


ledger_option = click.option(
    "--ledger",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="TOLLSEAL_BUYER_LEDGER",
    default=_ledger_path,
    show_default="spend.db in the user's data directory",
    metavar="FILE",
    help="What was spent, and what is not answered yet.",
)
_TOTALS: Final = (
    click.option(
        "--max-per-day",
        envvar="TOLLSEAL_BUYER_MAX_PER_DAY",
        default=DEFAULT_MAX_PER_DAY,
        show_default=True,
        callback=_amount,
        metavar="USD",
        help="Spend at most this much in any 24 hours.",
    ),
    click.option(
        "--max-total",
        envvar="TOLLSEAL_BUYER_MAX_TOTAL",
        callback=_amount,
        metavar="USD",
        help="Spend at most this much in all.",
    ),
)
_PURCHASE: Final = (
    click.option(
        "--max-price",
        envvar="TOLLSEAL_BUYER_MAX_PRICE",
        default=DEFAULT_MAX_PRICE,
        show_default=True,
        callback=_amount,
        metavar="USD",
        help="Pay at most this much for one call.",
    ),
    *_TOTALS,
    click.option(
        "--asset",
        "assets",
        envvar="TOLLSEAL_BUYER_ASSETS",
        multiple=True,
        callback=_assets,
        metavar="NETWORK:ADDRESS",
        help="Also pay in this 6-decimal USD token.",
    ),
    click.option(
        "--network",
        "networks",
        envvar="TOLLSEAL_BUYER_NETWORKS",
        multiple=True,
        metavar="NETWORK",
        help="Pay on this network only.",
    ),
    click.option(
        "--pay-to",
        "payees",
        envvar="TOLLSEAL_BUYER_PAYEES",
        multiple=True,
        callback=_addresses,
        metavar="ADDRESS",
        help="Pay this address only.",
    ),
)


def _options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


total_options = _options(*_TOTALS)
purchase_options = _options(*_PURCHASE)


def _place(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not os.access(value.parent, os.W_OK | os.X_OK):
        raise click.BadParameter(f"nothing can be written into {value.parent}")
    return value


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--url", required=True, callback=http_url, help="Where the service is.")
@click.option("--style", type=click.Choice(["paragraph", "bullets", "headline"]), help="Form of the summary.")
@click.option("--max-words", type=int, help="Limit that the model is told.")
@click.option("--language", help="ISO 639-1 code of the summary's language.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=_place,
    metavar="BUNDLE",
    help="Keep the proof here.",
)
@click.option("--stream", is_flag=True, help="Show the text as it arrives; it is unverified until its end.")
@purchase_options
@ledger_option
@rpc_option
@policy_option
@allow_simulated_option
@json_option
def summarize(file: Any, url: str, save: Path | None, stream: bool, max_price: str, max_per_day: str,
              max_total: str | None, assets: tuple[Asset, ...], networks: tuple[str, ...], payees: tuple[str, ...],
              ledger: Path, rpc: str | None, policy: Policy | None, allow_simulated: bool, as_json: bool,
              **options: Any) -> None:  # fmt: skip
    """Buy a summary of FILE ("-" for standard input).

    The service is checked before anything is sent to it, its terms before anything is paid, and the answer before it is
    shown. The key that pays comes from TOLLSEAL_BUYER_KEY.

    A payment that was signed and not answered is sent again by the next call with the same request; nothing is paid
    twice for one answer. `tollseal spend` shows what was paid.
    """
    if stream and as_json:
        raise click.UsageError("--stream shows text as it arrives, --json prints one document: choose one")
    try:
        document = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError("FILE is not UTF-8 text") from error
    stack = local_stack(url)
    known = [*KNOWN_ASSETS, *assets]
    if stack:
        known.append(Asset(f"eip155:{stack.chain_id}", stack.token.lower()))
    accepted = tuple(asset for asset in known if not networks or asset.network in networks)
    rpc = rpc or (stack.rpc if stack else None)
    progress = console(stderr=True)
    account = _buyer_account()

    async def work() -> int:
        buyer = Buyer(
            account=account,
            limit=SpendingLimit(max_price, accepted, per_day=max_per_day, total=max_total, payees=payees),
            policy=with_consent(policy, allow_simulated=allow_simulated).requiring_chain(),
            chain=ChainReader(rpc) if rpc else None,
            ledger=SpendLedger.open(ledger),
            keep=lambda purchase: _show_and_keep(purchase, save, as_json=as_json),
            progress=lambda words: None if as_json else progress.print(f"[dim]{words} ...[/dim]"),
        )
        body = {"document": document, **{name: value for name, value in options.items() if value is not None}}
        buy = _stream if stream else _summarize
        try:
            return await buy(buyer, f"{url.rstrip('/')}/v1/summarize", body, as_json=as_json)
        except NotAcceptedError as error:
            if as_json:
                print_json({"error": str(error), **error.verdict.to_json()})
            else:
                print_verdict(console(), error.verdict)
                complain(f"{error}; do not rely on what was shown" if stream and error.bundle else error)
            if error.bundle is not None:
                _save(error.bundle, save)
            return error.verdict.exit_code

    run(work(), as_json=as_json)


async def _summarize(buyer: Buyer, url: str, body: dict[str, Any], *, as_json: bool) -> int:
    async with httpx.AsyncClient(transport=PayingTransport(buyer), timeout=ANSWER_TIMEOUT_SECONDS) as http:
        response = await http.post(url, json=body)
    return _outcome(response, as_json=as_json)


async def _stream(buyer: Buyer, url: str, body: dict[str, Any], *, as_json: bool) -> int:
    async with httpx.AsyncClient(transport=PayingTransport(buyer), timeout=ANSWER_TIMEOUT_SECONDS) as http:
        for attempt in range(1, STREAM_ATTEMPTS + 1):
            try:
                async with http.stream("POST", url, json={**body, "stream": True}) as response:
                    await _show_stream(response)
                return _outcome(response, as_json=as_json)
            except StreamBrokenError as error:
                click.echo()
                if attempt == STREAM_ATTEMPTS:
                    raise
                complain(f"{error}\nWhat was shown is not verified. Asking again, with the same payment ...")
                await buyer.sleep(2**attempt)
    raise AssertionError("the last attempt returns or raises")


async def _show_stream(response: httpx.Response) -> None:
    """Show the text of a stream while it arrives. The transport verifies it at the end."""
    if not is_stream(response.headers):
        await response.aread()
        return
    complain("What follows is shown as it arrives and is not verified before its end.")
    reader, readable = EventReader(), True
    async for chunk in response.aiter_bytes():
        try:
            for data in reader.feed(chunk) if readable else ():
                if data != DONE:
                    click.echo(printable(str(parse_event(data).get("delta", "")), lines=True), nl=False)
        except MalformedError:
            readable = False  # nothing to show; what it is worth is said at the end


def _outcome(response: httpx.Response, *, as_json: bool) -> int:
    purchase = response.extensions.get(PURCHASE)
    if isinstance(purchase, Purchase):
        return purchase.verdict.exit_code
    message = f"the service refused: {problem_text(response.status_code, response.content)}"
    if as_json:
        print_json({"error": message, "status": response.status_code})
    else:
        complain(message)
    return 1


def _show_and_keep(purchase: Purchase, save: Path | None, *, as_json: bool) -> str | None:
    # Shown first: a full disk must not cost the buyer what was paid for.
    _show_purchase(purchase, save, as_json=as_json)
    return _save(purchase.bundle, save)


def _save(bundle: Bundle, save: Path | None) -> str | None:
    if save is None:
        return None
    save.write_text(bundle.dumps(), encoding="utf-8")
    return str(save.absolute())


def _show_purchase(purchase: Purchase, save: Path | None, *, as_json: bool) -> None:
    payment = purchases.parse_payment(purchase.bundle.answer)
    transaction = purchases.parse_settlement(purchase.bundle.answer).transaction
    streamed = is_stream(purchase.bundle.answer.headers)
    answer = {} if streamed else json.loads(purchase.bundle.answer.body)
    if as_json:
        paid = {
            "network": payment.network,
            "asset": payment.asset,
            "pay_to": payment.pay_to,
            "payer": payment.payer,
            "amount": str(payment.amount),
            "transaction": transaction,
        }
        saved = None if save is None else str(save)
        print_json({"answer": answer, "payment": paid, "bundle": saved, **purchase.verdict.to_json()})
        return
    out = console()
    if streamed:
        out.print("\n\nThe stream is complete, and was checked:")
    else:
        out.print(printable(str(answer.get("summary", "")), lines=True), markup=False)
        out.print()
    print_fields(out, [("paid", f"{format_amount(payment.amount, 6)} USD"), ("transaction", transaction)])
    print_verdict(out, purchase.verdict)


def _buyer_account() -> LocalAccount:
    key = os.environ.get(BUYER_KEY)
    if not key:
        raise click.UsageError(f"set {BUYER_KEY} to the private key that pays (0x and 64 hex digits)")
    try:
        account: LocalAccount = Account.from_key(key)
    except Exception:
        # The library's message may quote the key.
        raise click.UsageError(f"{BUYER_KEY} is not a private key (0x and 64 hex digits)") from None
    return account
