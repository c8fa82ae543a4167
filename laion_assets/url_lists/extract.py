"""From the rows of a URL list to pairs, by the rules that hold for the links of pages.

A row is judged in this order, and the first check that fails names the reason: ``bad_value`` (URL
or caption is not sound text, or the whole row is empty or could not be read), then, as for WAT
files, the text, the URL, the language. Rows that repeat a (URL, TEXT) are left for
:func:`laion_assets.pairs.segment.extract_segment` to drop. A list without captions gives pairs
whose text and language are null, judged by their URL alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.funnel import StageCounts
from laion_assets.pairs.extract import PairWriter
from laion_assets.pairs.judge import Judge
from laion_assets.pairs.licence import NO_LICENCE, licence_of
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.text import clean_text
from laion_assets.pairs.urls import ImageUrls
from laion_assets.schemas import PAIRS, sample_id_of, uid_of
from laion_assets.url_lists.columns import SOURCE, Columns
from laion_assets.url_lists.files import ListFile, UrlListError
from laion_assets.url_lists.options import ReadOptions
from laion_assets.url_lists.rows import open_rows
from laion_assets.wat.pages import clean_page_url

_RANGE: Final = re.compile(r"(.*)#(\d+)-(\d*)", re.S)


class RowRange(NamedTuple):
    """Rows of one file of a list, from number ``begin`` to before ``end``; None: to the last.

    Its ``str`` stands where pairs of a crawl name their WAT file.
    """

    file: str
    """The file's name within the list."""
    begin: int = 0
    end: int | None = None

    def __str__(self) -> str:
        whole = self.begin == 0 and self.end is None
        return self.file if whole else f"{self.file}#{self.begin}-{self.end or ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the range whose ``str`` this is."""
        match = _RANGE.fullmatch(text)
        if match is None:
            return cls(text)
        file, begin, end = match.groups()
        return cls(file, int(begin), int(end) if end else None)


@dataclass(frozen=True)
class ExtractRange:
    """Makes the pairs of one range of rows; a process gets it pickled.

    ``carried``: the list's own columns to carry along, by the names and types that they get.
    """

    files: Mapping[str, ListFile]
    options: ReadOptions
    carried: pa.Schema

    def __call__(
        self,
        wat: Path,  # noqa: ARG002 - what the ranges are of is read where it is
        out: Path,
        rules: PairRules,
        *,
        crawl: str,
        segment: str,
        wat_file: str,
    ) -> tuple[StageCounts, StageCounts]:
        """Write the pairs of the range ``wat_file``; ``wat`` is not read.

        Returns the counts of stages ``wat``, which are none, and ``pairs``.
        """
        rows = RowRange.parse(wat_file)
        counts = StageCounts("pairs")
        place = {"crawl": crawl, "segment": segment, "wat_file": wat_file}
        with (
            open_rows(self.files[rows.file], self.options) as opened,
            PairWriter(out, self.carried) as writer,
        ):
            judge = _RowJudge(
                Judge(rules, counts), opened.columns, ImageUrls(None, rules.max_url_chars)
            )
            for batch in opened.batches(rows.begin, rows.end):
                writer.write(judge.pairs(batch, place, self.carried))
            counts.reject("bad_value", n=opened.damaged)
            nothing = StageCounts("wat")
            writer.note_counts([nothing, counts])
        return nothing, counts


class _Taken(NamedTuple):
    """What the rules made of a row: its number in the batch, and its pair."""

    row: int
    uid: bytes
    url: str
    text: str | None
    language: str | None
    language_score: float | None


@dataclass(frozen=True)
class _RowJudge:
    judge: Judge
    columns: Columns
    urls: ImageUrls

    def pairs(
        self, batch: pa.RecordBatch, place: Mapping[str, str], carried: pa.Schema
    ) -> pa.Table:
        """The pairs of a batch's rows that pass, with the columns that are carried along."""
        taken = self._taken(batch)
        self.judge.counts.keep(len(taken))
        values = zip(*taken, strict=True) if taken else ([] for _ in _Taken._fields)
        columns: dict[str, Any] = dict(zip(_Taken._fields, values, strict=True))
        rows = batch.take(pa.array(columns["row"], pa.int64()))
        columns["license"] = [
            licence_of(value, None) or NO_LICENCE if value else NO_LICENCE
            for value in self._strings(rows, self.columns.license)
        ]
        columns["page_url"] = [
            value and clean_page_url(value) for value in self._strings(rows, self.columns.page_url)
        ]
        made = [
            pa.repeat(pa.scalar(place[field.name], field.type), len(rows))
            if field.name in place
            else pa.array(columns[field.name], field.type)
            for field in PAIRS
        ]
        made += [_carried(rows, field) for field in carried]
        return pa.table(made, schema=pa.schema([*PAIRS, *carried]))

    def _taken(self, batch: pa.RecordBatch) -> list[_Taken]:
        judge, urls = self.judge, self.urls
        srcs = _values(batch, self.columns.url)
        if self.columns.text is None:
            found = []
            for row, src in enumerate(srcs):
                url = self._url_alone(src)
                if url is not None:
                    found.append(_Taken(row, uid_of(url, None), url, None, None, None))
            return found
        alts = _values(batch, self.columns.text)
        ids = self._sample_ids(batch)
        taken = []
        for row, (src, alt) in enumerate(zip(srcs, alts, strict=True)):
            if src is _DAMAGED or alt is _DAMAGED:
                judge.counts.reject("bad_value", src if isinstance(src, str) else None)
                continue
            # A text of our own releases is clean: what it holds may look as if it were not.
            own = ids is not None and alt and src and _is_own(src, alt, ids[row])
            text = judge.text(alt if own else clean_text(alt) if alt else "")
            if text is None or (url := judge.url(src, urls)) is None:
                continue
            detected = judge.language(text)
            if detected is not None:
                taken.append(_Taken(row, uid_of(url, text), url, text, *detected))
        return taken

    def _url_alone(self, src: Any) -> str | None:
        if src is _DAMAGED:
            self.judge.counts.reject("bad_value")
            return None
        return self.judge.url(src, self.urls)

    def _sample_ids(self, batch: pa.RecordBatch) -> list[int | None] | None:
        name = self.columns.sample_id
        if name is None or not pa.types.is_integer(batch.schema.field(name).type):
            return None
        ids: list[int | None] = batch[name].to_pylist()
        return ids

    def _strings(self, rows: pa.RecordBatch, name: str | None) -> list[str | None]:
        if name is None:
            return [None] * len(rows)
        return [value if isinstance(value, str) else None for value in _texts(rows, name)]


_DAMAGED: Final = object()
"""Stands for a value that is not sound text."""


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    """As :func:`_texts`, and :data:`_DAMAGED` in a row without any value."""
    values = _texts(batch, name)
    if batch[name].null_count:
        empty = batch.columns[0].is_null()
        for column in batch.columns[1:]:
            empty = pc.and_(empty, column.is_null())
        for row in pc.indices_nonzero(empty).to_pylist():
            values[row] = _DAMAGED
    return values


def _texts(batch: pa.RecordBatch, name: str) -> list[Any]:
    """The values of a column as texts, None, or :data:`_DAMAGED`."""
    column = batch[name]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        try:
            values: list[Any] = column.to_pylist()
        except UnicodeDecodeError:
            values = [_decoded(value) for value in _bytes(column)]
        return values
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [_decoded(value) for value in column.to_pylist()]
    return [None if value is None else str(value) for value in column.to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _bytes(texts: pa.Array) -> list[bytes | None]:
    values: list[bytes | None] = texts.cast(pa.large_binary()).to_pylist()
    return values


def _decoded(value: bytes | None) -> Any:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return _DAMAGED


def _is_own(url: str, text: str, sample_id: int | None) -> bool:
    return sample_id == sample_id_of(uid_of(url, text))


def _carried(rows: pa.RecordBatch, field: pa.Field) -> pa.Array:
    name = field.name.removeprefix(SOURCE)
    if name not in rows.schema.names:
        return pa.nulls(len(rows), field.type)
    column = rows[name]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            texts = [value and value.decode("utf-8", "replace") for value in _bytes(column)]
            column = pa.array(texts, column.type)
    try:
        return column if column.type == field.type else pc.cast(column, field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UrlListError(
            f"column {name}, {column.type} in one file of the list, cannot be made {field.type}, "
            f"which the list has it as: {error}"
        ) from error


def carried_schema(schemas: Sequence[tuple[pa.Schema, Columns]]) -> pa.Schema:
    """The columns of a list's files that are none of the pairs' own, each as ``source_<name>``.

    A column that files have in different types gets one that holds both, or text. Raises
    :class:`~laion_assets.url_lists.files.UrlListError` if there is no such type.
    """
    types: dict[str, pa.DataType] = {}
    for schema, columns in schemas:
        for name in columns.others:
            kind = schema.field(name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            types[name] = _common(name, types.get(name, kind), kind)
    return pa.schema([(f"{SOURCE}{name}", kind) for name, kind in types.items()])


def _common(name: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
    try:
        schemas = [pa.schema([(name, kind)]) for kind in (one, other)]
        both = pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        if pa.types.is_nested(one) or pa.types.is_nested(other):
            raise UrlListError(
                f"column {name} is {one} in one file of the list and {other} in another"
            ) from error
        return pa.string()
    return both if _holds(both, one) and _holds(both, other) else pa.string()


def _holds(both: pa.DataType, kind: pa.DataType) -> bool:
    """Whether a number type holds all values of an integer type; pyarrow does not ask."""
    if not pa.types.is_integer(kind):
        return True
    bits = kind.bit_width - pa.types.is_signed_integer(kind)
    if pa.types.is_floating(both):
        return bool(bits <= _EXACT_BITS[both])
    if pa.types.is_integer(both):
        return bool(bits <= both.bit_width - pa.types.is_signed_integer(both))
    return True


_EXACT_BITS: Final = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
"""Floating type -> bits of the integers of which it holds every one."""
