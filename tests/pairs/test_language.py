"""The detector on short captions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.pairs import language
from laion_assets.pairs.language import UNKNOWN, detect, is_never_english

ENGLISH = """Cartoon red apple with a green leaf
red apple
Front view of the house
Black leather handbag
Portrait of John Smith
Women's running shoes in blue
A dog playing in the snow
sunset over the lake
Grilled salmon with lemon
Map of Berlin, Germany
grinning face with smiling eyes
Stainless steel water bottle 500ml
Two people shaking hands in an office
A cup of tea on a saucer""".splitlines()

OTHERS = {
    "Roter Apfel mit grünem Blatt": "de",
    "Vorderansicht des Hauses": "de",
    "Pomme rouge avec une feuille verte": "fr",
    "recette de gâteau au chocolat": "fr",
    "Puesta de sol en el lago": "es",
    "Cane che gioca nella neve": "it",
    "Czerwone jabłko z zielonym liściem": "pl",
    "собака играет в снегу": "ru",
    "赤いりんごと緑の葉": "ja",
    "红色的苹果和绿色的叶子": "zh",
}

# English to the bestEffort mode, which always guesses.
SHORT_ROMANCE = ["Photo de profil", "Vista frontal de la casa", "Borsa in pelle nera"]


@pytest.mark.parametrize("text", ENGLISH)
def test_english(text: str) -> None:
    code, score = detect(text)
    assert code == "en"
    assert 0.8 < score <= 1


@pytest.mark.parametrize("text", OTHERS)
def test_others(text: str) -> None:
    assert detect(text)[0] == OTHERS[text]


@pytest.mark.parametrize("text", SHORT_ROMANCE)
def test_short_captions_are_not_taken_for_english(text: str) -> None:
    assert detect(text)[0] != "en"


@pytest.mark.parametrize("text", ["", "12345", "IMG_2034", "\ufffe", "\ud800", "\x00\x01"])
def test_unknown(text: str) -> None:
    assert detect(text) == (UNKNOWN, 0.0)


def test_long_texts_are_not_kept_in_memory() -> None:
    text = "a photo of the old house and of the garden behind it, "
    before = language._remembered.cache_info()
    assert [detect(text * n)[0] for n in (100, 200)] == ["en", "en"]
    assert language._remembered.cache_info() == before


def test_characters_that_cld2_refuses_are_left_out() -> None:
    assert detect("A dog playing in the snow \U0010ffff")[0] == "en"
    assert detect("A dog playing\x00 in the snow \ud800")[0] == "en"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_no_text_makes_it_raise(text: str) -> None:
    code, score = detect(text)
    assert code
    assert 0 <= score <= 1


@pytest.mark.parametrize(
    "text", ["собака играет", "赤いりんご 100%", "ελληνικά", "12 345", "가방 2개"]
)
def test_texts_without_a_latin_letter_need_no_detector(text: str) -> None:
    assert is_never_english(text)


@pytest.mark.parametrize("text", ["a собака", "ａｂｃ", "é", "\u212a", "ﬁ", "Ⅻ", "𝐚𝐛𝐜", "\ufffe"])
def test_a_latin_letter_of_any_kind_needs_the_detector(text: str) -> None:
    assert not is_never_english(text)


# Real words of other scripts, and any characters of the blocks that have no Latin letter.
OTHER_SCRIPTS = st.one_of(
    st.text("дом家집بيتबाड़ीბინაσπίτιביתบ้านሰላም 12-&", max_size=60),
    st.text(st.characters(min_codepoint=0x370, max_codepoint=0x1AAF), max_size=40),
    st.text(st.characters(min_codepoint=0x2E00, max_codepoint=0xD7FF), max_size=40),
    st.text(st.characters(max_codepoint=0x2FFFF), max_size=40),
)


@settings(max_examples=500, deadline=None)
@given(OTHER_SCRIPTS)
def test_the_detector_finds_no_english_without_a_latin_letter(text: str) -> None:
    assert not (is_never_english(text) and detect(text)[0] == "en")
