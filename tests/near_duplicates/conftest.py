"""Planted copies of a few pictures, and a lake in which segments claim them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.duplicates.planted import Planted, plant, vendors
from benchmarks.duplicates.segments import Segments

PICTURES = 6


@pytest.fixture(scope="session")
def planted() -> Planted:
    """Each of some pictures as it is and in its copies; every second is another vendor's."""
    pairs = vendors()
    chosen = pairs[:: len(pairs) // (PICTURES // 2)][: PICTURES // 2]
    return plant([name for pair in chosen for name in pair], None, seed=3)


@pytest.fixture
def segments(tmp_path: Path, planted: Planted) -> Segments:
    return Segments(tmp_path / "lake", planted)


def rows_of_kinds(planted: Planted, *kinds: str) -> list[int]:
    return np.flatnonzero(np.isin(planted.kind, kinds)).tolist()
