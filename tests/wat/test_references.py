"""Character references, by the rule for attributes and by that for texts."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.wat.references import decode_attribute, decode_complete


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a.php?x=1&amp;y=2", "a.php?x=1&y=2"),
        ("a.php?x=1&ampy=2", "a.php?x=1&ampy=2"),
        ("a.php?a=1&copy=2&reg=3", "a.php?a=1&copy=2&reg=3"),
        ("our oven&microwave", "our oven&microwave"),
        ("city&region, shop&center, fish&notes", "city&region, shop&center, fish&notes"),
        ("&copy 2018", "© 2018"),
        ("all rights &copy", "all rights ©"),
        ("&quot;caf&eacute;&quot;", '"café"'),
        ("&#38;b &#38b &#x26; &#X26c", "&b &b & &"),
        ("&#8211;&hellip;", "–…"),
        ("&notit; &not; &unknown;", "&notit; ¬ &unknown;"),
        ("&amp;amp;", "&amp;"),
        ("a & b &", "a & b &"),
    ],
)
def test_attributes(written: str, meant: str) -> None:
    assert decode_attribute(written) == (meant if "X26c" not in written else "&b &b & \u026c")


@pytest.mark.parametrize(
    ("left", "decoded"),
    [
        ("fish &amp; chips", "fish & chips"),
        ("it&#39;s", "it's"),
        ("&amp;lt;", "&lt;"),
        ("&copy 2018 &unknown; R&D;", "&copy 2018 &unknown; R&D;"),
    ],
)
def test_texts(left: str, decoded: str) -> None:
    assert decode_complete(left) == decoded


@given(st.text())
def test_what_was_escaped_comes_back(text: str) -> None:
    assert decode_attribute(html.escape(text)) == text
    assert decode_complete(html.escape(text)) == text
