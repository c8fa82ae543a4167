from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from laion_assets.safety.minors import load_words, names_minors


def test_words_were_matched_in_lower_case_only_and_inside_words() -> None:
    def theirs(text: str) -> bool:
        return any(word in text for word in ("teen", "kid", "child", "baby"))

    missed = ["Teen portrait", "KIDS", "Little Girl at the sea", "two Children"]
    assert not any(theirs(text) for text in missed)
    assert names_minors(missed).all()

    wrongly = ["nineteen candles", "kidney beans", "babylon gate", "Brothschild bank"]
    assert all(theirs(text) for text in wrongly)
    assert not names_minors(wrongly).any()


@pytest.mark.parametrize(
    "text",
    [
        "kid",
        "a kid's room",
        "kids_2020.jpg",
        "my-baby-photo",
        "«Teen»",
        "teen-aged",
        "under-age",
        "little  girl",
        "little_boys",
        "ｋｉｄｓ",
        "photo of a toddler.",
        "line one\nbaby",
    ],
)
def test_whole_words_are_found(text: str) -> None:
    assert names_minors([text]).tolist() == [True]


@pytest.mark.parametrize(
    "text", ["", "adult woman", "kidó", "ékid", "skidding", "canteen", "under the aged oak"]
)
def test_parts_of_words_are_not(text: str) -> None:
    assert names_minors([text]).tolist() == [False]


def test_arrow_columns_and_missing_texts() -> None:
    column = pa.chunked_array([["a kid", None], ["a dog"]])
    assert names_minors(column).tolist() == [True, False, False]
    assert names_minors([]).tolist() == []


def test_the_shipped_list_has_a_header_and_no_word_twice() -> None:
    words = load_words()
    assert words.header["name"] == "minors"
    assert int(words.header["version"]) >= 1
    assert {"teen", "kid", "child", "baby"} <= set(words.words)
    assert sorted(set(words.words)) == list(words.words)


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("# name: own\nc++ kid\n")
    assert names_minors(["the C++ kid", "a kid"], load_words(str(path))).tolist() == [True, False]
    (tmp_path / "none.txt").write_text("# name: none\n")
    with pytest.raises(ValueError, match="no words"):
        load_words(str(tmp_path / "none.txt"))
