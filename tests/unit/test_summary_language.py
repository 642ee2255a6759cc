"""The language of a document is named to the model only when it is clear."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.language import guess_language
from service.inference.summary import LANGUAGES, SummaryOptions, build_messages

SENTENCES = {
    "ar": "قال رئيس البلدية إن المدرسة ستغلق لمدة أسبوعين وإن التلاميذ سيذهبون إلى مبنى آخر",
    "cs": "Starosta řekl, že škola bude zavřená na dva týdny a že žáci se budou učit v jiné budově, která je ve městě",
    "da": "Skolen blev lukket efter skaden, og den skulle være lukket to uger efter det, som blev sagt af byen",
    "de": "Der Bürgermeister sagte, dass die Schule für zwei Wochen geschlossen wird und die Kinder mit dem Bus fahren",
    "el": "Ο δήμαρχος είπε ότι το σχολείο θα μείνει κλειστό για δύο εβδομάδες",
    "en": "The mayor said that the school will be closed for two weeks and the pupils are to go to another building",
    "es": "El alcalde dijo que la escuela estará cerrada por dos semanas y que los alumnos irán a otro edificio",
    "fr": "Le maire a dit que l'école serait fermée pendant deux semaines et que les élèves iraient dans un autre lieu",
    "he": "ראש העיר אמר כי בית הספר ייסגר לשבועיים",
    "hi": "महापौर ने कहा कि स्कूल दो सप्ताह के लिए बंद रहेगा",
    "it": "Il sindaco ha detto che la scuola è chiusa per due settimane e che gli alunni sono in un altro edificio",
    "ja": "市長は学校を二週間閉鎖すると述べた。",
    "ko": "시장은 학교가 2주 동안 문을 닫는다고 말했다",
    "nl": "De burgemeester zei dat de school twee weken dicht is en dat de leerlingen naar een ander gebouw zijn",
    "pl": "Burmistrz powiedział, że szkoła jest zamknięta na dwa tygodnie i że uczniowie są w innym budynku",
    "pt": "O prefeito disse que a escola não abre por duas semanas e que os alunos vão para uma outra escola da cidade",
    "ru": "Мэр сказал, что школа будет закрыта на две недели, а это объявили жителям",
    "th": "นายกเทศมนตรีกล่าวว่าโรงเรียนจะปิดเป็นเวลาสองสัปดาห์",
    "uk": "Мер сказав, що школу закриють на два тижні, і її учні підуть до іншої будівлі",
    "vi": "Thị trưởng nói trường học sẽ đóng cửa trong hai tuần và các học sinh được đến một tòa nhà khác",
    "zh": "市长说学校将关闭两周，学生们将去另一栋楼上课。",
}


@pytest.mark.parametrize(("code", "sentence"), SENTENCES.items())
def test_a_sentence_is_enough(code: str, sentence: str) -> None:
    assert guess_language(sentence) == code


@pytest.mark.parametrize(
    "text", ["", "12 345 --- 678", "x = 1; print(y)", "Mtoto anasoma kitabu chake shuleni leo asubuhi"]
)
def test_what_is_not_clear_is_not_guessed(text: str) -> None:
    assert guess_language(text) is None


@given(st.text())
def test_a_guess_is_always_a_language_we_can_name(text: str) -> None:
    assert guess_language(text) in {None, *LANGUAGES}


def test_the_model_is_told_the_documents_language_unless_the_buyer_names_another() -> None:
    document = SENTENCES["de"] * 3
    assert "Write the answer in German." in build_messages(document, SummaryOptions())[-1].content
    assert "Write the answer in French." in build_messages(document, SummaryOptions(language="fr"))[-1].content
    unclear = "lorem ipsum dolor " * 20
    assert "Write in the same language as the document." in build_messages(unclear, SummaryOptions())[-1].content
