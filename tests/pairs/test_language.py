"""The detector on short captions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.pairs.language import UNKNOWN, detect

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


def test_characters_that_cld2_refuses_are_left_out() -> None:
    assert detect("A dog playing in the snow \U0010ffff")[0] == "en"
    assert detect("A dog playing\x00 in the snow \ud800")[0] == "en"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_no_text_makes_it_raise(text: str) -> None:
    code, score = detect(text)
    assert code
    assert 0 <= score <= 1
