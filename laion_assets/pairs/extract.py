"""Extract the pairs of WAT files into parquet.

A link is checked in this order, and the first check that fails names the reason: ``bad_value`` (it
has a value that is not sound text), ``not_image``, ``no_alt``, then the text
(:meth:`.rules.PairRules.refused_text`), then the URL (:func:`.urls.image_url`,
:meth:`.rules.PairRules.refused_url`), then ``language``, then ``duplicate``, and, once all pairs
are known, ``url_many_texts`` (:mod:`.many_texts`). A link that is not an image and has no alt text
is not counted. :mod:`.judge` has the rules of text, URL and language.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.funnel import StageCounts
from laion_assets.layout import OWN_COLUMNS
from laion_assets.pairs import many_texts
from laion_assets.pairs.judge import Judge
from laion_assets.pairs.licence import page_licence
from laion_assets.pairs.many_texts import rows_of_many_texts
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.text import clean_text
from laion_assets.pairs.urls import ImageUrls, base_url
from laion_assets.schemas import PAIRS, sample_id_of, uid_of
from laion_assets.tables import ROW_GROUP, TableWriter, batches
from laion_assets.wat import Page, read_pages
from laion_assets.wat.pages import IMAGE_PATH

COUNTS_KEY: Final = b"laion_assets.counts"
"""Key of a part's own counts in its parquet metadata, so that a finished part says what it cost."""

# As Python objects, a row takes some four times the memory that it takes in a table.
_ROWS_AS_OBJECTS: Final = 10_000
# uid never repeats in a part, and URLs and texts hardly do.
DICTIONARY: Final = ["language", "license", "page_url", "crawl", "segment", "wat_file"]


class Pair(NamedTuple):
    """The columns of :data:`schemas.PAIRS` that the page decides."""

    uid: bytes
    url: str
    text: str
    language: str
    language_score: float
    license: str
    page_url: str


class PairWriter(TableWriter):
    """Writes one parquet file of :data:`schemas.PAIRS`, in row groups of :data:`ROW_GROUP`.

    ``more``: further columns, behind those.
    """

    def __init__(self, path: Path, more: Iterable[pa.Field] = ()) -> None:
        schema = pa.schema([*PAIRS, *more])
        super().__init__(path, schema, use_dictionary=DICTIONARY)
        self._waiting = schema.empty_table()

    def _finish(self) -> None:
        super().write(self._waiting)

    def write(self, rows: pa.Table, row_group: int = ROW_GROUP) -> None:
        """Add rows; they reach the file when they fill a row group, or at the end."""
        self._waiting = pa.concat_tables([self._waiting, rows.select(self._waiting.column_names)])
        full = self._waiting.num_rows // row_group * row_group
        super().write(self._waiting.slice(0, full), row_group)
        self._waiting = self._waiting.slice(full)

    def copy(self, part: Path, keep: NDArray[np.bool_]) -> None:
        """Write the rows of another file where ``keep`` is true.

        ``keep``: (n,) bool, one for each row of ``part``.
        """
        at = 0
        for batch in batches(part):
            rows = pa.Table.from_batches([batch])
            self.write(rows.filter(pa.array(keep[at : at + rows.num_rows])))
            at += rows.num_rows

    def note_counts(self, counts: Sequence[StageCounts]) -> None:
        """Put the counts into the file's metadata."""
        text = json.dumps([part.to_json() for part in counts], sort_keys=True)
        self.note(COUNTS_KEY, text)


def own_columns_path(part: Path) -> Path:
    """Place of a URL list's own columns of the rows of a part."""
    return part.parent / OWN_COLUMNS / f"{part.stem}.pq"


class OwnColumnsWriter(TableWriter):
    """Writes a URL list's own columns beside a part: SAMPLE_ID, then the columns ``more``.

    In a partition they stand apart, because those of all crawls have the same columns.
    """

    def __init__(self, part: Path, more: Sequence[pa.Field]) -> None:
        schema = pa.schema([("SAMPLE_ID", pa.int64()), *more])
        path = own_columns_path(part)
        path.parent.mkdir(exist_ok=True)
        super().__init__(path, schema)
        self._names = [field.name for field in more]

    def copy(self, part: Path, keep: NDArray[np.bool_]) -> None:
        """Write the columns of the rows of a part in the making that has them, where ``keep``."""
        at = 0
        for batch in batches(part, ["uid", *self._names]):
            rows = pa.Table.from_batches([batch]).filter(pa.array(keep[at : at + batch.num_rows]))
            ids = [sample_id_of(uid) for uid in rows["uid"].to_pylist()]
            columns = [pa.array(ids, pa.int64()), *(rows[name] for name in self._names)]
            self.write(pa.table(columns, names=["SAMPLE_ID", *self._names]))
            at += batch.num_rows


def read_counts(part: Path) -> list[StageCounts]:
    """The counts that :meth:`PairWriter.note_counts` put into a part."""
    metadata = pq.read_metadata(part).metadata
    return [StageCounts.from_json(value) for value in json.loads(metadata[COUNTS_KEY])]


def page_pairs(
    page: Page, rules: PairRules, counts: StageCounts, seen: set[bytes]
) -> Iterator[Pair]:
    """Yield the page's pairs that pass the rules and are not in ``seen``, and add them to it.

    ``seen`` holds uids. ``counts`` (stage ``pairs``) counts every image and alt text.
    """
    base = base_url(page.url, page.base) if page.links else None
    urls, judge = ImageUrls(base, rules.max_url_chars), Judge(rules, counts)
    licence: str | None = None
    for link in page.links:
        if link.damaged:
            counts.reject("bad_value", link.url or link.alt)
            continue
        if link.path != IMAGE_PATH:
            counts.reject("not_image", link.alt)
            continue
        text = judge.text(clean_text(link.alt) if link.alt else "")
        if text is None or (url := judge.url(link.url, urls)) is None:
            continue
        detected = judge.language(text)
        if detected is None:
            continue
        uid = uid_of(url, text)
        if uid in seen:
            counts.reject("duplicate", f"{url} {text}")
            continue
        seen.add(uid)
        counts.keep()
        if licence is None:
            licence = page_licence(page.licences, base)
        yield Pair(uid, url, text, *detected, licence, page.url)


def _tables(pairs: Iterator[Pair], place: Mapping[str, str]) -> Iterator[pa.Table]:
    """Yield tables of some rows; ``place`` holds the columns that all rows share."""
    while batch := list(islice(pairs, _ROWS_AS_OBJECTS)):
        yield _table(batch, place)


def _table(batch: Sequence[Pair], place: Mapping[str, str]) -> pa.Table:
    columns = dict(zip(Pair._fields, zip(*batch, strict=True), strict=True))
    return pa.table(
        [
            pa.repeat(pa.scalar(place[field.name], field.type), len(batch))
            if field.name in place
            else pa.array(columns[field.name], field.type)
            for field in PAIRS
        ],
        schema=PAIRS,
    )


def extract_wat(
    wat: Path, out: Path, rules: PairRules, *, crawl: str, segment: str, wat_file: str
) -> tuple[StageCounts, StageCounts]:
    """Write the pairs of one WAT file to ``out``, whole or not at all.

    Duplicates within the file are dropped. Returns the counts of stages ``wat`` and ``pairs``,
    which ``out`` holds too (:func:`read_counts`). ``wat_file`` is the name that rows carry.
    """
    return _extract([(wat, wat_file)], out, rules, crawl=crawl, segment=segment)


def extract_files(
    wats: Sequence[Path], out: Path, rules: PairRules
) -> tuple[StageCounts, StageCounts]:
    """Write the pairs of WAT files outside any crawl to the one file ``out``.

    Duplicates across all files are dropped, which takes about 100 bytes of memory a pair. All files
    count as one segment. Returns the counts of stages ``wat`` and ``pairs``.
    """
    named = [(wat, wat.name) for wat in wats]
    if not rules.max_texts_per_url:
        return _extract(named, out, rules, crawl="", segment="")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".pairs-") as scratch:
        raw = Path(scratch) / "raw.parquet"
        wat_counts, pair_counts = _extract(named, raw, rules, crawl="", segment="")
        marked = rows_of_many_texts(
            [raw],
            np.ones(pair_counts.kept, dtype=np.bool_),
            rules.max_texts_per_url,
            Path(scratch) / "urls",
        )
        pair_counts.drop(many_texts.REASON, int(marked.sum()))
        with PairWriter(out) as writer:
            writer.copy(raw, ~marked)
            writer.note_counts([wat_counts, pair_counts])
    return wat_counts, pair_counts


def _extract(
    wats: Sequence[tuple[Path, str]], out: Path, rules: PairRules, *, crawl: str, segment: str
) -> tuple[StageCounts, StageCounts]:
    wat_counts, pair_counts = StageCounts("wat"), StageCounts("pairs")
    seen: set[bytes] = set()
    with PairWriter(out) as writer:
        for wat, wat_file in wats:
            pairs = (
                pair
                for page in read_pages(wat, wat_counts)
                for pair in page_pairs(page, rules, pair_counts, seen)
            )
            place = {"crawl": crawl, "segment": segment, "wat_file": wat_file}
            for table in _tables(pairs, place):
                writer.write(table)
        writer.note_counts([wat_counts, pair_counts])
    return wat_counts, pair_counts
