"""Copies of the sample crawl's pictures: the same each time, and all else stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pycld2")

from laion_assets.sample_crawl.plan import COPIED, COPY, DATA
from training.sample_copies import clear, main, with_copies
from training.sample_inputs import Inputs, read_inputs, write_inputs
from training.sample_judge import Candidate, Judge


def without_copies(inputs: Inputs) -> Inputs:
    content = {name: body for name, body in inputs.content.items() if COPIED not in name}
    return Inputs(content, [pair for pair in inputs.pairs if pair.group != COPY], inputs.foreign)


def test_copies_are_added_once_and_nothing_else_changes(tmp_path: Path) -> None:
    committed = read_inputs()
    bare = without_copies(committed)
    judge = Judge(dict(bare.content), tmp_path / "cache")
    write_inputs(with_copies(bare, judge), judge, tmp_path)
    made = read_inputs(tmp_path)
    assert without_copies(made) == bare == without_copies(committed)
    # Encoders of other versions may give other bytes, but of pictures that score about the same.
    assert [(pair.file, pair.text) for pair in made.pairs] == [
        (pair.file, pair.text) for pair in committed.pairs
    ]
    assert set(made.content) == set(committed.content)
    files = [tmp_path / name for name in ("images.zip", "plan.json", "ATTRIBUTION.md")]
    assert files[2].read_bytes() == (DATA / "ATTRIBUTION.md").read_bytes()
    before = [file.read_bytes() for file in files]
    main(tmp_path, tmp_path / "cache")
    assert [file.read_bytes() for file in files] == before


def test_copies_that_score_closely_are_not_taken() -> None:
    close = [Candidate(COPY, "copies/cropped/noto/cat.jpg", "a cat", close=True)]
    with pytest.raises(ValueError, match="'cropped': 0"):
        clear(close)
