"""Which documents can be summarised, decided before anybody pays, and how a document's text goes into a prompt."""

import re
import unicodedata
from itertools import islice
from typing import Final

# ruff: noqa: N818 - the names say what happened, not that it is an error

MAX_DOCUMENT_BYTES: Final = 1_000_000
"""UTF-8 bytes. Far beyond one context; only so that nobody makes us tokenize without end for free."""

MIN_DOCUMENT_WORDS: Final = 20
"""Below that there is nothing to shorten, and small models fill the gap with inventions."""

MIN_DISTINCT_WORDS: Final = 10
"""A word said a hundred times is no document."""

_CHARACTERS_PER_WORD: Final = 2
"""In scripts that put no spaces between words, two characters count as a word."""

_MAX_UNREADABLE: Final = 0.05
"""Share of characters that no text has. A few happen in text taken from PDFs; more means binary data."""

# Hiragana to Han, Hangul is spaced; Thai, Lao, Myanmar, Khmer; Han beyond the basic plane.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_WORD: Final = re.compile(r"\w+(?:['’\-]\w+)*")

_SUSPECT: Final = re.compile(r"[^ -~\t\n\r]")
"""Characters that have to be looked at one by one; the others are text whatever stands around them."""

# What chat templates put between turns. A model server reads these in a document as the end of the document.
_TURN_MARKS: Final = re.compile(
    r"<\|[^<>|\s]{1,64}\|>|<\uff5c[^<>\n]{1,64}\uff5c>|</?s>|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|</?(?:think|tool_call|tool_response)>",
    re.IGNORECASE,
)


class Unsummarizable(ValueError):
    """Root of the reasons to refuse a request before any payment. `field` names the part of the request."""

    field = "document"


class EmptyDocument(Unsummarizable):
    """There is no text."""

    def __init__(self) -> None:
        super().__init__("document is empty or only white space")


class DocumentTooShort(Unsummarizable):
    """Fewer than `limit` words, or fewer than `limit` different ones."""

    def __init__(self, limit: int, actual: int, *, distinct: bool = False) -> None:
        super().__init__(f"document has {actual} {'different ' if distinct else ''}words; at least {limit} are needed")
        self.limit = limit
        self.actual = actual


class DocumentTooLarge(Unsummarizable):
    """More than `limit` bytes."""

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(f"document has {actual} bytes; at most {limit} are accepted")
        self.limit = limit
        self.actual = actual


class NotText(Unsummarizable):
    """Binary data, or text that has no UTF-8 form."""


class DocumentTooLong(Unsummarizable):
    """With its instructions and the longest answer, the document needs more tokens than the model's context has."""

    def __init__(self, limit_tokens: int, needed_tokens: int) -> None:
        super().__init__(
            f"document is too long for one prompt: with instructions and answer it needs {needed_tokens} tokens; "
            f"the model takes {limit_tokens}"
        )
        self.limit_tokens = limit_tokens
        self.needed_tokens = needed_tokens


def count_words(text: str) -> int:
    """Words in a text; in scripts without spaces, half the characters."""
    unspaced = len(_UNSPACED.findall(text))
    return len(_WORD.findall(_UNSPACED.sub(" ", text))) + unspaced // _CHARACTERS_PER_WORD


def check_document(document: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> None:
    """Refuse what cannot be summarised.

    Raises:
        DocumentTooLarge, EmptyDocument, NotText, DocumentTooShort: each an Unsummarizable.
    """
    try:
        size = len(document.encode())
    except UnicodeEncodeError:
        raise NotText("document holds half of a surrogate pair, which is no text") from None
    if size > max_bytes:
        raise DocumentTooLarge(max_bytes, size)
    if not document.strip():
        raise EmptyDocument
    unreadable = sum(map(_is_unreadable, _SUSPECT.findall(document)))
    if unreadable > len(document) * _MAX_UNREADABLE:
        raise NotText("document is not text: too many of its characters are control or undefined characters")
    if document.isascii() and _has_enough_words(document):
        return
    words = count_words(document)
    if words < MIN_DOCUMENT_WORDS:
        raise DocumentTooShort(MIN_DOCUMENT_WORDS, words)
    unspaced = set(_UNSPACED.findall(document))
    distinct = len(unspaced | {word.casefold() for word in _WORD.findall(_UNSPACED.sub(" ", document))})
    if distinct < MIN_DISTINCT_WORDS:
        raise DocumentTooShort(MIN_DISTINCT_WORDS, distinct, distinct=True)


def _has_enough_words(document: str) -> bool:
    """Whether the beginning of a document already has words enough; most have, and need not be counted to their end."""
    words = [found[0].casefold() for found in islice(_WORD.finditer(document), 4 * MIN_DOCUMENT_WORDS)]
    return len(words) >= MIN_DOCUMENT_WORDS and len(set(words)) >= MIN_DISTINCT_WORDS


def prepare(document: str) -> str:
    """The document as it goes into a prompt.

    Line ends become ``\\n``, characters without meaning are dropped, and marks that a chat template would take for the
    end of a turn are broken by a space. Nothing else changes.
    """
    text = document.replace("\r\n", "\n").replace("\r", "\n")
    text = _SUSPECT.sub(lambda found: "" if _is_unreadable(found[0]) else found[0], text).strip()
    return _TURN_MARKS.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)


def _is_unreadable(character: str) -> bool:
    if character.isprintable() or character.isspace():
        return character == "\ufffd" or "\x1c" <= character <= "\x1f"
    # Format characters (joiners, direction marks) belong to some scripts; tag characters only hide text.
    return unicodedata.category(character) != "Cf" or "\U000e0000" <= character <= "\U000e007f"
