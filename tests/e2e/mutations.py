"""Changes to a saved bundle: every value in it, also inside the JSON texts that bodies and headers carry."""

import base64
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

BODIES: tuple[Path, ...] = (
    ("attestation", "response", "body"),
    ("manifest", "response", "body"),
    ("terms", "request", "body"),
    ("terms", "response", "body"),
    ("answer", "request", "body"),
    ("answer", "response", "body"),
)
"""Where a bundle holds JSON as text."""

HEADERS: tuple[Path, ...] = (
    ("terms", "response", "headers", "payment-required"),
    ("answer", "request", "headers", "payment-signature"),
    ("answer", "response", "headers", "payment-response"),
    ("answer", "response", "headers", "x-receipt"),
)
"""Where a bundle holds JSON as base64, the last one as base64url without padding."""

EXPECTED: dict[Path, set[str]] = {
    ("format",): {"bundle.format"},
    ("attestation",): {"evidence.genuine", "keyset.binding"},
    ("manifest",): {"build.manifest"},
    ("terms", "request", "body"): {"offer.signature"},  # the terms name the request that they are for
    ("terms",): {"offer.signature"},
    ("answer", "request", "headers"): {"receipt.payment", "payment.receipt"},
    ("answer", "request", "body"): {"receipt.request"},
    ("answer",): {"answer.signature"},
    ("receipt",): {"receipt.signature"},
    ("offer",): {"offer.signature"},
    ("x402_receipt",): {"payment.receipt"},
}
"""Which check must fail first after a change below a path (`bundle.format` may too). The longest path counts."""


@dataclass(frozen=True)
class Mutation:
    """A changed bundle."""

    where: Path
    """The value that was changed, by its path in the bundle, then in the JSON text it holds."""
    what: str
    data: bytes

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.where))}: {self.what}"

    @property
    def expected(self) -> set[str]:
        """The checks that may be the first to fail."""
        prefixes = (self.where[:size] for size in range(len(self.where), 0, -1))
        return next((EXPECTED[prefix] for prefix in prefixes if prefix in EXPECTED), set()) | {"bundle.format"}


def everything(bundle: Any) -> Iterator[Mutation]:
    """Every value changed in several ways; every member renamed, and left out.

    Bodies are hashed as a whole, so two ways do for what is inside them.
    """
    for path, what, changed in _changes(bundle, ways=20):
        yield Mutation(path, what, _dumps(changed))
    for container in (*BODIES, *HEADERS):
        read, write = _codec(container)
        inner = read(_get(bundle, container))
        for path, what, changed in _changes(inner, ways=2 if container in BODIES else 20):
            yield Mutation((*container, *path), what, _dumps(_put(bundle, container, write(changed))))


def same_document(one: bytes, other: bytes) -> bool:
    """Whether two texts are the same JSON document to every reader: they differ in white space and escapes only."""
    try:
        return _dumps(json.loads(one)) == _dumps(json.loads(other))
    except ValueError:
        return False


def with_value(bundle: Any, path: Path, value: Any) -> bytes:
    """The bundle with one value replaced."""
    return _dumps(_put(bundle, path, value))


def with_payment(bundle: Any, path: Path, value: Any) -> bytes:
    """The bundle with one value replaced inside the payment that the buyer sent."""
    read, write = _codec(HEADERS[1])
    return with_value(bundle, HEADERS[1], write(_put(read(_get(bundle, HEADERS[1])), path, value)))


def _changes(document: Any, *, ways: int) -> Iterator[tuple[Path, str, Any]]:
    for path, value in _walk(document):
        if isinstance(value, dict | list):
            continue
        for changed in _other_values(value)[:ways]:
            yield path, f"{value!r:.40} -> {changed!r:.40}", _put(document, path, changed)
    for path, _ in _walk(document):
        if path and isinstance(path[-1], str):
            yield path, "left out", _without(document, path)
            yield path, "renamed", _put(_without(document, path), (*path[:-1], path[-1] + "_"), _get(document, path))


def _walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if path:
        yield path, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index))


def _other_values(value: Any) -> list[Any]:
    """Values that are close to this one and mean something else."""
    if isinstance(value, bool):
        return [not value, None]
    if isinstance(value, int):
        return [value + 1, value - 1, value * 10 + 1, -value - 1, str(value), None]
    if value is None:
        return ["", 0]
    if not value:
        return []  # an empty text has no byte to change
    middle = len(value) // 2
    changed = [
        _flip(value, 0),
        _flip(value, middle),
        _flip(value, len(value) - 1),
        value[:-1],
        value[1:],
        value[:middle] + value[middle + 1 :],
        value + value[-1],
        None,
        [value],
    ]
    return [item for item in changed if item != value]


def _flip(text: str, index: int) -> str:
    return text[:index] + chr(ord(text[index]) ^ 1) + text[index + 1 :]


def _get(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


def _put(document: Any, path: Path, value: Any) -> Any:
    changed = copy.deepcopy(document)
    _get(changed, path[:-1])[path[-1]] = value
    return changed


def _without(document: Any, path: Path) -> Any:
    changed = copy.deepcopy(document)
    del _get(changed, path[:-1])[path[-1]]
    return changed


def _dumps(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")


def _compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))


def _codec(container: Path) -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """How the JSON in a container is read and written."""
    if container in BODIES:
        return json.loads, _compact
    if container[-1] == "x-receipt":
        return (
            lambda text: json.loads(base64.urlsafe_b64decode(text + "==")),
            lambda value: base64.urlsafe_b64encode(_compact(value).encode()).rstrip(b"=").decode(),
        )
    return (
        lambda text: json.loads(base64.b64decode(text)),
        lambda value: base64.b64encode(_compact(value).encode()).decode(),
    )
