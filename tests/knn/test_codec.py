"""Indices with a codec, grown segment by segment, on 24,000 clustered vectors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.knn.build import build_index, index_subset, uses_codec
from laion_assets.knn.codec import (
    Codec,
    CodecSummary,
    TooFewVectorsError,
    advice,
    choose,
    codec_files,
    train_codec,
)
from laion_assets.knn.files import IndexMismatchError, IndexSummary, SearchParameters
from laion_assets.knn.lists import ListsFile
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.open_index import OpenIndex, StaleIndexError
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.recall import measure_recall, recall_at, recorded_recall, size_problem
from laion_assets.knn.subset import SubsetOf
from laion_assets.knn.truth import Truth
from laion_assets.layout import SegmentKey
from tests.knn.conftest import MODEL

PathOf = Callable[[Path, int], Path]
PATHS = (image_path, text_path)
CRAWL, D, ROWS = "CC-MAIN-2000-05", 64, 4_000
OTHER = ModelIdentity(model="n", model_version="2")
OPTIONS = IndexOptions(
    kind="ivf_sq8", vectors=24_000, cells=128, recall_queries=40, merge_every=3, max_dropped=0.3
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: threads that wait for one another spin, for minutes on a busy machine."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def write_subset(
    folder: Path,
    segment: str,
    seed: int,
    rows: int = ROWS,
    away: float = 0,
    samples: int | None = None,
) -> Path:
    """Vectors around 300 centres, with a mean that all share; ``away`` moves them elsewhere.

    ``samples``: the seed whose SAMPLE_IDs they have, if not their own.
    """
    shared = np.random.default_rng(0)
    centres = shared.normal(size=(300, D))
    mean, elsewhere = shared.normal(size=(2, D))
    random = np.random.default_rng(seed)
    topic = random.integers(0, 300, rows)
    for path_of, gap in ((image_path, 1.0), (text_path, -1.0)):
        vectors = centres[topic] + 0.5 * random.normal(size=(rows, D)) + gap * mean
        vectors = (1 - away) * vectors + away * (elsewhere + random.normal(size=(rows, D)))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        path_of(folder, 0).parent.mkdir(parents=True)
        np.save(path_of(folder, 0), vectors.astype(np.float16))
    ids = {"SAMPLE_ID": np.arange(rows) + (seed if samples is None else samples) * 1_000_000}
    ids |= {"crawl": [CRAWL] * rows, "segment": [segment] * rows}
    pq.write_table(pa.table(ids), folder / "part-00000.parquet")
    return folder


class World:
    """Six segments and a codec trained on them."""

    def __init__(self, root: Path) -> None:
        faiss.omp_set_num_threads(1)
        self.root = root
        self.subsets = {
            f"{number:02d}": write_subset(root / f"subset-{number}", f"{number:02d}", number)
            for number in range(6)
        }
        (root / "codec").mkdir()
        train_codec(list(self.subsets.values()), root / "codec", OPTIONS, model=MODEL)
        self.codec = Codec.open(root / "codec")
        self.indices: dict[SegmentKey, Path] = {}
        self.parts = [self.build(segment) for segment in self.subsets]
        self.merge(self.parts[:3], root / "three")
        self.merge(self.parts, root / "six", previous=root / "three")

    def subset_of(self, key: SegmentKey) -> Path:
        return self.subsets[key.segment]

    def but_first(self, folder: Path) -> SubsetOf:
        """Subsets of which segment 00 is another folder."""
        return lambda key: folder if key.segment == "00" else self.subset_of(key)

    def build(self, segment: str, name: str = "own", version: str = "1") -> SegmentIndex:
        out = self.root / name / segment
        build_index(self.subsets[segment], out, OPTIONS, model=MODEL, codec=self.codec)
        key = SegmentKey(CRAWL, segment)
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("codec"))


def vectors(subset: Path, path_of: PathOf = image_path) -> np.ndarray:
    return np.load(path_of(subset, 0)).astype(np.float32)


def finds_own(index: OpenIndex, segment: str, subset: Path) -> float:
    """Share of every 20th vector of the segment that finds itself first, at its own place."""
    _, rows = index.nearest(vectors(subset)[::20], 1, "image")
    right = [
        (place.segment, place.part_row) == (segment, 20 * number)
        for number, place in enumerate(index.places(rows[:, 0]))
    ]
    return sum(right) / len(right)


def searched_recall(
    index_dir: Path, world: World, subsets: Sequence[Path]
) -> dict[str, dict[str, float]]:
    """Recall of the codec's queries against brute force over all that an index should hold."""
    index, measured = OpenIndex(index_dir, world.subset_of), {}
    for modality, path_of in zip(("image", "text"), PATHS, strict=True):
        queries = world.codec.queries(modality)
        truth = Truth.of(queries, [vectors(subset, path_of) for subset in subsets])
        measured[modality] = {}
        for most, depths in ((10, (1, 10)), (100, (100,))):
            _, rows = index.nearest(queries, most, modality)
            scores = index.exact(queries, rows, modality)
            measured[modality] |= recall_at(truth, scores, rows, index.summary.n, depths)
    return measured


def test_a_segment_is_searched_by_its_codes_with_the_recall_asked_for(world: World) -> None:
    own = world.root / "own" / "00"
    summary = IndexSummary.read(own)
    assert (summary.kind, summary.n, summary.codecs()) == ("ivf_sq8", ROWS, [world.codec.id])
    assert size_problem(own, ROWS) is None
    measured = measure_recall(own, world.subset_of, OPTIONS)
    assert min(min(found.values()) for found in measured.values()) >= OPTIONS.min_recall
    for modality in ("image", "text"):
        assert 0.8 < summary.drift[world.codec.id][modality] < 1.2
        assert 0.5 < summary.imbalance[world.codec.id][modality] < 2


def test_a_segments_lists_are_as_large_as_the_segment(world: World) -> None:
    lists = world.root / "own" / "00" / "image.lists"
    assert lists.stat().st_size < ROWS * (D + 8) + 128 * 8 + 100
    codec = world.root / "own" / "00" / "codec" / world.codec.id / "image.index"
    assert codec.samefile(world.root / "codec" / "image.index")


def test_segments_merge_without_training_and_the_truth_with_them(world: World) -> None:
    six = world.root / "six"
    summary = IndexSummary.read(six)
    assert [(run.level, run.n) for run in summary.runs] == [(1, 3 * ROWS), (1, 3 * ROWS)]
    assert size_problem(six, 6 * ROWS) is None
    index = OpenIndex(six, world.subset_of)
    for segment, subset in world.subsets.items():
        assert finds_own(index, segment, subset) > 0.97
    recorded = recorded_recall(summary)
    searched = searched_recall(six, world, list(world.subsets.values()))
    sampled = measure_recall(six, world.subset_of, OPTIONS)
    for modality in ("image", "text"):
        assert recorded[modality] == pytest.approx(searched[modality], abs=1e-9)
        assert min(recorded[modality].values()) >= OPTIONS.min_recall
        # One of the 40 queries is 0.025, and the codec's queries are others.
        assert recorded[modality] == pytest.approx(sampled[modality], abs=0.03)


def test_runs_hold_the_codes_of_their_segments(world: World) -> None:
    first = IndexSummary.read(world.root / "six").runs[0]
    merged = ListsFile.open(world.root / "six" / first.folder / "image.lists")
    parts = [ListsFile.open(world.indices[part.key] / "image.lists") for part in world.parts[:3]]
    assert (merged.sizes == sum(part.sizes for part in parts)).all()
    cell = int(np.argmax(merged.sizes))
    codes, rows = merged.cell(cell)
    assert (codes == np.concatenate([part.cell(cell)[0] for part in parts])).all()
    moved = [part.cell(cell)[1] + number * ROWS for number, part in enumerate(parts)]
    assert (rows == np.concatenate(moved)).all()


@pytest.mark.parametrize("max_dropped", [0.5, 0.0])
def test_a_rebuilt_segment_replaces_its_own_vectors_only(
    world: World, max_dropped: float, tmp_path: Path
) -> None:
    other = write_subset(tmp_path / "rebuilt", "01", 77, samples=1)
    options = OPTIONS.model_copy(update={"max_dropped": max_dropped})
    before, own = world.subsets["01"], world.indices[world.parts[1].key]
    world.subsets["01"] = other
    try:
        part = world.build("01", name=f"rebuilt-{max_dropped}", version="2")
        parts = [world.parts[0], part, *world.parts[2:5]]  # and segment 05 is gone
        summary = world.merge(parts, tmp_path / "out", options, previous=world.root / "six")
        index = OpenIndex(tmp_path / "out", world.subset_of)
        assert summary.n == 5 * ROWS
        assert size_problem(tmp_path / "out", summary.n) is None
        for segment in ("00", "01", "02", "04"):
            assert finds_own(index, segment, world.subsets[segment]) > 0.97
        for gone in (vectors(before), vectors(world.subsets["05"])):
            scores, _ = index.nearest(gone[::40], 1, "image")
            assert scores.max() < 0.97, "no longer found"
        in_files = sum(run.rows for run in summary.runs)
        # The samples of 05 are gone, those of 01 have other vectors.
        assert in_files == summary.n + (ROWS if max_dropped else 0)
        left = [world.subsets[part.key.segment] for part in parts]
        searched = searched_recall(tmp_path / "out", world, left)
        for modality, recall in recorded_recall(summary).items():
            assert recall == pytest.approx(searched[modality], abs=1e-9)
    finally:
        world.subsets["01"], world.indices[world.parts[1].key] = before, own


def test_no_query_that_a_codec_keeps_is_a_samples_own_vector(world: World) -> None:
    for modality in ("image", "text"):
        queries = np.load(world.codec.folder / f"{modality}_queries.npy")
        kept = {query.tobytes() for query in queries}
        for subset in world.subsets.values():
            for path_of in PATHS:
                own = vectors(subset, path_of)
                assert (own @ queries.T.astype(np.float32)).max() < 0.999
                assert not kept & {vector.tobytes() for vector in own.astype(np.float16)}


def test_adding_a_segment_writes_that_segment(world: World, tmp_path: Path) -> None:
    parts = world.parts[:5]
    world.merge(parts, tmp_path / "five")
    five = IndexSummary.read(tmp_path / "five")
    assert [run.level for run in five.runs] == [1]
    world.merge([*parts, world.parts[5]], tmp_path / "six", previous=tmp_path / "five")
    vectors_of = list((tmp_path / "six").rglob("image.lists"))
    assert len(vectors_of) == 2
    assert all(path.stat().st_nlink > 1 for path in vectors_of), "linked, not written"
    # It finds the same as the index that grew in another way.
    queries = vectors(world.subsets["02"])[::50]
    scores = [
        OpenIndex(folder / "six", world.subset_of).nearest(queries, 10, "image")[0]
        for folder in (tmp_path, world.root)
    ]
    assert np.allclose(*scores, atol=1e-6)


def test_samples_that_moved_in_their_part_are_found_where_they_are(
    world: World, tmp_path: Path
) -> None:
    """One sample is removed and one added: all others stand at other rows of the part."""
    old = world.subsets["00"]
    order = np.array([*range(1, ROWS), 0])
    table = pq.read_table(old / "part-00000.parquet")
    ids = table["SAMPLE_ID"].to_numpy()[order].copy()
    ids[-1] = 10**9
    (tmp_path / "new").mkdir()
    moved = table.set_column(0, "SAMPLE_ID", pa.array(ids))
    pq.write_table(moved, tmp_path / "new" / "part-00000.parquet")
    for path_of in PATHS:
        path_of(tmp_path / "new", 0).parent.mkdir()
        np.save(path_of(tmp_path / "new", 0), np.load(path_of(old, 0))[order])
    index = OpenIndex(world.root / "six", world.but_first(tmp_path / "new"))
    before = OpenIndex(world.root / "six", world.subset_of)
    queries = vectors(old)[:200:10]
    expected, rows = before.nearest(queries, 10, "image")
    scores, found = index.nearest(queries, 10, "image")
    assert finds_own(before, "00", old) > 0.9
    left = int(rows[0, 0])  # the first query is the sample that was taken out
    assert left in rows
    assert left not in found
    assert np.array_equal(found[1:], rows[1:])
    assert np.allclose(scores[1:], expected[1:])
    with pytest.raises(StaleIndexError, match="no longer has"):
        index.vectors(np.array([left]), "image")


def test_no_more_files_are_open_than_the_system_allows(world: World, tmp_path: Path) -> None:
    """An index of 300 parts is built in a process that may have 100 files open."""
    parts, rows = 300, 4
    subset = tmp_path / "subset"
    for path_of in PATHS:
        path_of(subset, 0).parent.mkdir(parents=True)
        some = vectors(world.subsets["00"], path_of)[: parts * rows].astype(np.float16)
        for part in range(parts):
            np.save(path_of(subset, part), some[part * rows :][:rows])
    table = pq.read_table(world.subsets["00"] / "part-00000.parquet")
    for part in range(parts):
        pq.write_table(table.slice(part * rows, rows), subset / f"part-{part:05d}.parquet")
    (tmp_path / "own").mkdir()
    (tmp_path / "merged").mkdir()
    script = f"""
import resource
from pathlib import Path
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.knn.build import build_index
from laion_assets.knn.codec import Codec
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.options import IndexOptions
from laion_assets.layout import SegmentKey
from tests.knn.conftest import MODEL
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 100))
root, options = Path({str(tmp_path)!r}), IndexOptions(**{OPTIONS.model_dump()!r})
codec = Codec.open(Path({str(world.root / "codec")!r}))
build_index(root / "subset", root / "own", options, model=codec.summary, codec=codec)
own = SegmentIndex(SegmentKey({CRAWL!r}, "00"), "1")
made = merge_indices([own], lambda _: root / "own", root / "merged", options, root / "subset")
assert made.n == {parts * rows}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_rebuilt_subset_is_skipped_until_the_index_is_rebuilt(
    world: World, tmp_path: Path
) -> None:
    fewer = write_subset(tmp_path / "fewer", "00", 5, rows=10, samples=9)
    index = OpenIndex(world.root / "six", world.but_first(fewer))
    _, rows = index.nearest(vectors(world.subsets["00"])[::100], 10, "image")
    segments = {place.segment for place in index.places(rows[rows >= 0])}
    assert segments == {"01", "02", "03", "04", "05"}
    assert index.stale == {(CRAWL, "00")}


def test_codes_alone_and_exact_scores(world: World) -> None:
    index = OpenIndex(world.root / "six", world.subset_of)
    queries = vectors(world.subsets["00"], text_path)[:30]
    exact, rows = index.nearest(
        queries, 10, "image", parameters=SearchParameters(nprobe=64, rerank=100)
    )
    assert np.allclose(exact, index.exact(queries, rows, "image"), atol=1e-6)
    coded, _ = index.nearest(queries, 10, "image", parameters=SearchParameters(nprobe=64, rerank=0))
    assert not np.allclose(coded, exact, atol=1e-6)
    assert np.allclose(coded, exact, atol=0.05)


def test_the_same_sample_gives_the_same_codec_whatever_the_threads(
    world: World, tmp_path: Path
) -> None:
    faiss.omp_set_num_threads(2)
    subsets = list(world.subsets.values())
    again = train_codec(subsets, tmp_path, OPTIONS, model=MODEL)
    assert again.id == world.codec.id
    for path in codec_files(tmp_path):
        assert path.read_bytes() == (world.codec.folder / path.name).read_bytes()


@pytest.mark.parametrize("kind", ["ivf_rabitq", "ivf_pq"])
def test_the_other_codes(tmp_path: Path, kind: str) -> None:
    options = OPTIONS.model_copy(update={"kind": kind, "tune_recall": 0.8, "memory_gb": 0.0003})
    subset = write_subset(tmp_path / "subset", "00", 0, rows=1_500)
    (tmp_path / "codec").mkdir()
    summary = train_codec([subset], tmp_path / "codec", options, model=MODEL)
    assert summary.code_size == {"ivf_rabitq": 8 + 8, "ivf_pq": 8}[kind]
    codec = Codec.open(tmp_path / "codec")
    for name in ("a", "b"):
        build_index(subset, tmp_path / name, options, model=MODEL, codec=codec)
    lists = [(tmp_path / name / "image.lists").read_bytes() for name in ("a", "b")]
    assert lists[0] == lists[1]
    measured = measure_recall(tmp_path / "a", subset, options)
    assert measured["image"]["10"] > 0.8


def test_another_codec_may_stand_beside_the_first(world: World, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"train_seed": 1})
    (tmp_path / "codec").mkdir()
    train_codec([world.subsets["00"]], tmp_path / "codec", options, model=MODEL)
    other = Codec.open(tmp_path / "codec")
    build_index(world.subsets["00"], tmp_path / "00", options, model=MODEL, codec=other)
    build_index(world.subsets["01"], tmp_path / "01", IndexOptions(), model=MODEL)
    parts = [
        SegmentIndex(SegmentKey(CRAWL, "00"), "other"),
        SegmentIndex(SegmentKey(CRAWL, "01"), "flat"),
        world.parts[2],
    ]
    indices = {
        **world.indices,
        parts[0].key: tmp_path / "00",
        parts[1].key: tmp_path / "01",
    }
    summary = merge_indices(parts, indices.__getitem__, tmp_path / "out", OPTIONS, world.subset_of)
    index = OpenIndex(tmp_path / "out", world.subset_of)
    for segment in ("00", "01", "02"):
        assert finds_own(index, segment, world.subsets[segment]) > 0.97
    assert advice(summary, OPTIONS) == [
        "4,000 vectors have not been encoded",
        "segments are encoded by 2 codecs",
    ]


def test_drift_asks_for_another_codec(world: World, tmp_path: Path) -> None:
    far = write_subset(tmp_path / "far", "09", 9, rows=1_000, away=0.7)
    summary = build_index(far, tmp_path / "out", OPTIONS, model=MODEL, codec=world.codec)
    reasons = advice(summary, OPTIONS)
    assert [line[:11] for line in reasons] == ["image drift", "text drift "]
    assert advice(IndexSummary.read(world.root / "six"), OPTIONS) == []


def test_a_codec_is_asked_for_when_too_much_is_flat(world: World, tmp_path: Path) -> None:
    summary = build_index(world.subsets["00"], tmp_path, IndexOptions(), model=MODEL)
    assert advice(summary, IndexOptions(flat_below=ROWS)) == []
    assert "one by one" in advice(summary, IndexOptions(flat_below=ROWS - 1))[0]
    assert advice(summary, IndexOptions(kind="flat", flat_below=1)) == []
    assert [uses_codec(IndexOptions(), there) for there in (True, False)] == [True, False]
    assert not uses_codec(IndexOptions(kind="flat"), True)
    with pytest.raises(ValueError, match="materialize `index_codec` first"):
        uses_codec(OPTIONS, False)


def test_a_subset_alone_trains_its_own_codec_when_it_is_large(world: World, tmp_path: Path) -> None:
    options = IndexOptions(flat_below=ROWS, recall_queries=20, cells=32)
    few = index_subset(world.subsets["00"], tmp_path, options, model=MODEL)
    assert few.kind == "flat"
    options = options.model_copy(update={"flat_below": ROWS - 1, "memory_gb": 1.0})
    (tmp_path / "many").mkdir()
    many = index_subset(world.subsets["00"], tmp_path / "many", options, model=MODEL)
    assert many.kind == "ivf_rabitq"
    assert size_problem(tmp_path / "many", ROWS) is None
    assert {path.name for path in (tmp_path / "many").iterdir()} == {
        *("index.json", "ids.npy", "ids.parquet", "codec"),
        *(f"{modality}.lists" for modality in ("image", "text")),
        *(f"{modality}_truth.npz" for modality in ("image", "text")),
    }


@pytest.mark.parametrize(
    ("values", "vectors", "kind", "factory"),
    [
        ({}, 1_000_000, "ivf_rabitq", "RR512,IVF4096_HNSW32,RaBitQ"),
        ({}, 100_000, "ivf_rabitq", "RR512,IVF1024_HNSW32,RaBitQ"),
        ({"rerank": False}, 1_000_000, "ivf_sq8", "IVF4096_HNSW32,SQ8"),
        ({"memory_gb": 16}, 400_000_000, "ivf_pq", "OPQ32_512,IVF65536_HNSW32,PQ32x8np"),
        ({"memory_gb": 64}, 400_000_000, "ivf_rabitq", "RR512,IVF65536_HNSW32,RaBitQ"),
        ({"kind": "ivf_pq"}, 1_000_000, "ivf_pq", "OPQ64_512,IVF4096_HNSW32,PQ64x8np"),
    ],
)
def test_the_index_follows_size_and_memory(
    values: dict[str, object], vectors: int, kind: str, factory: str
) -> None:
    choice = choose(IndexOptions(**values), vectors=vectors, sample=4_000_000, d=512)
    assert (choice.kind, choice.factory) == (kind, factory)


def test_what_cannot_be_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(TooFewVectorsError, match="100 vectors are too few"):
        choose(IndexOptions(), vectors=1000, sample=100, d=8)
    with pytest.raises(ValueError, match="needs no codec"):
        choose(IndexOptions(kind="flat"), vectors=1000, sample=1000, d=8)
    assert choose(IndexOptions(), vectors=10**6, sample=4000, d=8).cells == 64
    with pytest.raises(IndexMismatchError, match=r"trained for m \(version 1\), .* are of n \(v"):
        build_index(world.subsets["00"], tmp_path, OPTIONS, model=OTHER, codec=world.codec)
    moved = MODEL.model_copy(update={"model": "the/same"})
    summary = build_index(world.subsets["00"], tmp_path, OPTIONS, model=moved, codec=world.codec)
    assert summary.identity == moved


def test_images_without_captions_are_in_the_image_index_alone(world: World, tmp_path: Path) -> None:
    """Beside segments with captions, in runs of their own."""
    few = OPTIONS.model_copy(update={"merge_every": 2})
    bare, made = {}, []
    for number in ("07", "08"):
        bare[number] = write_subset(tmp_path / number, number, int(number), rows=500)
        shutil.rmtree(bare[number] / "_text_emb")
        world.subsets[number] = bare[number]
        made.append(world.build(number, name=str(tmp_path / "own")))
        assert size_problem(world.indices[made[-1].key], 500) is None
    try:
        world.merge([*world.parts[:1], made[0]], tmp_path / "first", few)
        parts = [*world.parts[:2], *made]
        summary = world.merge(parts, tmp_path / "out", few, previous=tmp_path / "first")
        runs = {len(run.modalities): (run.level, run.n) for run in summary.runs}
        assert runs == {2: (1, 2 * ROWS), 1: (1, 1_000)}
        assert size_problem(tmp_path / "out", summary.n) is None
        index = OpenIndex(tmp_path / "out", world.subset_of)
        assert finds_own(index, "08", bare["08"]) > 0.97
        _, rows = index.nearest(vectors(bare["07"])[:20], 100, "text")
        assert {place.segment for place in index.places(rows.ravel())} == {"00", "01"}
        recorded = recorded_recall(summary)
        assert min(recorded["image"].values()) >= OPTIONS.min_recall
        assert min(recorded["text"].values()) >= OPTIONS.min_recall
        sampled = measure_recall(tmp_path / "out", world.subset_of, OPTIONS)
        assert min(sampled["image"].values()) >= OPTIONS.min_recall - 0.03
    finally:
        for number in bare:
            del world.subsets[number]


def test_a_codec_of_images_alone_is_for_these_alone(world: World, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"cells": 8, "vectors": 1_000})
    bare = write_subset(tmp_path / "bare", "07", 7, rows=1_000)
    shutil.rmtree(bare / "_text_emb")
    few = write_subset(tmp_path / "few", "08", 8, rows=400)
    for name, subsets in (("alone", [bare]), ("both", [bare, few])):
        (tmp_path / name).mkdir()
        train_codec(subsets, tmp_path / name, options, model=MODEL)
    alone, both = (Codec.open(tmp_path / name) for name in ("alone", "both"))
    assert ([*alone.summary.modalities], [*both.summary.modalities]) == (
        ["image"],
        ["image", "text"],
    )
    assert len(codec_files(alone.folder)) == 2
    flat = build_index(few, tmp_path / "flat", options, model=MODEL, codec=alone)
    assert [(run.kind, [*run.modalities]) for run in flat.runs] == [("flat", ["image", "text"])]
    for codec in (alone, both):
        out = tmp_path / f"of-{codec.id}"
        build_index(bare, out, options, model=MODEL, codec=codec, tuned=True)
        assert min(measure_recall(out, bare, options)["image"].values()) > 0.9
    build_index(few, tmp_path / "texts", options, model=MODEL, codec=both, tuned=True)
    assert min(measure_recall(tmp_path / "texts", few, options)["text"].values()) > 0.9


def test_a_handful_of_captions_trains_nothing(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = OPTIONS.model_copy(update={"cells": 8, "vectors": 1_000})
    bare = write_subset(tmp_path / "bare", "07", 7, rows=1_000)
    shutil.rmtree(bare / "_text_emb")
    few = write_subset(tmp_path / "few", "08", 8, rows=3)
    (tmp_path / "codec").mkdir()
    summary = train_codec([bare, few], tmp_path / "codec", options, model=MODEL)
    assert [*summary.modalities] == ["image"]
    assert "3 of 1,003 have captions, too few to train 8 cells" in caplog.text
    codec, own = Codec.open(tmp_path / "codec"), {}
    for number, subset in (("07", bare), ("08", few)):
        own[SegmentKey(CRAWL, number)] = subset, tmp_path / f"own-{number}"
        build_index(subset, tmp_path / f"own-{number}", options, model=MODEL, codec=codec)
    merged = merge_indices(
        [SegmentIndex(key, "1") for key in own],
        lambda key: own[key][1],
        tmp_path / "out",
        options,
        lambda key: own[key][0],
    )
    assert advice(merged, options) == ["3 vectors have not been encoded"]
    index = OpenIndex(tmp_path / "out", lambda key: own[key][0])
    for modality, path_of in zip(("image", "text"), PATHS, strict=True):
        _, rows = index.nearest(vectors(few, path_of), 1, modality)
        assert [place.part_row for place in index.places(rows[:, 0])] == [0, 1, 2]


def test_drift_is_never_relative_to_nothing(world: World) -> None:
    known = world.codec.summary.model_dump()
    same = CodecSummary(**known | {"residual": {"image": 0.0, "text": -2e-5}})
    assert min(same.residual.values()) > 0
    assert CodecSummary(**known).residual == known["residual"]
