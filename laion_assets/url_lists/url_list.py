"""A whole URL list: its ranges of rows, its pairs in one file, its segments as a crawl."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from laion_assets.funnel import StageCounts
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.segment import extract_segment
from laion_assets.tables import part_path
from laion_assets.url_lists.columns import Columns
from laion_assets.url_lists.extract import ExtractRange, RowRange, carried_schema
from laion_assets.url_lists.files import ListFile, UrlListError, find_files
from laion_assets.url_lists.options import ReadOptions
from laion_assets.url_lists.rows import open_rows

KIND: Final = "row ranges"
ROWS_PER_RANGE: Final = 250_000
"""Rows of a parquet file that one process reads. Other files can only be read from their
beginning, and so by one."""


@dataclass(frozen=True)
class MadeOfList:
    """What :func:`pairs_of_list` has made."""

    counts: StageCounts
    files: int
    columns: Columns
    """Those of the first file."""

    def __str__(self) -> str:
        text = self.columns.text
        captions = f"captions from {text}" if text else "no captions"
        others = len(self.columns.others)
        return f"{self.files} files: URLs from {self.columns.url}, {captions}" + (
            f", {others} other columns as source_*" if others else ""
        )


def pairs_of_list(
    places: Sequence[str], out: Path, rules: PairRules, options: ReadOptions, *, workers: int
) -> MadeOfList:
    """Write the pairs of a list to the one file ``out``, whole or not at all.

    The list's other columns stand behind those of :data:`~laion_assets.schemas.PAIRS`, as
    ``source_<name>``. Of pairs with the same (URL, TEXT) the first is kept. Memory: a batch of rows
    for each worker, and one byte a pair.

    Raises :class:`~laion_assets.url_lists.files.UrlListError` for a list that cannot be read, and
    what :func:`~laion_assets.pairs.segment.extract_segment` raises.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        scratch = Path(folder)
        found_files = find_files(places, options)
        files = [_near(file, scratch / str(n)) for n, file in enumerate(found_files)]
        found = []
        ranges: list[RowRange] = []
        for file in files:
            with open_rows(file, options) as rows:
                found.append((rows.schema, rows.columns))
                n = rows.count() if file.format == "parquet" else 0
            of_file = [RowRange(file.name, *span) for span in spans(0, n, ROWS_PER_RANGE)]
            # The last goes to the file's end, whatever lines could not be read before.
            last = of_file.pop() if of_file else RowRange(file.name)
            ranges += [*of_file, last._replace(end=None)]
        columns = [chosen for _, chosen in found]
        _same_kind(files, columns)
        made = scratch / "made"
        made.mkdir()
        extract = ExtractRange(_by_name(files), options, carried_schema(found))
        _, counts = extract_segment(
            list(map(str, ranges)),
            _nothing,
            made,
            rules,
            crawl="",
            segment="",
            workers=workers,
            extract=extract,
            kind=KIND,
            rows_per_part=sys.maxsize,
        )
        part_path(made, 0).replace(out)
    return MadeOfList(counts, len(files), columns[0])


def _near(file: ListFile, folder: Path) -> ListFile:
    """A remote file that must be read from its beginning, copied; any other as it is."""
    if file.local or file.format == "parquet":
        return file
    folder.mkdir()
    copy = folder / file.name.rsplit("/", 1)[-1]
    file.copy_to(copy)
    return replace(file, url=str(copy), local=True)


def _nothing(_range: str, _to: Path) -> None:
    """Fetch nothing: ranges are read where they are."""


def _by_name(files: Sequence[ListFile]) -> dict[str, ListFile]:
    return {file.name: file for file in files}


def _same_kind(files: Sequence[ListFile], columns: Sequence[Columns]) -> None:
    without = [file.url for file, of in zip(files, columns, strict=True) if of.text is None]
    if without and len(without) < len(files):
        raise UrlListError(
            f"{without[0]} has no captions, while other files of the list have some: name the "
            "files of one kind, or take the images alone"
        )


def check_captions(file: ListFile, columns: Columns) -> None:
    """Raise :class:`~laion_assets.url_lists.files.UrlListError` for a file without captions."""
    if columns.text is None:
        raise UrlListError(
            f"{file.url} has no column with a known name of captions: name it by `text`, or set "
            "`captions = false` to take the images alone, which have no similarity to filter by"
        )


def spans(begin: int, end: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yield spans of at most ``rows`` rows, from one number to before another."""
    for first in range(begin, end, rows):
        yield first, min(first + rows, end)
