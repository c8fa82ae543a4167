"""The rows of a list's file as record batches, in order, and from any row on.

Parquet is read by pyarrow, by whole row groups. CSV, JSON lines and text are read by DuckDB, which
decides on dialect and header; each of their columns is text. A line that DuckDB cannot read is
skipped and counted. Nothing is held but the batch; of remote parquet, a row group.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.url_lists.columns import (
    LOOKS_LIKE_A_URL,
    URL_NAMES,
    Columns,
    choose_columns,
)
from laion_assets.url_lists.files import ListFile, UrlListError
from laion_assets.url_lists.options import ReadOptions

BATCH: Final = 10_000
_SNIFFED_BYTES: Final = 1_000_000
READING: Final = 2
"""Another number once a file's rows are found in another way, so that they are counted again."""
_BUFFER: Final = 1 << 20
_LOOKED_AT: Final = 100
"""Rows of a file without a header in which a URL is looked for."""


class Rows(Protocol):
    """The rows of one open file."""

    columns: Columns
    schema: pa.Schema
    """Names and types of all its columns."""
    damaged: int
    """Lines that :meth:`batches` could not read; known once it has read up to the file's end."""

    def count(self) -> int:
        """Number of the rows that :meth:`batches` gives."""

    def batches(self, begin: int = 0, end: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows from number ``begin`` to before ``end``, at most :data:`BATCH` a time."""


@contextmanager
def open_rows(file: ListFile, options: ReadOptions) -> Iterator[Rows]:
    """Open a file of a list.

    Raises :class:`~laion_assets.url_lists.files.UrlListError` for a file that is not of its format,
    and for one whose columns cannot be chosen.
    """
    try:
        if file.format == "parquet":
            # Otherwise a row group is read at once; far away, few large reads are worth it.
            reading = {"buffer_size": _BUFFER, "pre_buffer": False} if file.local else {}
            with file.open() as stream, pq.ParquetFile(stream, **reading) as parquet:
                yield _Parquet(file, parquet, options)
            return
        with file.on_disk() as path, duckdb.connect(config=_CONFIG) as connection:
            yield _Text(file, path, connection, options)
    except (duckdb.Error, pa.ArrowInvalid) as error:
        reason = str(error).strip().splitlines()[0]
        raise UrlListError(f"{file.url} cannot be read as {file.format}: {reason}") from error
    except FileNotFoundError as error:
        raise UrlListError(f"{file.url} does not exist") from error


_CONFIG: Final[dict[str, str | bool | int | float | list[str]]] = {
    "autoinstall_known_extensions": False,
    "threads": 2,
}


class _Parquet:
    def __init__(self, file: ListFile, parquet: pq.ParquetFile, options: ReadOptions) -> None:
        self._parquet = parquet
        stored = parquet.schema_arrow
        self._cast = {
            number: _OF_VIEWS[field.type]
            for number, field in enumerate(stored)
            if field.type in _OF_VIEWS
        }
        self.schema: pa.Schema = pa.schema(
            field.with_type(_OF_VIEWS.get(field.type, field.type)) for field in stored
        )
        self.columns = choose_columns(file, self.schema.names, options)
        self.damaged = 0
        for name in (self.columns.url, self.columns.text):
            if name and pa.types.is_nested(self.schema.field(name).type):
                kind = self.schema.field(name).type
                raise UrlListError(f"column {name} of {file.url} is {kind}, not text")

    def count(self) -> int:
        return int(self._parquet.metadata.num_rows)

    def batches(self, begin: int = 0, end: int | None = None) -> Iterator[pa.RecordBatch]:
        about = self._parquet.metadata
        end = about.num_rows if end is None else min(end, about.num_rows)
        at, first = 0, 0
        groups: list[int] = []
        for group in range(about.num_row_groups):
            rows = about.row_group(group).num_rows
            if at < end and at + rows > begin:
                first = first if groups else at
                groups.append(group)
            at += rows
        at = first
        for batch in self._parquet.iter_batches(BATCH, row_groups=groups) if groups else ():
            wanted = batch.slice(max(0, begin - at), max(0, end - max(at, begin)))
            at += batch.num_rows
            if wanted.num_rows:
                yield self._without_views(wanted)

    def _without_views(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self._cast:
            return batch
        columns = [
            column.cast(pa.large_binary()).view(self._cast[number])
            if number in self._cast
            else column
            for number, column in enumerate(batch.columns)
        ]
        return pa.record_batch(columns, schema=self.schema)


_OF_VIEWS: Final = {
    pa.string_view(): pa.large_string(),
    pa.binary_view(): pa.large_binary(),
}
"""Types that pyarrow cannot take rows of -> those that they are read as, without a look at what is
in them."""


class _Text:
    """CSV, JSON or plain text, read by DuckDB. All columns are read whatever is wanted: which lines
    are damaged depends on it."""

    def __init__(
        self,
        file: ListFile,
        path: str,
        connection: duckdb.DuckDBPyConnection,
        options: ReadOptions,
    ) -> None:
        self._connection = connection
        self.damaged = 0
        head = _head(file, path)
        encoding = options.encoding or _encoding(head)
        given = {"encoding": encoding, "compression": file.compression, "comment": ""}
        _check_encoding(file, head, options.encoding)
        if file.format == "json":
            names = self._keys(file, path)
            columns = dict.fromkeys(names, "JSON")
            self._source, expression = _json("read_json", file, path, columns=columns), "->>'$'"
        elif file.format == "txt":
            self._source, expression = _call("read_csv", path, **_A_URL_A_LINE, **given), ""
            names = ["url"]
        else:
            if file.format == "tsv":
                given["delim"] = "\t"
            dialect, names = self._dialect(path, given)
            if file.format == "csv" and b'"' not in head:
                # Where the sample has no quotes, DuckDB detects that there are none.
                dialect |= {"quote": '"', "escape": '"'}
            self._source, expression = _call("read_csv", path, **dialect, store_rejects=True), ""
            if not dialect["header"]:
                options = self._by_content(file, names, options)
        self.schema = pa.schema([(name, pa.string()) for name in names])
        self.columns = choose_columns(file, names, options)
        self._select = ", ".join(f"{_name(name)}{expression} as {_name(name)}" for name in names)

    def count(self) -> int:
        # As `count(*)` DuckDB would not look at what is in the columns, and count damaged lines.
        counted = self._connection.execute(
            f"select count(hash({', '.join(map(_name, self.schema.names))})) "
            f"from (select {self._select} from {self._source})"
        ).fetchone()
        return int(counted[0]) if counted else 0

    def batches(self, begin: int = 0, end: int | None = None) -> Iterator[pa.RecordBatch]:
        limit = "" if end is None else f" limit {end - begin}"
        # A connection of its own: it collects the damaged lines of one reading.
        with self._connection.cursor() as reading:
            found = reading.sql(f"select {self._select} from {self._source}{limit} offset {begin}")
            yield from found.to_arrow_reader(BATCH)
            if end is None and "store_rejects" in self._source:
                lines = reading.execute("select count(distinct line) from reject_errors").fetchone()
                self.damaged = int(lines[0]) if lines else 0

    def _names(self, source: str) -> list[str]:
        described = self._connection.execute(f"describe select * from {source}").fetchall()
        return [str(row[0]) for row in described]

    def _keys(self, file: ListFile, path: str) -> list[str]:
        """The keys of a JSON file's records, in the order in which they first appear.

        Every record is looked at: DuckDB's own guess leaves out what comes late, and takes records
        of many keys for one column.
        """
        records = _json("read_json_objects", file, path)
        found = self._connection.execute(
            "select arg_min(key, (line, place)) from (select unnest(keys) as key, line, "
            "generate_subscripts(keys, 1) as place from (select json_keys(json) as keys, "
            f"row_number() over () as line from {records})) "
            "group by lower(key) order by min((line, place))"
        ).fetchall()
        if not found:
            raise UrlListError(f"{file.url} cannot be read as json: it has no record")
        return [str(row[0]) for row in found]

    def _dialect(self, path: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """How to read a CSV file, and the names of its columns."""
        sniffed = self._connection.execute(
            'select "Delimiter", "Quote", "Escape", "SkipRows", "HasHeader", "Columns" from '
            + _call("sniff_csv", path, **given, all_varchar=True, ignore_errors=True)
        ).fetchone()
        assert sniffed is not None
        delim, quote, escape, skip, header, columns = sniffed
        names = [column["name"] for column in columns]
        first = self._connection.execute(
            "from "
            + _call("read_csv", path, **given, all_varchar=True, ignore_errors=True, header=False)
            + " limit 1"
        ).fetchone()
        if any(map(LOOKS_LIKE_A_URL, names)):
            header = False  # DuckDB takes the first of rows that are all text for a header
        elif any(str(value).strip().lower() in URL_NAMES for value in first or ()):
            header = True
        dialect: dict[str, Any] = {
            **given,
            "delim": _empty(delim),
            "quote": _empty(quote),
            "escape": _empty(escape),
            "skip": skip,
            "header": header,
            "all_varchar": True,
        }
        if not header:
            dialect["names"] = [f"column{number}" for number in range(len(names))]
        named = self._names(_call("read_csv", path, **dialect, ignore_errors=True))
        return dialect, named

    def _by_content(
        self, file: ListFile, names: Sequence[str], options: ReadOptions
    ) -> ReadOptions:
        """Name the columns of a file without a header by what is in them."""
        if not options.url:
            some = self._connection.execute(f"from {self._source} limit {_LOOKED_AT}").fetchall()
            urls = [
                name
                for name, values in zip(names, zip(*some, strict=True), strict=False)
                if any(value and LOOKS_LIKE_A_URL(value) for value in values)
            ]
            if not urls:
                raise UrlListError(f"{file.url} has neither a header nor a URL")
            options = options.model_copy(update={"url": urls[0]})
        others = [name for name in names if name != options.url]
        if others and options.captions and not options.text:
            if len(others) > 1:
                raise UrlListError(
                    f"{file.url} has no header and {len(names)} columns ({', '.join(names)}): name "
                    "the one with the captions"
                )
            options = options.model_copy(update={"text": others[0]})
        return options


_A_URL_A_LINE: Final[Mapping[str, Any]] = {
    "columns": {"url": "VARCHAR"},
    "header": False,
    "auto_detect": False,
    "delim": "",
    "quote": "",
    "escape": "",
    "store_rejects": True,
}


def _json(function: str, file: ListFile, path: str, **arguments: Any) -> str:
    # Among lines, a damaged one is skipped alone; of one array, what follows is lost.
    lines = file.has_suffix(".jsonl", ".ndjson")
    return _call(
        function,
        path,
        # Whatever a value is, it comes as JSON: DuckDB would take captions for dates.
        **arguments,
        format="newline_delimited" if lines else "auto",
        ignore_errors=True,
        compression=file.compression,
    )


def _call(function: str, path: str, **arguments: Any) -> str:
    # Folders named as those of a partitioned dataset add no columns.
    if function != "sniff_csv":
        arguments["hive_partitioning"] = False
    given = "".join(f", {name} = {_value(value)}" for name, value in arguments.items())
    return f"{function}({_value(path)}{given})"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(k)}: {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool | int):
        return str(value).lower()
    return "'" + str(value).replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _empty(sniffed: str | None) -> str:
    return "" if sniffed in (None, "(empty)") else str(sniffed)


def _head(file: ListFile, path: str) -> bytes:
    """A text file's first bytes, decompressed."""
    with pa.OSFile(path) as raw:
        stream = (
            raw if file.compression == "none" else pa.CompressedInputStream(raw, file.compression)
        )
        head: bytes = stream.read(_SNIFFED_BYTES)
    return head


def _check_encoding(file: ListFile, head: bytes, encoding: str) -> None:
    """Raise :class:`UrlListError` for an encoding that DuckDB does not read."""
    if head.startswith(codecs.BOM_UTF16_BE):
        raise UrlListError(
            f"{file.url} is UTF-16 with the high byte first, which is not read: make it UTF-8 "
            "(iconv -f UTF-16 -t UTF-8)"
        )
    if file.format != "json":
        return
    if encoding not in ("", "utf-8") or head.startswith(codecs.BOM_UTF16_LE):
        raise UrlListError(f"{file.url}: JSON is read as UTF-8 only: convert it (iconv -t UTF-8)")
    if head.startswith(codecs.BOM_UTF8):
        raise UrlListError(
            f"{file.url} begins with a byte order mark, which JSON must not have: remove it "
            "(dos2unix --remove-bom)"
        )


def _encoding(head: bytes) -> str:
    """The encoding of a text, by its first bytes: Latin-1 if it has more bytes that are not UTF-8
    than characters that only UTF-8 would write so."""
    if head.startswith(codecs.BOM_UTF16_LE):
        return "utf-16"
    text = head.decode("utf-8", "surrogateescape")
    if len(head) == _SNIFFED_BYTES:
        text = text[:-4]  # the last character may be cut
    wrong = sum("\udc80" <= char <= "\udcff" for char in text if char > "\x7f")
    right = sum(char > "\x7f" for char in text) - wrong
    return "latin-1" if wrong > right else "utf-8"
