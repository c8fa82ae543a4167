"""Pictures of clusters, for people: the first image of each, and some that joined it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.download.preview import Sample, sheet
from laion_assets.download.shard_files import tar_path
from laion_assets.layout import NEAR_DUPLICATES, PARTITIONS
from laion_assets.near_duplicates.signatures import rows_of
from laion_assets.tables import read_parquet

CLUSTERS: Final = 6
IN_EACH: Final = 4


def cluster_sheet(folder: Path, embeddings: Path, shards: Path) -> bytes:
    """JPEG of at most 150 KB: a segment's clusters whose images differ most in their bytes.

    ``folder``: a partition of near-duplicates. ``embeddings``, ``shards``: what it was made of. A
    cluster without an image that differs in its bytes is not shown.
    """
    parts = PARTITIONS[NEAR_DUPLICATES].rows.paths(folder)
    found = pa.concat_tables(
        [read_parquet(part, ["cluster", "likeness", "first"]) for part in parts]
    )
    rows = rows_of(embeddings)
    cluster, likeness = found["cluster"].to_numpy(), found["likeness"].to_numpy()
    first = found["first"].to_numpy()
    samples: list[Sample] = []
    for number, of in enumerate(_most_varied(cluster, rows["sha256"].to_pylist())):
        members = np.flatnonzero(cluster == of)
        members = members[np.lexsort((-likeness[members], ~first[members]))][:IN_EACH]
        for row in members.tolist():
            name = "first" if first[row] else f"{likeness[row]:.3f}"
            shard, key = rows["shard"][row].as_py(), rows["key"][row].as_py()
            samples.append(Sample(tar_path(shards, shard), key, f"cluster {number + 1}: {name}"))
    return sheet(samples)


def _most_varied(cluster: NDArray[np.int64], sha256: Sequence[str | None]) -> list[int]:
    """The clusters with the most different images, at least two, by falling number of them."""
    pairs = {(int(of), sha) for of, sha in zip(cluster, sha256, strict=True)}
    sizes = Counter(of for of, _ in pairs)
    found = sorted((-n, of) for of, n in sizes.items() if n > 1)
    return [of for _, of in found[:CLUSTERS]]
