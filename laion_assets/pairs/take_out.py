"""Listed pairs, found and taken out of a segment's parts.

The parts stay what the WAT files gave, without the listed rows; each part says by which entries
it lost how many. While these entries are in force, a segment is rid of newly listed pairs by
copying its parts, and the WAT files are read again only when an entry has left its list.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.files import atomic_path
from laion_assets.funnel import EXAMPLE_CHARS, StageCounts
from laion_assets.pairs.extract import PairWriter, read_counts
from laion_assets.pairs.uids import halves
from laion_assets.removals.active import REASONS, Lists
from laion_assets.removals.ledger import Taken, all_listed, from_json, to_json
from laion_assets.removals.lists import Key

_TAKEN_KEY: Final = b"laion_assets.taken_out"


def named(
    urls: Sequence[str], uids: pa.Array | pa.ChunkedArray, lists: Lists
) -> dict[int, tuple[str, Key]]:
    """Row -> the list and the entry that name it; a row that several name gets the first."""
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


def taken_out(part: Path) -> Taken:
    """What lists have taken out of a part."""
    text = (pq.read_metadata(part).metadata or {}).get(_TAKEN_KEY)
    return Taken() if text is None else from_json(text)


def start_from(before: Path | None, out: Path, lists: Lists) -> None:
    """Have in ``out`` what may be gone on with: its own parts, or those of ``before``.

    ``before`` is an earlier version made of the same WAT files by the same rules. Parts that an
    entry took something out of which is no longer in force are of no use: they are not taken over,
    and in ``out`` they are deleted.
    """
    own = _parts(out)
    if not all(all_listed(taken_out(part), lists) for part in own):
        for part in own:
            part.unlink()
        own = []
    parts = [] if before is None else _parts(before)
    if own or not all(all_listed(taken_out(part), lists) for part in parts):
        return
    for part in parts:
        os.link(part, out / part.name)


def take_out(out: Path, lists: Lists) -> Taken:
    """Rewrite the parts that hold listed rows; gives all that lists have taken out of ``out``.

    A killed call is gone on with by the next.
    """
    all_taken = Taken()
    for part in _parts(out):
        taken = taken_out(part)
        rows = _named_rows(part, lists) if lists else {}
        counts = read_counts(part)
        if rows or _forget_examples(counts, lists):
            taken.update(rows.values())
            _rewrite(part, rows, counts, taken)
        all_taken += taken
    return all_taken


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _named_rows(part: Path, lists: Lists) -> dict[int, tuple[str, Key]]:
    rows: dict[int, tuple[str, Key]] = {}
    at = 0
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(columns=["url", "uid"]):
            found = named(batch["url"].to_pylist(), batch["uid"], lists)
            rows |= {at + row: by for row, by in found.items()}
            at += batch.num_rows
    return rows


def _rewrite(
    part: Path, rows: dict[int, tuple[str, Key]], counts: Sequence[StageCounts], taken: Taken
) -> None:
    pairs = next(of_stage for of_stage in counts if of_stage.stage == "pairs")
    for name, _ in rows.values():
        pairs.kept -= 1
        pairs.n_in -= 1
        pairs.reject(REASONS[name])
    with (
        pq.ParquetFile(part) as file,
        atomic_path(part) as beside,
        PairWriter(beside) as writer,
    ):
        keep = np.ones(file.metadata.num_rows, dtype=np.bool_)
        keep[list(rows)] = False
        at = 0
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            writer.write(group.filter(pa.array(keep[at : at + group.num_rows])))
            at += group.num_rows
        writer.note_counts(counts)
        writer.note(_TAKEN_KEY, to_json(taken))


def _forget_examples(counts: Sequence[StageCounts], lists: Lists) -> bool:
    """A listed pair may also stand as an example of some other reject, as a duplicate does, in
    its own part or in that of another WAT file. Whether one did."""

    def forgotten(example: str) -> bool:
        url = example.split(" ", 1)[0]
        if not url.startswith(("http://", "https://")):
            return False
        # One that was cut within its URL may be any that begins so.
        cut = len(example) >= EXAMPLE_CHARS and url == example
        return cut or any(entries.matches_url(url) for _, entries in lists.each())

    found = False
    for of_stage in counts if lists else ():
        for reason, examples in of_stage.examples.items():
            kept = [example for example in examples if not forgotten(example)]
            found |= len(kept) < len(examples)
            of_stage.examples[reason] = kept
    return found
