"""Which JSON Schemas an answer may be held to.

An engine turns a schema into a grammar, inside this process where the model is embedded. It comes from a stranger, so
it may only use words whose cost is known: no patterns, no long repetitions, nothing that is fetched from elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from attestation.digest import jcs

MAX_SCHEMA_BYTES: Final = 16_384
MAX_PARTS: Final = 200
"""Schemas within a schema, each counted as often as it is referred to: an engine keeps every way open at every token,
and ways multiply."""
MAX_ALTERNATIVES: Final = 20
MAX_CHOICES: Final = 100
MAX_REPEAT: Final = 1_000
"""Items or characters that a schema may ask for: grammars grow with the number."""
MAX_BOUND: Final = 1_000_000_000

_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_PAIRS: Final = (
    ("minItems", "maxItems"),
    ("minLength", "maxLength"),
    ("minimum", "maximum"),
    ("exclusiveMinimum", "exclusiveMaximum"),
    ("minimum", "exclusiveMaximum"),
    ("exclusiveMinimum", "maximum"),
)
"""Engines count from the first to the second: without end when it is behind."""
_FORMATS: Final = frozenset({"date", "time", "date-time", "uuid"})


class SchemaRefusedError(ValueError):
    """The schema is not one that an answer may be held to. The message names the place."""


def accepted_schema(schema: Mapping[str, Any]) -> str:
    """The canonical text of a schema that is harmless and of a kind that engines know.

    Raises:
        SchemaRefusedError: it is not; the message names the word and the limit.
    """
    checker = _Checker(schema)
    checker.check(schema, "schema")
    text = jcs(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise SchemaRefusedError(f"schema has {len(text)} bytes; at most {MAX_SCHEMA_BYTES}")
    return text.decode()


class _Checker:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._parts = 0
        self._followed: list[str] = []
        self._words: dict[str, Callable[[Any, str], None]] = {
            "type": self._type,
            "properties": self._named,
            "$defs": self._named,
            "definitions": self._named,
            "required": _texts,
            "additionalProperties": self._schema_or_flag,
            "items": self.check,
            "anyOf": self._several,
            "oneOf": self._several,
            "enum": _choices,
            "const": _scalar,
            "$ref": self._reference,
            "format": _format,
            "title": _text,
            "description": _text,
            **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), _count),
            **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _bound),
        }

    def check(self, schema: Any, where: str) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise SchemaRefusedError(f"schema has more than {MAX_PARTS} parts")
        if not isinstance(schema, dict):
            raise SchemaRefusedError(f"{where} must be an object")
        for word, value in schema.items():
            check = self._words.get(word)
            if check is None:
                known = ", ".join(sorted(self._words))
                raise SchemaRefusedError(
                    f"{where}.{word[:60]} is not a word that is understood here; those are {known}"
                )
            check(value, f"{where}.{word}")
        for least, most in _PAIRS:
            # Of an open interval, whole numbers have to be left.
            gap = least.startswith("exclusive") + most.startswith("exclusive")
            if least in schema and most in schema and schema[least] + gap > schema[most]:
                raise SchemaRefusedError(f"{where}.{most} leaves nothing beside {least}")

    def _type(self, value: Any, where: str) -> None:
        names = value if isinstance(value, list) else [value]
        if not names or any(not isinstance(name, str) or name not in _TYPES for name in names):
            raise SchemaRefusedError(f"{where} must be of {', '.join(sorted(_TYPES))}")

    def _named(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SchemaRefusedError(f"{where} must be an object")
        for name, schema in value.items():
            self.check(schema, f"{where}.{name[:60]}")

    def _several(self, value: Any, where: str) -> None:
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_ALTERNATIVES:
            raise SchemaRefusedError(f"{where} must be a list of 1 to {MAX_ALTERNATIVES} schemas")
        for number, schema in enumerate(value):
            self.check(schema, f"{where}.{number}")

    def _schema_or_flag(self, value: Any, where: str) -> None:
        if not isinstance(value, bool):
            self.check(value, where)

    def _reference(self, value: Any, where: str) -> None:
        """A name under this schema's own definitions, which stands for what is defined there."""
        if value in self._followed:
            # With alternatives in it, an engine needs twice the time for every level: seconds become years.
            raise SchemaRefusedError(f"{where} leads back to itself")
        for table in ("$defs", "definitions"):
            definitions = self._root.get(table)
            if isinstance(value, str) and value.startswith(f"#/{table}/") and isinstance(definitions, dict):
                self._followed.append(value)
                self.check(definitions.get(value.removeprefix(f"#/{table}/")), value[:60])
                self._followed.pop()
                return
        raise SchemaRefusedError(f"{where} must be #/$defs/ and the name of a definition")


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise SchemaRefusedError(f"{where} must be a text")


def _texts(value: Any, where: str) -> None:
    if not isinstance(value, list) or len(value) > MAX_CHOICES or any(not isinstance(text, str) for text in value):
        raise SchemaRefusedError(f"{where} must be a list of at most {MAX_CHOICES} texts")


def _scalar(value: Any, where: str) -> None:
    if isinstance(value, dict | list | float) or (isinstance(value, int) and abs(value) > MAX_BOUND):
        raise SchemaRefusedError(f"{where} must be a text, a whole number up to {MAX_BOUND}, true, false or null")


def _choices(value: Any, where: str) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHOICES:
        raise SchemaRefusedError(f"{where} must be a list of 1 to {MAX_CHOICES} values")
    for number, choice in enumerate(value):
        _scalar(choice, f"{where}.{number}")


def _format(value: Any, where: str) -> None:
    if not isinstance(value, str) or value not in _FORMATS:
        raise SchemaRefusedError(f"{where} must be one of {', '.join(sorted(_FORMATS))}")


def _count(value: Any, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_REPEAT:
        raise SchemaRefusedError(f"{where} must be a whole number of 0 to {MAX_REPEAT}")


def _bound(value: Any, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_BOUND:
        raise SchemaRefusedError(f"{where} must be a whole number of at most {MAX_BOUND}")
