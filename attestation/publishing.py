"""Files that others read over HTTP: written in one step, named by their own hash."""

from pathlib import Path

from attestation.digest import keccak256
from attestation.fetch import data_uri


def content_hash(data: bytes) -> str:
    """The keccak256 that the registries keep of what a URI holds: 0x and 64 lower-case hex characters."""
    return "0x" + keccak256(data).hex()


def write_file(path: Path, content: bytes) -> None:
    """Replaces a file in one step: a reader, or a start after a crash, finds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.replace(path)


class Publisher:
    """Makes a document readable under a URI.

    Args:
        place: a directory and the URL that it is served under; None puts documents into the URI itself.
    """

    def __init__(self, place: tuple[Path, str] | None = None) -> None:
        self._place = place

    @property
    def inline(self) -> bool:
        """Whether documents go into the URI, and so onto the chain."""
        return self._place is None

    def uri(self, content: bytes) -> str:
        """The URI that `publish` gives. Writes nothing."""
        if self._place is None:
            return data_uri(content)
        return f"{self._place[1].rstrip('/')}/{content_hash(content)}.json"

    def publish(self, content: bytes) -> str:
        """Makes a JSON document readable; gives its URI.

        Raises:
            OSError: the file cannot be written.
        """
        if self._place is not None:
            write_file(self._place[0] / f"{content_hash(content)}.json", content)
        return self.uri(content)
