"""Extract the pairs of WAT files into parquet.

A link is checked in this order, and the first check that fails names the reason: ``bad_value`` (it
has a value that is not sound text), ``not_image``, ``no_alt``, then the text
(:meth:`.rules.PairRules.refused_texts`), then the URL (:func:`.urls.image_url`,
:meth:`.rules.PairRules.refused_url`), then ``language``, then ``duplicate``, and, once all pairs
are known, ``url_many_texts`` (:mod:`.many_texts`). A link that is not an image and has no alt text
is not counted. :mod:`.judge` has the rules of text, URL and language.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.funnel import StageCounts
from laion_assets.layout import OWN_COLUMNS
from laion_assets.pairs import many_texts
from laion_assets.pairs.judge import Judge, passed
from laion_assets.pairs.licence import page_licence
from laion_assets.pairs.many_texts import rows_of_many_texts
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.text import clean_texts
from laion_assets.pairs.urls import Base, base_url
from laion_assets.schemas import PAIRS, sample_id_of, uids_of
from laion_assets.tables import ROW_GROUP, TableWriter, batches
from laion_assets.wat import Page, read_pages
from laion_assets.wat.pages import IMAGE_PATH

COUNTS_KEY: Final = b"laion_assets.counts"
"""Key of a part's own counts in its parquet metadata, so that a finished part says what it cost."""

# As Python objects, a row takes some four times the memory that it takes in a table.
_ROWS_AS_OBJECTS: Final = 10_000
# Few enough for the processor's cache, and many enough that a column's fixed costs vanish.
_LINKS_AT_ONCE: Final = 500
# Pages wait with all their links, one of which may name their licence. Most have some ten KB.
_PAGE_BYTES_AT_ONCE: Final = 4 << 20
# uid never repeats in a part, and URLs and texts hardly do.
DICTIONARY: Final = ["language", "license", "page_url", "crawl", "segment", "wat_file"]


Pair: TypeAlias = tuple[bytes, str, str, str, float, str, str]
"""The columns of :data:`schemas.PAIRS` that the page decides; the others are those of a place."""
PLACE: Final = ("crawl", "segment", "wat_file")


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


@dataclass(frozen=True)
class _Links:
    """Image links of some pages, column by column; each has its page."""

    alts: list[str | None] = field(default_factory=list)
    srcs: list[str | None] = field(default_factory=list)
    pages: list[tuple[Page, Base]] = field(default_factory=list)

    def add(self, page: Page, counts: StageCounts) -> None:
        images = [link for link in page.links if link.path == IMAGE_PATH and not link.damaged]
        if len(images) < len(page.links):
            for link in page.links:
                if link.damaged:
                    counts.reject("bad_value", link.url or link.alt)
                elif link.path != IMAGE_PATH:
                    counts.reject("not_image", link.alt)
        if images:
            base = Base(base_url(page.url, page.base))
            self.alts.extend([link.alt for link in images])
            self.srcs.extend([link.url for link in images])
            self.pages.extend([(page, base)] * len(images))


def pairs_of(
    pages: Iterable[Page], rules: PairRules, counts: StageCounts, seen: set[bytes]
) -> Iterator[Pair]:
    """Yield the pages' pairs that pass the rules and are not in ``seen``, and add them to it.

    ``seen`` holds uids. ``counts`` (stage ``pairs``) counts every image and alt text.
    """
    judge, links, page_bytes = Judge(rules, counts), _Links(), 0
    for page in pages:
        if page.links:
            links.add(page, counts)
            page_bytes += page.size
            if len(links.alts) >= _LINKS_AT_ONCE or page_bytes >= _PAGE_BYTES_AT_ONCE:
                yield from _judged(links, judge, seen)
                links, page_bytes = _Links(), 0
    yield from _judged(links, judge, seen)


def _judged(links: _Links, judge: Judge, seen: set[bytes]) -> Iterator[Pair]:
    counts = judge.counts
    texts, srcs, pages = passed(judge.texts(clean_texts(links.alts)), links.srcs, links.pages)
    urls, texts, pages = passed(judge.urls(srcs, [base for _, base in pages]), texts, pages)
    languages, urls, texts, pages = passed(judge.languages(texts), urls, texts, pages)
    of_page: Page | None = None
    licence = ""
    columns = (uids_of(urls, texts), urls, texts, languages, pages)
    for uid, url, text, (language, score), (page, base) in zip(*columns, strict=True):
        if uid in seen:
            counts.reject("duplicate", f"{url} {text}")
            continue
        seen.add(uid)
        counts.keep()
        if page is not of_page:
            of_page, licence = page, page_licence(page.licences, base.url)
        yield uid, url, text, language, score, licence, page.url


def _tables(pairs: Iterator[Pair], place: Mapping[str, str]) -> Iterator[pa.Table]:
    """Yield tables of some rows; ``place`` holds the columns that all rows share."""
    while batch := list(islice(pairs, _ROWS_AS_OBJECTS)):
        yield _table(batch, place)


def _table(batch: Sequence[Pair], place: Mapping[str, str]) -> pa.Table:
    uids, *others = zip(*batch, strict=True)
    columns = [
        pa.Array.from_buffers(PAIRS.types[0], len(uids), [None, pa.py_buffer(b"".join(uids))])
    ]
    columns += map(pa.array, others, PAIRS.types[1 : len(others) + 1])
    columns += [pa.repeat(pa.scalar(place[name]), len(uids)) for name in PLACE]
    return pa.table(columns, schema=PAIRS)


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
            pairs = pairs_of(read_pages(wat, wat_counts), rules, pair_counts, seen)
            place = {"crawl": crawl, "segment": segment, "wat_file": wat_file}
            for table in _tables(pairs, place):
                writer.write(table)
        writer.note_counts([wat_counts, pair_counts])
    return wat_counts, pair_counts
