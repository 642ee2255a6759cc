"""`tollseal summarize --stream` shows text as it arrives, says that it is unverified, and what came of it."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation import buyer_cli
from attestation.buying import Buyer, NotAcceptedError, StreamBrokenError
from attestation.client import PayingTransport
from attestation.spend_ledger import SpendLedger, State
from tests.purchases import TOKEN, URL
from tests.sellers import Seller, problem
from tests.unit.test_streamed_purchases import buyer_of, ledger, seller

__all__ = ["ledger", "seller"]  # fixtures


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, seller: Seller, ledger: SpendLedger, tmp_path: Path) -> Any:
    """Runs the command's purchase with this seller at the other end."""
    monkeypatch.setattr(buyer_cli, "PayingTransport", lambda buyer: PayingTransport(buyer, seller))
    buyer: Buyer = buyer_of(
        seller, ledger, keep=lambda purchase: buyer_cli._show_and_keep(purchase, tmp_path / "b.json", as_json=False)
    )

    async def run() -> int:
        return await buyer_cli._stream(buyer, URL, {"document": "A long text."}, as_json=False)

    return run


async def test_the_text_is_shown_and_what_it_is_worth_at_its_end(
    command: Any, ledger: SpendLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command() == 0
    output = capsys.readouterr()
    assert "is not verified before its end" in output.err
    text, _, verdict = output.out.partition("The stream is complete, and was checked:")
    assert text.startswith("one two three")
    assert verdict.splitlines()[-1].startswith("SIMULATED")
    assert "0.01 USD" in verdict
    [entry] = ledger.entries()
    assert (entry.state, entry.asset, entry.bundle) == (State.ANSWERED, TOKEN, str(tmp_path / "b.json"))
    assert (tmp_path / "b.json").exists()


async def test_a_stream_that_breaks_is_asked_for_again(
    command: Any, seller: Seller, capsys: pytest.CaptureFixture[str]
) -> None:
    seller.breaks_after = 1
    assert await command() == 0
    output = capsys.readouterr()
    assert "What was shown is not verified. Asking again, with the same payment" in output.err
    assert output.out.startswith("one \none two three")
    assert (len(set(seller.presented)), len(seller.charged)) == (1, 1)


async def test_a_stream_that_always_breaks_ends_the_command(command: Any, seller: Seller) -> None:
    seller.missing_receipts = 1_000
    with pytest.raises(StreamBrokenError, match="receipt cannot be had"):
        await command()
    assert (len(seller.presented), len(seller.charged)) == (buyer_cli.STREAM_ATTEMPTS, 1)


async def test_a_changed_stream_is_an_error(command: Any, seller: Seller) -> None:
    seller.tamper = lambda body: body.replace(b"two", b"too")
    with pytest.raises(NotAcceptedError):
        await command()


async def test_nothing_reaches_the_terminal_that_could_control_it(
    command: Any, seller: Seller, capsys: pytest.CaptureFixture[str]
) -> None:
    seller.tamper = lambda body: body.replace(b"two", b"\\u001b[31mtwo")
    with pytest.raises(NotAcceptedError):
        await command()
    output = capsys.readouterr()
    assert "[31mtwo" in output.out
    assert "\x1b" not in output.out


async def test_what_is_no_stream_of_events_is_not_shown_and_fails(
    command: Any, seller: Seller, capsys: pytest.CaptureFixture[str]
) -> None:
    seller.tamper = lambda _: b"event: hello\n\n\xff\n\n"
    with pytest.raises(NotAcceptedError):
        await command()
    assert "hello" not in capsys.readouterr().out


async def test_a_service_that_does_not_stream_is_bought_from_all_the_same(
    command: Any, seller: Seller, capsys: pytest.CaptureFixture[str]
) -> None:
    seller.streaming = False
    assert await command() == 0
    assert capsys.readouterr().out.startswith("Short.")


async def test_a_refusal_is_told(
    command: Any, seller: Seller, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return problem(422, "Invalid parameter")

    monkeypatch.setattr(seller, "refusal", refuse)
    assert await command() == 1
    assert "the service refused: Invalid parameter" in capsys.readouterr().err
