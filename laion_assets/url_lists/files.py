"""The files of a URL list: found by name, folder, pattern or fsspec URL.

What is in them does not belong here; see :mod:`.columns` and :mod:`.rows`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final

import fsspec

from laion_assets.errors import PermanentError, TransientError
from laion_assets.url_lists.options import Format, ReadOptions

COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
"""Suffix -> DuckDB's and pyarrow's name of the compression."""
_FORMATS: Final[Mapping[str, Format]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".txt": "txt",
}
_MAGIC: Final = "*?["
_HTTP: Final = ("http://", "https://")
_VERSIONED_BY: Final = (
    *("size", "mtime", "ETag", "etag", "Last-Modified", "LastModified", "last_modified", "md5"),
)
"""What file systems say of a file that differs once it was replaced."""


class UrlListError(PermanentError, ValueError):
    """A list cannot be read as one; the message says which file, why, and what to do."""


class UrlListUnreachableError(TransientError, RuntimeError):
    """The place of a list's files did not answer."""


@dataclass(frozen=True)
class ListFile:
    """One file of a list. Picklable."""

    url: str
    """Local path or fsspec URL."""
    name: str
    """Name within the list, which rows and manifests carry."""
    format: Format
    compression: str = "none"
    version: str = ""
    """Digest of what the file system says of it; another one once it was replaced."""
    local: bool = True
    storage_options: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> BinaryIO:
        """Open it for reading at any place, wherever it is."""
        opened: BinaryIO = fsspec.open(self.url, "rb", **self.storage_options).open()
        return opened

    @contextmanager
    def on_disk(self) -> Iterator[str]:
        """Path of the file, or of a copy of a remote one, which is gone behind the block."""
        if self.local:
            yield self.url
            return
        with TemporaryDirectory(prefix="laion-assets-list-") as folder:
            copy = Path(folder) / PurePosixPath(self.url).name
            filesystem, path = fsspec.core.url_to_fs(self.url, **self.storage_options)
            with reaching(self.url):
                filesystem.get_file(path, str(copy))
            yield str(copy)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn an error of a remote file system into one that names the URL."""
    try:
        yield
    except FileNotFoundError as error:
        raise UrlListError(f"{url} does not exist") from error
    except (OSError, PermanentError, TransientError):
        raise
    except Exception as error:
        raise UrlListUnreachableError(f"{url} could not be read: {error or type(error)}") from error


def find_files(places: Sequence[str], options: ReadOptions) -> list[ListFile]:
    """Find the files of a list, sorted by their addresses.

    A folder stands for the files below it, without those whose names begin with ``_`` or ``.``: for
    its parquet files if it has any. Raises :class:`UrlListError` for a place without files, and for
    a file whose format is unknown.
    """
    found: dict[str, dict[str, Any]] = {}
    for place in places:
        filesystem, path = fsspec.core.url_to_fs(place, **options.storage_options)
        with reaching(place):
            filesystem.invalidate_cache()
            of_place = _files_at(filesystem, path, place, options)
        if not of_place:
            raise UrlListError(f"there are no lists ({', '.join(_FORMATS)}) in {place}")
        found |= {filesystem.unstrip_protocol(name): about for name, about in of_place.items()}
    names = _names(sorted(found))
    return [_file(url, names[url], found[url], options) for url in sorted(found)]


def _files_at(filesystem: Any, path: str, place: str, options: ReadOptions) -> dict[str, Any]:
    if path.startswith(_HTTP):
        return {path: filesystem.info(path)}  # what links to something is no folder there
    if any(sign in path for sign in _MAGIC) and not filesystem.exists(path):
        return {
            name: about
            for name, about in filesystem.glob(path, detail=True).items()
            if about["type"] == "file"
        }
    if not filesystem.isdir(path):
        return {path: filesystem.info(path)}
    below = {
        name: about
        for name, about in filesystem.find(path, detail=True).items()
        if not any(part.startswith(("_", ".")) for part in _below(name, path))
    }
    if options.format:
        return below
    known = {name: about for name, about in below.items() if _format(name)}
    parquet = {name: about for name, about in known.items() if _format(name) == "parquet"}
    formats = sorted({str(_format(name)) for name in known})
    if not parquet and len(formats) > 1:
        raise UrlListError(
            f"{place} has files of several formats ({', '.join(formats)}): name the list's files"
        )
    return parquet or known


def _below(name: str, folder: str) -> tuple[str, ...]:
    return PurePosixPath(os.path.relpath(name, folder)).parts


def _format(name: str) -> Format | None:
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    return _FORMATS.get(path.suffix)


def _names(urls: Sequence[str]) -> dict[str, str]:
    """Name the files: shortly, unless two would have the same name."""
    short = {url: url.rsplit("/", 1)[-1] for url in urls}
    if max(Counter(short.values()).values()) == 1:
        return short
    common = os.path.commonpath([url.rsplit("/", 1)[0] for url in urls])
    return {url: os.path.relpath(url, common) for url in urls}


def _file(url: str, name: str, about: Mapping[str, Any], options: ReadOptions) -> ListFile:
    kind = options.format or _format(name)
    if kind is None:
        raise UrlListError(
            f"{url.removeprefix('file://')} has no suffix of a list ({', '.join(_FORMATS)}, each"
            " also with .gz or .zst): name its format"
        )
    local = url.startswith("file://")
    seen = "".join(f"{key}={about.get(key)};" for key in _VERSIONED_BY)
    return ListFile(
        url=url.removeprefix("file://") if local else url,
        name=name,
        format=kind,
        compression=COMPRESSIONS.get(PurePosixPath(name.lower()).suffix, "none"),
        version=hashlib.sha256(seen.encode()).hexdigest()[:16],
        local=local,
        storage_options=options.storage_options,
    )
