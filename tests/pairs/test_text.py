"""Alt texts are cleaned once, in one way."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.pairs.text import clean_text, clean_texts


@pytest.mark.parametrize(
    ("alt", "expected"),
    [
        ("a red apple", "a red apple"),
        ("  a \t red\r\n\r\napple ", "a red apple"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("&quot;caf&eacute;&quot; &#8211; &#x263A;", '"café" – ☺'),
        ("a&nbsp;b\u00a0\u2003c\u2028d", "a b c d"),
        ("&amp;lt;b&amp;gt;", "&lt;b&gt;"),  # decoded once: the page says "&lt;b&gt;"
        ("fish &chips", "fish &chips"),
        ("a\x00b\x07c\x7fd\x85e", "a b c d e"),
        ("e\u0301te\u0301", "été"),
        ("\u200b\ufeff \u200b", ""),
        ("&nbsp;&#32;", ""),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("a | b ; c\td", "a | b ; c d"),
        ("<b>bold</b> apple", "bold apple"),
        (
            "H<sub>2</sub>O,<br/>a <A href='x'>link</a> &lt;p&gt;end<!-- not\nseen -->",
            "H2O, a link end",
        ),
        ("a <3 b, x<y> and <name>, a<b", "a <3 b, x<y> and <name>, a<b"),
        ("", ""),
    ],
)
def test_table(alt: str, expected: str) -> None:
    assert clean_text(alt) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_result_is_clean(alt: str) -> None:
    text = clean_text(alt)
    assert text == text.strip()
    assert "  " not in text
    assert not any(unicodedata.category(char) == "Cc" for char in text)
    assert unicodedata.is_normalized("NFC", text)


PIECES = [
    "a",
    " ",
    "  ",
    "&amp;",
    "&",
    "<b>",
    "<",
    "\u00a0",
    "\u200b",
    "e\u0301",
    "é",
    "\n",
    "\x7f",
]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=6).map("".join)))
def test_the_quick_way_gives_the_same_text(alt: str) -> None:
    assert clean_texts([alt, None, alt]) == [clean_text(alt), "", clean_text(alt)]
