"""What holds connections: closed by hand, or by leaving an `async with`."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class AsyncCloseable(ABC):
    """Base of classes with an `aclose` that may be called more than once."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of the connections."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
