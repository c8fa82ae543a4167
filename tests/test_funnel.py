from __future__ import annotations

import pytest

from laion_assets.funnel import EXAMPLES_KEPT, StageCounts, total


def test_counts_add_up_over_parts() -> None:
    first, second = StageCounts("pairs"), StageCounts("pairs")
    first.keep(3)
    first.reject("no_alt", "http://a.test/1.jpg")
    second.keep()
    second.reject("no_alt", n=2)
    second.reject("language", "Hund")

    counts = total("pairs", [first, second])

    assert counts.adds_up
    assert counts.rows() == [
        ("pairs", "in", 8),
        ("pairs", "kept", 4),
        ("pairs", "language", 1),
        ("pairs", "no_alt", 3),
    ]
    assert counts.examples["no_alt"] == ["http://a.test/1.jpg"]
    assert StageCounts.from_json(counts.to_json()) == counts


def test_a_reason_outside_the_vocabulary_is_refused() -> None:
    counts = StageCounts("pairs")
    with pytest.raises(KeyError, match="too_small"):
        counts.reject("too_small")
    with pytest.raises(ValueError, match="unknown stage"):
        StageCounts("pears")
    with pytest.raises(ValueError, match="cannot add"):
        counts.add(StageCounts("wat"))


def test_a_lost_subject_shows() -> None:
    counts = StageCounts("images", n_in=5, kept=3, rejects={"timeout": 1})
    assert not counts.adds_up


def test_examples_are_few_and_short() -> None:
    counts = StageCounts("pairs")
    for _ in range(100):
        counts.reject("alt_too_long", "x" * 10_000)
    assert len(counts.examples["alt_too_long"]) == EXAMPLES_KEPT
    assert all(len(example) <= 300 for example in counts.examples["alt_too_long"])
