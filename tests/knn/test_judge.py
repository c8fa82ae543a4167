"""What a merge judges, and when it looks for other search parameters."""

from __future__ import annotations

from pathlib import Path

import faiss
import pytest

from laion_assets.knn.files import IndexSummary, SearchParameters
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.recall import recorded_recall
from laion_assets.layout import SegmentKey
from tests.knn.conftest import MODEL
from tests.knn.test_codec import CRAWL, OPTIONS, ROWS, World, searched_recall, write_subset

SMALL = 200


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six segments in an index, and indices of four small ones, of which two are beside it."""
    faiss.omp_set_num_threads(1)
    made = World(tmp_path_factory.mktemp("judge"))
    for number in range(6, 10):
        segment = f"{number:02d}"
        folder = made.root / f"subset-{segment}"
        made.subsets[segment] = write_subset(folder, segment, number, rows=SMALL)
        made.parts.append(made.build(segment))
    return made


def add(
    world: World,
    out: Path,
    parts: int,
    previous: Path,
    options: IndexOptions = OPTIONS,
) -> IndexSummary:
    """Merge the first ``parts`` segments; only the last one's subset may be asked for."""
    wanted = world.parts[:parts]

    def only_new(key: SegmentKey) -> Path:
        assert key == wanted[-1].key, f"{key} is not new"
        return world.subset_of(key)

    return merge_indices(
        wanted, world.indices.__getitem__, out, options, only_new, previous=previous
    )


def tuned_at(summary: IndexSummary) -> set[int]:
    return {one.n for found in summary.tuned.values() for one in found.values()}


def test_a_merge_is_judged_by_what_is_new_and_right(grown: World, tmp_path: Path) -> None:
    """Three small segments come one by one: two runs are linked, then all written as one."""
    previous = grown.root / "six"
    first = IndexSummary.read(previous)
    levels = []
    for parts in (7, 8, 9):
        out = tmp_path / f"{parts}"
        summary = add(grown, out, parts, previous)
        levels.append([run.level for run in summary.runs])
        assert summary.search == first.search
        assert tuned_at(summary) == {6 * ROWS}
        held = [grown.subsets[part.key.segment] for part in grown.parts[:parts]]
        searched = searched_recall(out, grown, held)
        for modality, recall in recorded_recall(summary).items():
            assert recall == pytest.approx(searched[modality], abs=1e-9)
            assert list(recall) == ["1", "10", "100"]
        previous = out
    assert levels == [[1, 1, 0], [1, 1, 0, 0], [2]]


def test_parameters_are_chosen_again_once_the_index_grew_by_a_fifth(
    grown: World, tmp_path: Path
) -> None:
    five = grown.merge(grown.parts[:5], tmp_path / "five")
    assert tuned_at(five) == {5 * ROWS}
    less = grown.merge(
        [*grown.parts[:5], *grown.parts[6:]], tmp_path / "less", previous=tmp_path / "five"
    )
    assert tuned_at(less) == {5 * ROWS}, "four small segments are less than a fifth"
    more = grown.merge(grown.parts[:6], tmp_path / "more", previous=tmp_path / "five")
    assert tuned_at(more) == {6 * ROWS}


def test_parameters_are_chosen_again_when_recall_falls(grown: World, tmp_path: Path) -> None:
    """The previous index's parameters look into one cell; one that looks into all stays."""
    six = IndexSummary.read(grown.root / "six")
    (codec,) = six.codecs()
    poor = (SearchParameters(nprobe=1, rerank=50), SearchParameters(nprobe=1, rerank=50, k=100))
    (tmp_path / "poor").mkdir()
    for path in (grown.root / "six").iterdir():
        (tmp_path / "poor" / path.name).symlink_to(path)
    (tmp_path / "poor" / "index.json").unlink()
    search = {codec: {**six.search[codec], "image": poor}}
    six.model_copy(update={"search": search}).write(tmp_path / "poor")
    summary = grown.merge(grown.parts[:7], tmp_path / "out", previous=tmp_path / "poor")
    assert min(recorded_recall(summary)["image"].values()) >= OPTIONS.tune_recall
    assert summary.search[codec]["image"] != poor
    assert summary.tuned[codec]["image"].n == 6 * ROWS + SMALL
    assert summary.tuned[codec]["text"].n == 6 * ROWS, "it had not fallen there"


def test_what_no_parameters_reach_is_not_tried_at_each_merge(grown: World, tmp_path: Path) -> None:
    """Codes without exact scores do not find everything, however many are looked at."""
    changes = {"tune_recall": 1.0, "rerank": False, "min_recall": 0.5}
    options = OPTIONS.model_copy(update=changes)
    first = grown.merge(grown.parts[:6], tmp_path / "six", options, previous=grown.root / "six")
    assert all(one.reached < 1 for found in first.tuned.values() for one in found.values())
    assert {one.target for found in first.tuned.values() for one in found.values()} == {1.0}
    second = add(grown, tmp_path / "seven", 7, tmp_path / "six", options)
    assert tuned_at(second) == {6 * ROWS}
    # A recall that is asked for and not reached makes them be tried, and the check refuses then.
    strict = options.model_copy(update={"min_recall": 1.0})
    third = grown.merge(grown.parts[:7], tmp_path / "strict", strict, previous=tmp_path / "seven")
    assert tuned_at(third) == {6 * ROWS + SMALL}


def test_a_replaced_segment_is_judged_with_what_is_there_now(grown: World, tmp_path: Path) -> None:
    """Its old rows are skipped in their run, whose candidates are therefore found anew."""
    key = SegmentKey(CRAWL, "02")
    before, own = grown.subsets["02"], grown.indices[key]
    grown.subsets["02"] = write_subset(tmp_path / "again", "02", 77, samples=2)
    try:
        again = grown.build("02", name="again", version="2")
        parts = [*grown.parts[:2], again, *grown.parts[3:6]]
        options = OPTIONS.model_copy(update={"max_dropped": 0.5})
        summary = grown.merge(parts, tmp_path / "out", options, previous=grown.root / "six")
        assert any(run.n < run.rows for run in summary.runs)
        held = [grown.subsets[part.key.segment] for part in parts]
        searched = searched_recall(tmp_path / "out", grown, held)
        for modality, recall in recorded_recall(summary).items():
            assert recall == pytest.approx(searched[modality], abs=1e-9)
    finally:
        grown.subsets["02"], grown.indices[key] = before, own


def test_a_flat_run_is_measured_once(grown: World, tmp_path: Path) -> None:
    from laion_assets.knn.build import build_index

    parts = []
    for number in range(6, 9):
        key = SegmentKey(CRAWL, f"{number:02d}")
        build_index(grown.subsets[key.segment], tmp_path / key.segment, IndexOptions(), model=MODEL)
        parts.append(SegmentIndex(key, "flat"))
    asked: list[SegmentKey] = []

    def subset_of(key: SegmentKey) -> Path:
        asked.append(key)
        return grown.subset_of(key)

    def merged(some: list[SegmentIndex], name: str, previous: Path | None) -> IndexSummary:
        return merge_indices(
            some,
            lambda key: tmp_path / key.segment,
            tmp_path / name,
            IndexOptions(recall_queries=20),
            subset_of,
            previous=previous,
        )

    merged(parts[:2], "two", None)
    asked.clear()
    summary = merged(parts, "three", tmp_path / "two")
    assert set(asked) == {parts[2].key}
    assert recorded_recall(summary)["text"] == {"1": 1.0, "10": 1.0, "100": 1.0}
    assert all(run.recall for run in summary.runs)
