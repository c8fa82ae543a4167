"""Labels by the classes that captions name, and which classes have enough of them."""

from __future__ import annotations

import numpy as np
import pytest

from laion_assets.comparison.pool import TooFewPairsError
from laion_assets.comparison.zero_shot import LEAST_OF_CLASS, labelled, labels_of


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("A red heart on a white background", 0),
        ("HEART!", 0),
        ("Two hearts", -1),
        ("Heart-shaped box", 0),
        ("sweetheart", -1),
        ("Ice cream", 1),
        ("ice, cream", -1),
        ("ice\n cream", 1),
        ("A heart of ice cream", -1),
        ("A heart on a heart", 0),
        ("Programming in C++", 2),
        ("Programming in C", -1),
        ("Étoile", 3),
        ("E\u0301toile", 3),
        ("", -1),
    ],
)
def test_a_caption_is_labelled_by_the_one_class_that_it_names_as_whole_words(
    caption: str, label: int
) -> None:
    assert labels_of([caption], ["heart", "ice cream", "c++", "étoile"]).tolist() == [label]


def test_a_class_within_another_ones_name_is_named_with_it() -> None:
    classes = ["star", "sea star"]
    assert labels_of(["a star", "a sea star"], classes).tolist() == [0, -1]


def test_classes_that_few_pairs_name_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    n = LEAST_OF_CLASS
    captions = ["a cat"] * n + ["a dog"] * (n - 1) + ["a fox"] * n + ["a cat, a dog"] + ["none"]
    rows = np.arange(100, 100 + len(captions))
    found = labelled(rows, captions, ["cat", "dog", "fox"])
    assert found.classes == ["cat", "fox"]
    assert found.left_out == ["dog"]
    assert f"dog ({n - 1})" in caplog.text
    assert found.rows.tolist() == [*rows[:n], *rows[2 * n - 1 : 3 * n - 1]]
    assert found.labels.tolist() == [0] * n + [1] * n
    with pytest.raises(TooFewPairsError, match=rf"fewer than {n} .* name dog \({n - 1}\)"):
        labelled(rows, captions, ["cat", "dog"])
