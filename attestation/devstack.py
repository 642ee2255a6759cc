"""The local stack that `tollseal up` keeps running, as it describes itself in ``.tollseal/dev.json``.

A buyer on the same machine may take the chain's node and the token from there: the file is the buyer's own.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from attestation import encoding
from attestation.errors import TollsealError

FILE: Final = Path(".tollseal") / "dev.json"


@dataclass(frozen=True, slots=True)
class DevStack:
    """Everything a client of a local stack needs. Addresses are as deployed, keys are 0x-prefixed hex."""

    url: str
    rpc: str
    chain_id: int
    token: str
    identity_registry: str
    reputation_registry: str
    validation_registry: str
    agent_id: int
    pay_to: str
    buyer_key: str
    operator_key: str

    def to_json(self) -> dict[str, str | int]:
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises MalformedError or OSError when there is no such description at `path`."""
        document = encoding.as_object(encoding.parse_json(path.read_bytes(), str(path)), str(path))
        encoding.only(document, str(path), set(cls.__annotations__))
        return cls(**document)


def local_stack(url: str | None = None) -> DevStack | None:
    """The running local stack, or the one that serves `url`, if one describes itself in this directory, above it, or in
    the directory that holds the virtual environment."""
    here = Path.cwd()
    for directory in (here, *here.parents, Path(sys.prefix).parent):
        try:
            stack = DevStack.read(directory / FILE)
        except (TollsealError, OSError, TypeError):
            continue
        if url is None or stack.url.rstrip("/") == url.rstrip("/"):
            return stack
    return None
