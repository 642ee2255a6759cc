"""One whole sale over a real Ollama: paid, answered, with the hash of the weights that computed it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from attestation.client import PURCHASE, PayingTransport, Purchase
from attestation.policy import Policy
from service.inference.weights import VerifiedWeights
from service.localchain.anvil import Anvil
from tests.http.conftest import Stack, buyer_of, running
from tests.http.world import PRICE
from tests.ollama import MODEL, RealOllama

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

POLICY = Policy(allow_simulated=True)
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Name three colours of the sky."}],
    "max_completion_tokens": 12,
}


@pytest_asyncio.fixture(loop_scope="session")
async def shop(anvil: Anvil, real_ollama: RealOllama, tmp_path: Path) -> AsyncIterator[Stack]:
    async with running(
        anvil,
        tmp_path,
        backend=f"ollama:{real_ollama.url}#{MODEL}",
        context_size=4096,
        ollama_models_dir=real_ollama.models_dir,
    ) as stack:
        yield stack


async def test_an_answer_is_sold_with_the_weights_that_computed_it(
    shop: Stack, smollm2_weights: VerifiedWeights
) -> None:
    transport = PayingTransport(buyer_of(shop, POLICY))
    async with httpx.AsyncClient(transport=transport, timeout=60) as http:
        response = await http.post(f"{shop.url}/v1/chat/completions", json=CHAT)
        assert response.status_code == 200, response.text
        purchase = response.extensions[PURCHASE]
        assert isinstance(purchase, Purchase)
    assert purchase.verdict.exit_code == 0
    receipt: Any = purchase.bundle.receipt
    completed = next(event for event in receipt["event_log"] if event["type"] == "inference.completed")
    assert (completed["model"], completed["weights_origin"]) == (MODEL, "measured")
    assert completed["weights_sha256"] == smollm2_weights.file.sha256
    assert 0 < completed["completion_tokens"] <= 12
    assert await shop.earned() == PRICE
