"""Find listed pairs and take them out of a segment's parts.

The parts hold what the WAT files gave, without the listed rows; each part records which entries
took out how many of its rows. While these entries are in force, newly listed pairs leave a segment
by copying its parts. The WAT files are read again only when an entry has left its list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.files import link_or_copy
from laion_assets.funnel import EXAMPLE_CHARS, StageCounts
from laion_assets.layout import PAIR_PARQUET, PARTITIONS
from laion_assets.pairs.extract import PairWriter, own_columns_path, read_counts
from laion_assets.pairs.uids import halves
from laion_assets.removals.active import REASON_OF_LIST, Lists
from laion_assets.removals.entry import Key
from laion_assets.removals.ledger import RemovalCounts, all_listed, from_json, to_json
from laion_assets.schemas import sample_id_of
from laion_assets.tables import TableWriter, batches, read_parquet, rows_in

_TAKEN_KEY: Final = b"laion_assets.taken_out"
_ARROW_SCHEMA: Final = b"ARROW:schema"
"""Key of what parquet's writer itself puts into a file's metadata."""


def listed_rows(part: Path, lists: Lists) -> dict[int, tuple[str, Key]]:
    """Row of a part -> the first list that names it, and the key of its entry."""
    rows: dict[int, tuple[str, Key]] = {}
    at = 0
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(columns=["url", "uid"]):
            found = _named(batch["url"].to_pylist(), batch["uid"], lists)
            rows |= {at + row: by for row, by in found.items()}
            at += batch.num_rows
    return rows


def _named(
    urls: Sequence[str], uids: pa.Array | pa.ChunkedArray, lists: Lists
) -> dict[int, tuple[str, Key]]:
    found: dict[int, tuple[str, Key]] = {}
    ids: NDArray[np.int64] | None = None
    for name, entries in lists.each():
        mask = np.zeros(len(urls), dtype=np.bool_)
        if entries.names_urls:
            mask |= entries.which_urls(urls)
        if entries.names_samples:
            ids = halves(uids)[0].view(np.int64) if ids is None else ids
            mask |= entries.which_samples(ids)
        for row in np.flatnonzero(mask).tolist():
            if row not in found:
                key = entries.key_for_url(urls[row])
                if key is None and ids is not None:
                    key = entries.key_for_sample(int(ids[row]))
                assert key is not None
                found[row] = (name, key)
    return found


def taken_out(part: Path) -> RemovalCounts:
    """What the lists took out of a part, by entry."""
    text = (pq.read_metadata(part).metadata or {}).get(_TAKEN_KEY)
    return RemovalCounts() if text is None else from_json(text)


def start_from(before: Path | None, out: Path, lists: Lists) -> None:
    """Prepare ``out`` with the parts to resume from: its own, or links to those of ``before``.

    ``before`` is an earlier version made of the same WAT files by the same rules. Parts from which
    an entry took something out that is no longer in force cannot be used: they are not linked, and
    in ``out`` they are deleted.
    """
    own = _parts(out)
    if not all(all_listed(taken_out(part), lists) for part in own):
        for part in own:
            part.unlink()
            own_columns_path(part).unlink(missing_ok=True)
        own = []
    parts = [] if before is None else _parts(before)
    if own or not all(all_listed(taken_out(part), lists) for part in parts):
        return
    for part in parts:
        if own_columns_path(part).exists():
            beside = own_columns_path(out / part.name)
            beside.parent.mkdir(exist_ok=True)
            beside.unlink(missing_ok=True)
            link_or_copy(own_columns_path(part), beside)
        link_or_copy(part, out / part.name)


def take_out(out: Path, lists: Lists) -> RemovalCounts:
    """Rewrite the parts that hold listed rows; return all that lists have taken out of ``out``.

    The next call resumes a killed one.
    """
    all_removed = RemovalCounts()
    for part in _parts(out):
        removed = taken_out(part)
        rows = listed_rows(part, lists) if lists else {}
        counts = read_counts(part)
        if rows or _forget_examples(counts, lists):
            removed.update(rows.values())
            _rewrite(part, rows, counts, removed)
        all_removed += removed
    return all_removed


def _parts(folder: Path) -> list[Path]:
    return PARTITIONS[PAIR_PARQUET].rows.paths(folder)


def _rewrite(
    part: Path,
    rows: dict[int, tuple[str, Key]],
    counts: Sequence[StageCounts],
    removed: RemovalCounts,
) -> None:
    pairs = next(of_stage for of_stage in counts if of_stage.stage == "pairs")
    for name, _ in rows.values():
        pairs.drop(REASON_OF_LIST[name])
    _drop_own_columns(part, list(rows))
    keep = np.ones(rows_in(part), dtype=np.bool_)
    keep[list(rows)] = False
    with PairWriter(part) as writer:
        writer.copy(part, keep)
        for note, text in pq.read_metadata(part).metadata.items():
            if note != _ARROW_SCHEMA:
                writer.note(note, text.decode())
        writer.note_counts(counts)
        writer.note(_TAKEN_KEY, to_json(removed))


def _drop_own_columns(part: Path, rows: Sequence[int]) -> None:
    """Drop rows of a part from the list's own columns beside it, if there are any.

    By SAMPLE_ID, so that a call after a kill between this and the part drops nothing else.
    """
    path = own_columns_path(part)
    if not (path.exists() and rows):
        return
    uids = read_parquet(part, ["uid"])["uid"].take(pa.array(rows)).to_pylist()
    gone = pa.array([sample_id_of(uid) for uid in uids], pa.int64())
    with TableWriter(path, pq.read_schema(path)) as writer:
        for batch in batches(path):
            table = pa.Table.from_batches([batch])
            writer.write(table.filter(pc.invert(pc.is_in(table["SAMPLE_ID"], value_set=gone))))


def _forget_examples(counts: Sequence[StageCounts], lists: Lists) -> bool:
    """Delete listed pairs from the examples of rejects; return whether there were any.

    A listed pair may be the example of another reject, as a duplicate is, in its own part or in
    that of another WAT file.
    """

    def forgotten(example: str) -> bool:
        url = example.split(" ", 1)[0]
        if not url.startswith(("http://", "https://")):
            return False
        # An example that was cut within its URL may be any URL that begins so.
        cut = len(example) >= EXAMPLE_CHARS and url == example
        return cut or any(entries.matches_url(url) for _, entries in lists.each())

    found = False
    for of_stage in counts if lists else ():
        for reason, examples in of_stage.examples.items():
            kept = [example for example in examples if not forgotten(example)]
            found |= len(kept) < len(examples)
            of_stage.examples[reason] = kept
    return found
