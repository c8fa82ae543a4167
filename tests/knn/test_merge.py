from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from laion_assets.knn.build import IndexOptions, build_index
from laion_assets.knn.files import IndexMismatchError, IndexSummary
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.open_index import OpenIndex
from laion_assets.knn.recall import measure_recall, recorded_recall, size_problem
from laion_assets.knn.subset import subset_parts
from laion_assets.layout import SegmentKey
from tests.knn.conftest import MODEL, MakeSubset

OLD, NEW = "CC-MAIN-2000-05", "CC-MAIN-2001-05"
PERFECT = {"1": 1.0, "10": 1.0, "100": 1.0}
OPTIONS = IndexOptions(merge_every=3)


class Segments:
    """Segments' subsets and flat indices."""

    def __init__(self, make_subset: MakeSubset, root: Path) -> None:
        self._make_subset, self._root = make_subset, root
        self.subsets: dict[SegmentKey, Path] = {}
        self.indices: dict[SegmentKey, Path] = {}

    def add(
        self, crawl: str, segment: str, rows: list[int], kind: str = "flat", **options: object
    ) -> SegmentIndex:
        key = SegmentKey(crawl, segment)
        self.subsets[key] = self._make_subset(crawl, segment, rows, **options)
        version = f"{kind}-{options}-{rows}"
        out = self._root / f"index-{crawl}-{segment}-{version}"
        built = IndexOptions(kind=kind, dimension=99)
        build_index(self.subsets[key], out, built, model=MODEL)
        self.indices[key] = out
        return SegmentIndex(key, version)

    def merge(
        self,
        parts: Sequence[SegmentIndex],
        out: Path,
        options: IndexOptions = OPTIONS,
        previous: Path | None = None,
    ) -> IndexSummary:
        return merge_indices(
            parts, self.indices.__getitem__, out, options, self.subset_of, previous=previous
        )

    def own(self, part: SegmentIndex) -> Path:
        return self.indices[part.key]

    def subset_of(self, key: SegmentKey) -> Path:
        return self.subsets[key]


@pytest.fixture
def segments(make_subset: MakeSubset, tmp_path: Path) -> Segments:
    return Segments(make_subset, tmp_path)


def holds(index_dir: Path, segments: Segments) -> None:
    """The index finds every sample of every subset at its own place, and nothing else."""
    index = OpenIndex(index_dir, segments.subset_of)
    total = 0
    for modality in ("image", "text"):
        total = 0
        for key, subset in segments.subsets.items():
            for part in subset_parts(subset):
                vectors = part.vectors(modality)
                total += len(vectors)
                if not len(vectors):
                    continue
                _, rows = index.nearest(vectors.astype(np.float32), 1, modality)
                places = index.places(rows[:, 0])
                assert [(p.crawl, p.segment, p.part) for p in places] == [
                    (key.crawl, key.segment, part.number)
                ] * len(vectors)
                assert [p.part_row for p in places] == list(range(len(vectors)))
    assert index.summary.n == total
    assert size_problem(index_dir, total) is None


@pytest.mark.parametrize("kind", ["flat", "flat_fp16"])
def test_every_sample_is_found_in_its_own_segment(
    segments: Segments, tmp_path: Path, kind: str
) -> None:
    last = segments.add(NEW, "00", [15], kind)
    first = segments.add(OLD, "00", [12, 0, 8], kind)
    nothing = segments.add(OLD, "01", [], kind)
    for name, every in (("runs", 9), ("one", 2)):
        options = IndexOptions(merge_every=every)
        summary = segments.merge([last, nothing, first], tmp_path / name, options)
        assert (summary.n, summary.d, summary.kind) == (35, 32, kind)
        assert len(summary.runs) == (3 if name == "runs" else 1)
        holds(tmp_path / name, segments)
        found = measure_recall(tmp_path / name, segments.subset_of, IndexOptions())
        assert found == {"image": PERFECT, "text": PERFECT}
        assert recorded_recall(summary) == found


def test_an_index_grows_by_links_and_now_and_then_a_merge(
    segments: Segments, tmp_path: Path
) -> None:
    parts: list[SegmentIndex] = []
    previous = None
    for number in range(7):
        parts.append(segments.add(OLD, f"{number:02d}", [5 + number]))
        out = tmp_path / f"merged-{number}"
        summary = segments.merge(parts, out, previous=previous)
        holds(out, segments)
        previous = out
        assert [run.level for run in summary.runs] == [
            [0],
            [0, 0],
            [1],
            [1, 0],
            [1, 0, 0],
            [1, 1],
            [1, 1, 0],
        ][number]
    # The newest segment's files are the segment's own, the oldest run's those of three merges ago.
    folders = {run.level: run.folder for run in summary.runs[::-1]}
    same = segments.own(parts[-1]) / "image.index"
    assert (out / folders[0] / "image.index").samefile(same)
    assert (out / folders[1] / "ids.npy").samefile(tmp_path / "merged-2" / folders[1] / "ids.npy")


def test_a_rebuilt_segments_old_vectors_are_skipped_then_left_out(
    segments: Segments, tmp_path: Path
) -> None:
    parts = [segments.add(OLD, f"{number:02d}", [20]) for number in range(6)]
    segments.merge(parts, tmp_path / "a")
    parts[1] = segments.add(OLD, "01", [20], seed=7)
    segments.merge(parts, tmp_path / "b", previous=tmp_path / "a")
    holds(tmp_path / "b", segments)
    large, small = IndexSummary.read(tmp_path / "b").runs
    assert (large.rows, large.n, small.n) == (120, 100, 20)
    assert (tmp_path / "b" / large.folder / "image.index").samefile(
        tmp_path / "a" / large.folder / "image.index"
    )
    # Over a quarter of the large run is outdated: it is rewritten without that.
    parts[3] = segments.add(OLD, "03", [20], seed=7)
    segments.merge(parts, tmp_path / "c", previous=tmp_path / "b")
    holds(tmp_path / "c", segments)
    assert [(run.rows, run.n) for run in IndexSummary.read(tmp_path / "c").runs] == [
        (80, 80),
        (20, 20),
        (20, 20),
    ]


def test_nothing_of_a_sample_that_is_gone_stays_in_the_files(
    segments: Segments, tmp_path: Path
) -> None:
    parts = [segments.add(OLD, f"{number:02d}", [20]) for number in range(6)]
    segments.merge(parts, tmp_path / "a")
    # First the segment is rebuilt with all its samples, then the last one is removed.
    parts[1] = segments.add(OLD, "01", [20], seed=7)
    segments.merge(parts, tmp_path / "b", previous=tmp_path / "a")
    (removed,) = np.load(segments.own(parts[1]) / "ids.npy")[-1:]
    assert len(holding(tmp_path / "b", removed)) == 2
    parts[1] = segments.add(OLD, "01", [19], seed=7)
    segments.merge(parts, tmp_path / "c", previous=tmp_path / "b")
    assert holding(tmp_path / "c", removed) == []
    holds(tmp_path / "c", segments)
    assert [(run.rows, run.n) for run in IndexSummary.read(tmp_path / "c").runs] == [
        (100, 100),
        (19, 19),
    ]
    # The same holds for a segment that is gone as a whole.
    (lost,) = np.load(segments.own(parts[4]) / "ids.npy")[:1]
    del parts[4], segments.subsets[SegmentKey(OLD, "04")]
    segments.merge(parts, tmp_path / "d", previous=tmp_path / "c")
    assert holding(tmp_path / "d", lost) == []
    holds(tmp_path / "d", segments)


def holding(index_dir: Path, sample_id: int) -> list[Path]:
    """The index runs whose files have the sample, live or dropped."""
    return [path.parent for path in index_dir.glob("runs/*/ids.npy") if sample_id in np.load(path)]


def test_the_order_given_does_not_change_the_bytes(segments: Segments, tmp_path: Path) -> None:
    parts = [segments.add(OLD, segment, [9]) for segment in ("00", "01", "02")]
    segments.merge(parts, tmp_path / "a")
    segments.merge(parts[::-1], tmp_path / "b")
    names = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_damaged_runs_are_not_copied_but_merged_again(segments: Segments, tmp_path: Path) -> None:
    parts = [segments.add(OLD, f"{number:02d}", [20]) for number in range(3)]
    segments.merge(parts, tmp_path / "a")
    asked: list[str] = []

    def is_whole(names: str) -> bool:
        asked.append(names)
        return False

    def merge(out: Path) -> IndexSummary:
        return merge_indices(
            parts,
            segments.indices.__getitem__,
            out,
            OPTIONS,
            segments.subset_of,
            previous=tmp_path / "a",
            is_whole=is_whole,
        )

    (large,) = IndexSummary.read(tmp_path / "a").runs
    # A run that is linked keeps its digest, by which its damage is found: it is not looked at.
    parts.append(segments.add(OLD, "03", [20]))
    merge(tmp_path / "b")
    assert asked == []
    # One without a sample is written again.
    (tmp_path / "a" / large.folder / "image.index").write_bytes(b"torn")
    parts[1] = segments.add(OLD, "01", [19])
    merge(tmp_path / "c")
    assert asked == [f"{large.folder}/*"]
    holds(tmp_path / "c", segments)


def test_a_killed_merge_leaves_no_run_behind(segments: Segments, tmp_path: Path) -> None:
    parts = [segments.add(OLD, segment, [9]) for segment in ("00", "01", "02")]
    (tmp_path / "a" / "runs" / "half").mkdir(parents=True)
    segments.merge(parts, tmp_path / "a")
    assert len(list((tmp_path / "a" / "runs").iterdir())) == 1


def test_indices_that_do_not_belong_together_are_refused(
    segments: Segments, tmp_path: Path
) -> None:
    wide = segments.add(OLD, "00", [5])
    narrow = segments.add(NEW, "00", [5], d=16)
    with pytest.raises(IndexMismatchError, match="differ in width: 16, 32"):
        segments.merge([wide, narrow], tmp_path / "out")
    with pytest.raises(ValueError, match="no index"):
        segments.merge([], tmp_path / "out")


def test_an_index_that_is_not_its_json_is_refused(segments: Segments, tmp_path: Path) -> None:
    parts = [segments.add(OLD, f"{number:02d}", [5 + number]) for number in range(3)]
    (segments.own(parts[0]) / "text.index").write_bytes(
        (segments.own(parts[1]) / "text.index").read_bytes()
    )
    assert size_problem(segments.own(parts[0]), 5) == "text.index holds 6; the subset has 5 rows"
    for every in (3, 9):
        options = IndexOptions(merge_every=every)
        with pytest.raises(IndexMismatchError, match="holds 6 vectors, "):
            segments.merge(parts, tmp_path / f"out-{every}", options)
