"""A model that answers at once and always the same, inside the process of the seller."""

from collections.abc import AsyncGenerator, Sequence
from typing import Final

from service.inference.backend import Completion, Delta, GenerationParams, Message, ModelIdentity, TokenCount

MODEL: Final = ModelIdentity("stub-1", "ab" * 32, "measured", 8_192, None, "stub")
ANSWER: Final = Completion(
    "The commission decides in March what becomes of the old terminal.", "stop", 450, 12, b'{"model":"stub-1"}'
)
TOKENS: Final = TokenCount(450, 450)


class StubBackend:
    """See `service.inference.backend.Backend`."""

    uri = "stub:"
    identity = MODEL
    forces_json = True

    async def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        return TOKENS

    async def complete(self, messages: Sequence[Message], params: GenerationParams) -> Completion:
        return ANSWER

    async def stream(
        self, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Delta | Completion, None]:
        yield Delta(ANSWER.text)
        yield ANSWER

    async def health(self) -> None:
        """Always well."""

    async def close(self) -> None:
        """Nothing to close."""
