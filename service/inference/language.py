"""Guessing which language a text is in, by its script and its most common words.

A small model told to keep to "the language of the document" answers in the language of its instructions. It has to be
told the name. A guess that is not clear is no guess.
"""

import re
import unicodedata
from collections import Counter
from typing import Final

_SCRIPTS: Final = (
    # Kana before Han: Japanese uses both.
    ("ja", "HIRAGANA"),
    ("ja", "KATAKANA"),
    ("ko", "HANGUL"),
    ("zh", "CJK"),
    ("th", "THAI"),
    ("hi", "DEVANAGARI"),
    ("el", "GREEK"),
    ("he", "HEBREW"),
    ("ar", "ARABIC"),
    ("uk", "CYRILLIC"),
    ("ru", "CYRILLIC"),
)

_COMMON_WORDS: Final = {
    "cs": "je se na že to do jsou jako pro byl být které jeho která podle také aby když nebo už",
    "da": "og det er at en den til af for ikke med der han har blev også fra efter skulle være hvor",
    "de": "der die und das ist nicht mit den von zu auf für ein eine dem sich werden wird auch nach bei",
    "en": "the of and to in is that was for it with as his on be at by had this are but from were which",
    "es": "de la que el en y los se del las un por con no una su para es al como más fue pero",
    "fi": "ja on ei että se oli hän mutta myös kun ovat ole joka tämä kuin sen olivat mukaan ovat",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se avec",
    "hu": "a az és hogy nem is egy meg volt ez csak azt már még vagy mint lehet szerint",
    "id": "yang dan di dengan untuk dari pada ini itu tidak dalam adalah akan oleh sebagai juga ke karena telah",
    "it": "di che il la e un per in non una del è con si da le dei al della nel gli come anche sono",
    "nl": "de het een van en in is dat op te zijn met voor niet die aan er om ook als bij naar wordt",
    "no": "og det er i som en på til av for ikke med at han har ble også fra etter være hvor jeg",
    "pl": "w i na nie się z do to że jest o jak po za od przez był oraz dla które także tym",
    "pt": "de que o a e do da em um para com não uma os no se na por mais as dos foi ao das são",
    "ro": "de și în a la cu pe nu un o că din pentru care este mai sunt fi au prin dar fost",
    "sv": "och det att i en är som på för av med den inte till han har om från var också efter skulle",
    "tr": "ve bir bu da de için ile olarak çok daha olan gibi kadar sonra ancak değil en ne var",
    "vi": "và của là có được cho trong không với các một người những đã để này từ khi đến về",
}

_WORD: Final = re.compile(r"[^\W\d_]+")
_SAMPLE_CHARACTERS: Final = 20_000
_MIN_SHARE: Final = 0.08
"""The common words of a language make up at least this share of the words of its texts."""
_MIN_WORDS: Final = 4
"""Common words found in all; fewer prove nothing."""
_MIN_LEAD: Final = 1.25
"""How far ahead of the next language the best one must be; Danish and Norwegian share most of theirs."""

_LANGUAGES_OF: Final = {
    word: tuple(code for code, words in _COMMON_WORDS.items() if word in words.split())
    for word in " ".join(_COMMON_WORDS.values()).split()
}
"""Each common word with the languages that it is common in."""

_BASIC_LETTERS: Final = re.compile("[A-Za-z]+")
_OTHER: Final = re.compile(r"[^\x00-\x7f]")


def guess_language(text: str) -> str | None:
    """The ISO 639-1 code of the language `text` is most likely in, or None when that is not clear."""
    sample = text[:_SAMPLE_CHARACTERS]
    if not sample.isascii():
        basic = sum(map(len, _BASIC_LETTERS.findall(sample)))
        others = [character for character in _OTHER.findall(sample) if character.isalpha()]
        letters = basic + len(others)
        if not letters:
            return None
        scripts = Counter(unicodedata.name(character, "").split(" ")[0].split("-")[0] for character in others)
        latin = basic + scripts.pop("LATIN", 0)
        if latin < letters / 2:
            return _by_script(sample, scripts, letters)
    words = _WORD.findall(sample.casefold())
    scores = dict.fromkeys(_COMMON_WORDS, 0)
    for word in words:
        for code in _LANGUAGES_OF.get(word, ()):
            scores[code] += 1
    best, score, second = "", 0, 0
    for code, found in scores.items():
        if found > score:
            best, score, second = code, found, score
        elif found > second:
            second = found
    clear = score >= _MIN_WORDS and score >= len(words) * _MIN_SHARE and score >= second * _MIN_LEAD
    return best if clear else None


def _by_script(sample: str, scripts: Counter[str], letters: int) -> str | None:
    for code, script in _SCRIPTS:
        share = scripts[script] / letters
        if code == "ja":
            if share > 0.1:
                return code
        elif code == "uk":
            if share > 0.3 and re.search("[іїєґ]", sample.casefold()) and not re.search("[ыэёъ]", sample.casefold()):
                return code
        elif code == "ar":
            if share > 0.3 and not re.search("[پچگژٹڈہے]", sample):  # else Persian or Urdu
                return code
        elif share > 0.3:
            return code
    return None
