"""The files of a URL list: found by name, folder, pattern or fsspec URL.

What is in them does not belong here; see :mod:`.columns` and :mod:`.rows`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

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
        """Path of a link to the file, or of a copy of a remote one, which is gone behind the block.

        Nothing in its name is a pattern to what reads it, whatever the file's name.
        """
        with TemporaryDirectory(prefix="laion-assets-list-") as folder:
            path = Path(folder) / "list"
            if self.local:
                path.symlink_to(self.url)
            else:
                self.copy_to(path)
            yield str(path)

    def copy_to(self, path: Path) -> None:
        """Write a copy of a remote file to ``path``."""
        filesystem, there = fsspec.core.url_to_fs(self.url, **self.storage_options)
        with reaching(self.url):
            filesystem.get_file(there, str(path))

    def has_suffix(self, *suffixes: str) -> bool:
        """Whether its name, without that of a compression, ends with one of these."""
        return _plain(self.name).suffix in suffixes


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

    Each is named by its place below the folder or pattern that it was found by, so that another
    file changes no name; one of the same name in a further place gets that place's number.

    A folder stands for the files below it, without those whose names begin with ``_`` or ``.``: for
    its parquet files if it has any. Raises :class:`UrlListError` for a place without files, and for
    a file whose format is unknown.
    """
    found: dict[str, ListFile] = {}
    names: set[str] = set()
    for number, place in enumerate(places):
        filesystem, path = fsspec.core.url_to_fs(place, **options.storage_options)
        with reaching(place):
            filesystem.invalidate_cache()
            folder, of_place = _files_at(filesystem, path, place, options)
        if not of_place:
            raise UrlListError(f"there are no lists ({', '.join(_FORMATS)}) in {place}")
        for there, about in of_place.items():
            url = filesystem.unstrip_protocol(there)
            if url in found:
                continue
            name = "/".join(_below(str(_path(there)), folder))
            while name in names:
                name = f"{number}/{name}"
            names.add(name)
            found[url] = _file(url, name, about, options)
    return [found[url] for url in sorted(found)]


def _files_at(
    filesystem: Any, path: str, place: str, options: ReadOptions
) -> tuple[str, dict[str, Any]]:
    """The folder within which a place's files are named, and what is known of each of them."""
    if path.startswith(_HTTP):
        # What links to something is no folder there.
        return str(_path(path).parent), {path: filesystem.info(path)}
    if any(sign in path for sign in _MAGIC) and not filesystem.exists(path):
        files = {
            name: about
            for name, about in filesystem.glob(path, detail=True).items()
            if about["type"] == "file"
        }
        before = path[: min(path.index(sign) for sign in _MAGIC if sign in path)]
        return before.rpartition("/")[0] or "/", files
    if not filesystem.isdir(path):
        return path.rpartition("/")[0] or "/", {path: filesystem.info(path)}
    below = {
        name: about
        for name, about in filesystem.find(path, detail=True).items()
        if not any(part.startswith(("_", ".")) for part in _below(name, path))
    }
    if options.format:
        return path, below
    known = {name: about for name, about in below.items() if _format(name)}
    parquet = {name: about for name, about in known.items() if _format(name) == "parquet"}
    formats = sorted({str(_format(name)) for name in known})
    if not parquet and len(formats) > 1:
        raise UrlListError(
            f"{place} has files of several formats ({', '.join(formats)}): name the list's files"
        )
    return path, parquet or known


def _below(name: str, folder: str) -> tuple[str, ...]:
    return PurePosixPath(os.path.relpath(name, folder)).parts


def _path(url: str) -> PurePosixPath:
    """The path in a URL; what follows a web address's ``?`` is none of it."""
    return PurePosixPath(urlsplit(url).path if url.startswith(_HTTP) else url)


def _plain(url: str) -> PurePosixPath:
    """The path in small letters, without a compression's suffix."""
    path = PurePosixPath(str(_path(url)).lower())
    return path.with_suffix("") if path.suffix in COMPRESSIONS else path


def _format(url: str) -> Format | None:
    return _FORMATS.get(_plain(url).suffix)


def _file(url: str, name: str, about: Mapping[str, Any], options: ReadOptions) -> ListFile:
    kind = options.format or _format(url)
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
        compression=COMPRESSIONS.get(_path(url).suffix.lower(), "none"),
        version=hashlib.sha256(seen.encode()).hexdigest()[:16],
        local=local,
        storage_options=options.storage_options,
    )
