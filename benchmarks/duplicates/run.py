"""``python -m benchmarks.duplicates.run``: recall and precision by kind of copy, and growth."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks import table
from benchmarks.duplicates.growth import Growing
from benchmarks.duplicates.planted import (
    ORIGINAL,
    REACHED,
    Planted,
    clusters,
    measured,
    plant,
    vendors,
)
from benchmarks.duplicates.segments import Segments
from benchmarks.peer import WORK
from laion_assets.clip.model import load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.layout import SegmentKey
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.signature import SIGNATURE

_LIKENESS: Final = (0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
_EMBEDDING: Final = (-1.0, 0.7, 0.8, 0.9)
_DISTANCES: Final = range(0, 21, 2)
_PRECISE: Final = 0.98
_SEGMENTS: Final = 8
_MODEL: Final = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny", device="cpu")

Way = TypeVar("Way")
Result = Mapping[str, tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--things", type=int, default=70, help="things with a picture of each vendor"
    )
    parser.add_argument(
        "--segments", default="10,100,1000", help="sizes of the ledger, in segments"
    )
    parser.add_argument("--images", type=int, default=500, help="images per segment")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each size")
    args = parser.parse_args()
    things = vendors()
    chosen = things[:: max(1, len(things) // args.things)][: args.things]
    model = load_clip(_MODEL)
    halves = [
        plant([name for pair in chosen[half::2] for name in pair], model, seed=half)
        for half in (0, 1)
    ]
    texts = [_recall(*halves), _growth(args.segments, args.images, args.rounds)]
    table.publish("duplicates", "\n\n".join(texts))


def _recall(chosen_on: Planted, shown_on: Planted) -> str:
    grid = [
        NearDuplicateOptions(likeness=likeness, embedding=embedding)
        for likeness in reversed(_LIKENESS)
        for embedding in reversed(_EMBEDDING)
    ]
    options = _best(grid, lambda one: measured(chosen_on, clusters(chosen_on, one)))
    distance = _best(_DISTANCES, lambda one: _all_pairs(chosen_on, one))
    alone = options.model_copy(update={"embedding": -1.0})
    shown = {
        "ours": measured(shown_on, clusters(shown_on, options)),
        f"over {_SEGMENTS} segments": measured(shown_on, _over_segments(shown_on, options)),
        "hashes alone": measured(shown_on, clusters(shown_on, alone)),
        "64-bit pHash, all pairs": _all_pairs(shown_on, distance),
    }
    columns = [
        "kind of copy",
        *(f"{name}: {what}" for name in shown for what in ("recall", "precision")),
    ]
    rows = [
        [kind, *(f"{value:.3f}" for result in shown.values() for value in result[kind])]
        for kind in shown["ours"]
        if kind != ORIGINAL
    ]
    pictures = len(np.unique(shown_on.picture))
    return (
        table.markdown(columns, rows)
        + f"\n\n{pictures} pictures and a copy of each kind; for each of another vendor's picture "
        f"of the same thing, too. Chosen on {len(np.unique(chosen_on.picture))} other pictures: "
        f"likeness {options.likeness:g} and embedding {options.embedding:g}; for pHash a distance "
        f"of {distance}."
    )


def _over_segments(planted: Planted, options: NearDuplicateOptions) -> NDArray[np.int64]:
    """(n,): the cluster of each image, if any of a few segments has it."""
    where = np.random.default_rng(0).integers(_SEGMENTS, size=len(planted.images))
    with tempfile.TemporaryDirectory() as folder:
        segments = Segments(Path(folder), planted, options)
        keys = [SegmentKey("CC-MAIN-2021-01", f"{number:02d}") for number in range(_SEGMENTS)]
        for number, key in enumerate(keys):
            segments.make(key, np.flatnonzero(where == number).tolist())
        found = segments.clusters(*keys)
    return np.array([found[row][0] for row in range(len(found))])


def _best(ways: Iterable[Way], measure: Callable[[Way], Result]) -> Way:
    """The way with the most recall of the kinds that have goals, where all are precise enough; of
    equally good ones the first, which is the strictest."""

    def rank(result: Result) -> tuple[float, ...]:
        reached = [result[kind] for kind in REACHED]
        short = sum(max(0.0, _PRECISE - precision) for _, precision in reached)
        return -short, float(np.mean([recall for recall, _ in reached]))

    return max(ways, key=lambda way: rank(measure(way)))


def _all_pairs(planted: Planted, distance: int) -> Result:
    """The usual way: 64 bits by the median of 8 × 8 frequencies of the stored image, every two
    images compared, and all that are near in one cluster."""
    far = np.bitwise_count(planted.phash[:, None] ^ planted.phash[None, :])
    near = far <= distance
    cluster = np.arange(len(near))
    while True:
        lowest = np.where(near, cluster, len(near)).min(axis=1)
        if (lowest == cluster).all():
            return measured(planted, cluster)
        cluster = lowest


def _growth(sizes: str, images: int, rounds: int) -> str:
    root = WORK / "duplicates"
    shutil.rmtree(root, ignore_errors=True)
    made = [
        (segments, Growing(root / f"{segments}", images, segments))
        for segments in map(int, sizes.split(","))
    ]
    # One after another, so that a busy machine is busy for all of them.
    for _ in range(rounds):
        for segments, growing in made:
            print(segments, growing.measure(), file=sys.stderr, flush=True)
    rows = [
        [
            f"{segments:,}",
            f"{growing.bytes / 1e9:.2f}",
            f"{min(growing.cpu):.2f}",
            f"{min(growing.seconds):.2f}",
            f"{growing.read // SIGNATURE.itemsize:,}",
            f"{growing.foreign:,}",
        ]
        for segments, growing in made
    ]
    few, many = made[0][1], made[-1][1]
    growth = min(many.cpu) / min(few.cpu)
    columns = ["segments held", "ledger: GB", "CPU s", "s", "others' images read", "copies of them"]
    shutil.rmtree(root)
    return (
        table.markdown(columns, rows)
        + f"\n\nOne more segment of {images:,} images, hashed before, the best of {rounds}. From "
        f"{made[0][0]:,} segments to {made[-1][0]:,} the CPU time grows {growth:.2f} times "
        f"(exponent {math.log(growth) / math.log(made[-1][0] / made[0][0]):.2f})."
    )


if __name__ == "__main__":
    main()
