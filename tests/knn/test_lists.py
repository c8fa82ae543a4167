"""Inverted lists of several files as one."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np

from laion_assets.knn.lists import ListsFile, Renumbering, merge_lists, write_lists

CELLS, CODE = 50, 24


def lists_of(path: Path, cells: np.ndarray, seed: int) -> ListsFile:
    """A file with a vector for each of the given cells, rows numbered in that order."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, (len(cells), CODE)).astype(np.uint8)
    lists = faiss.ArrayInvertedLists(CELLS, CODE)
    for cell in np.unique(cells):
        rows = np.flatnonzero(cells == cell).astype(np.int64)
        its = np.ascontiguousarray(codes[rows])
        lists.add_entries(int(cell), len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(its))
    write_lists(lists, path)
    return ListsFile.open(path)


def test_each_cell_has_the_kept_rows_of_all_files_in_order(tmp_path: Path) -> None:
    """One cell has more codes than are merged at a time."""
    random = np.random.default_rng(0)
    large = np.full(400_000, 7)
    sources = [
        (lists_of(tmp_path / "a", random.integers(0, CELLS, 900), 1), Renumbering(*pair(0, 0))),
        (
            lists_of(tmp_path / "b", np.concatenate([large, random.integers(0, 5, 100)]), 2),
            # Rows 100 to 299 are left out.
            Renumbering(np.array([0, 100, 300]), np.array([900, -1, 1_000])),
        ),
        (lists_of(tmp_path / "c", random.integers(40, CELLS, 60), 3), Renumbering(*pair(0, 9))),
    ]
    n = merge_lists(sources, tmp_path / "merged")
    merged = ListsFile.open(tmp_path / "merged")
    assert n == merged.n == 900 + 400_100 - 200 + 60
    for cell in range(CELLS):
        codes, rows = [], []
        for file, numbers in sources:
            its, old = file.cell(cell)
            new = numbers(old)
            codes.append(its[new >= 0])
            rows.append(new[new >= 0])
        found = merged.cell(cell)
        assert (found[0] == np.concatenate(codes)).all()
        assert (found[1] == np.concatenate(rows)).all()


def pair(start: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([start]), np.array([first])
