"""Takes what only the model needed out of its answer, also while the answer is still coming.

A model is asked to open with a fixed word and to number its sentences. Neither is part of the summary.
"""

import re
from typing import Final

OPENINGS: Final[dict[str, str]] = {
    "ar": "الملخص",
    "cs": "Shrnutí",
    "da": "Resumé",
    "de": "Zusammenfassung",
    "el": "Περίληψη",
    "en": "Summary",
    "es": "Resumen",
    "fi": "Tiivistelmä",
    "fr": "Résumé",
    "he": "סיכום",
    "hi": "सारांश",
    "hu": "Összefoglaló",
    "id": "Ringkasan",
    "it": "Riassunto",
    "ja": "要約",
    "ko": "요약",
    "nl": "Samenvatting",
    "no": "Sammendrag",
    "pl": "Streszczenie",
    "pt": "Resumo",
    "ro": "Rezumat",
    "ru": "Резюме",
    "sv": "Sammanfattning",
    "th": "สรุป",
    "tr": "Özet",
    "uk": "Резюме",
    "vi": "Tóm tắt",
    "zh": "摘要",
}
"""The word "summary" in each language, which the model is told to start with: it settles the language of the rest."""

_WORDS: Final = sorted({*OPENINGS.values(), "Headline"})
_OPENING: Final = re.compile(rf"(?:{'|'.join(_WORDS)})\s*[:\uff1a]\s*")
_PERHAPS_OPENING: Final = re.compile(rf"(?:{'|'.join(_WORDS)})\s*")
_NUMBER: Final = re.compile(r"[0-9]{1,2}[.)]\s+")
_PERHAPS_NUMBER: Final = re.compile(r"[0-9]{0,2}|[0-9]{1,2}[.)]\s*")


def polished(text: str, *, numbered: bool) -> str:
    """A whole answer as it is shown.

    Args:
        text: as the model wrote it.
        numbered: whether a text whose first line has a number becomes one paragraph without numbers.
    """
    text = _unopened(text.strip())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not numbered or not lines or not _NUMBER.match(lines[0]):
        return text
    return " ".join(_NUMBER.sub("", line, count=1) if _NUMBER.match(line) else line for line in lines)


class Polish:
    """The same for an answer that comes in pieces: each gives what can be shown for sure."""

    def __init__(self, *, numbered: bool) -> None:
        self._numbered = numbered
        self._written: list[str] = []
        self._shown = ""

    def feed(self, piece: str) -> str:
        """What can be shown now, beyond what was; often nothing."""
        self._written.append(piece)
        text = "".join(self._written).lstrip()
        if any(word.startswith(text) for word in _WORDS) or _PERHAPS_OPENING.fullmatch(text):
            return ""
        last_line = (_unopened(text) + ".").splitlines()[-1][:-1]
        if self._numbered and _PERHAPS_NUMBER.fullmatch(last_line.lstrip()):
            text = text[: len(text) - len(last_line)]
        before, self._shown = self._shown, polished(text, numbered=self._numbered)
        return self._shown[len(before) :]

    def finish(self) -> str:
        """What is left to show, once everything has come; of an answer with nothing to show, all of it."""
        written = "".join(self._written)
        return (polished(written, numbered=self._numbered) or written.strip())[len(self._shown) :]


def _unopened(text: str) -> str:
    opening = _OPENING.match(text)
    return text[opening.end() :] if opening else text
