"""Removal lists and blocklists: what an entry may be, and which rows entries name.

A list is a folder of ``*.txt`` files, one entry a line; ``#`` starts a comment line:

- ``url:https://...`` or a bare URL, as people write it: it is brought to the form in which pairs
  hold URLs (WHATWG URL Standard);
- ``url-md5:<hex>``, ``url-sha256:<hex>``: the digest of a URL, in that form, in UTF-8;
- ``host:example.org``, which covers its sub-domains;
- ``md5:<hex>``, ``sha256:<hex>`` of an image's bytes as downloaded; a bare hash of 32 or 64
  digits is one of these, as published hash lists write them;
- ``sample-id:<int64>``, a ``SAMPLE_ID`` of the dataset.

The text is the truth. It is compiled into sorted binary columns, in which an entry is a fixed
number of bytes (:mod:`laion_assets.removals.keys`): looked up by the million, in bounded memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import ada_url
import numpy as np
from numpy.typing import NDArray

from laion_assets.files import atomic_path, locked, sha256_file, write_json
from laion_assets.removals.keys import Column, ColumnWriter, Keys, digest_of, hex_keys, keys_of

WIDTHS: Final[Mapping[str, int]] = {
    "url-sha256": 32,
    "url-md5": 16,
    "host": 16,
    "sha256": 32,
    "md5": 16,
    "sample-id": 8,
}
"""Kind of key -> its bytes. A ``url:`` entry is the SHA-256 of its URL; a host the first half of
its SHA-256."""

KINDS: Final = ("url", *WIDTHS)
_OF_URLS: Final = ("url-sha256", "url-md5", "host")
_OF_IMAGES: Final = ("sha256", "md5")
_HEX: Final = re.compile(r"[0-9a-f]+")
_HASHES: Final = ("url-sha256", "url-md5", "sha256", "md5")
_BARE: Final = {2 * WIDTHS[kind]: kind for kind in _OF_IMAGES}
_WEB: Final = ("http://", "https://")
_COMMENT: Final = re.compile(r"(^|\s+)#.*")
_SPACE: Final = re.compile(r"[\s\x00-\x1f\x7f]")
_FORMAT: Final = 2
"""Raised when the same text compiles to other columns."""
_BLOCK_BYTES: Final = 1 << 24
_VERSIONS_KEPT: Final = 3
_READ_AGAIN: Final = 5
_ROWS_AT_ONCE: Final = 1 << 17
"""Looked up together: sorted, so many find their neighbours in the same pages of the list, and
they take little memory."""
_JUST_NOW_NS: Final = 2_000_000_000


class ListError(ValueError):
    """An entry that cannot be understood; the message names the file and the line."""


class Key(NamedTuple):
    """An entry as it is looked up, and as the removal ledger names it."""

    kind: str
    value: bytes

    def __str__(self) -> str:
        if self.kind == "sample-id":
            return f"sample-id:{int.from_bytes(self.value, 'big', signed=True)}"
        return f"{self.kind}:{self.value.hex()}"


def parse_entry(line: str) -> tuple[str, str]:
    """``(kind, value)`` of one entry. Raises :class:`ListError`."""
    text = line.strip()
    kind, _, value = text.partition(":")
    if kind not in KINDS:
        value = text
        kind = "url" if text.lower().startswith(_WEB) else _BARE.get(len(text), "")
    value = value.strip()
    if kind in _HASHES:
        value, digits = value.lower(), 2 * WIDTHS[kind]
        if len(value) != digits or not _HEX.fullmatch(value):
            raise ListError(f"{text!r} is not a {kind} of {digits} hex digits")
    elif kind == "sample-id":
        value = _normal_id(value)
    elif kind == "host" and value:
        value = _normal_host(value)
    elif kind == "url" and value:
        value = _normal_url(value)
    if kind not in KINDS or not value:
        raise ListError(f"{text!r} is none of {', '.join(f'{kind}:' for kind in KINDS)}")
    return kind, value


def key_of(kind: str, value: str) -> Key:
    """The key of what :func:`parse_entry` gives."""
    if kind == "url":
        return Key("url-sha256", hashlib.sha256(value.encode()).digest())
    if kind == "host":
        return Key("host", host_key(value))
    if kind == "sample-id":
        return Key(kind, int(value).to_bytes(8, "big", signed=True))
    return Key(kind, bytes.fromhex(value))


def host_key(host: str) -> bytes:
    return hashlib.sha256(host.encode()).digest()[: WIDTHS["host"]]


def _normal_id(value: str) -> str:
    try:
        number = int(value)
        number.to_bytes(8, "big", signed=True)
    except (ValueError, OverflowError) as error:
        raise ListError(f"{value!r} is not a SAMPLE_ID, a signed 64-bit number") from error
    return str(number)


def _normal_url(url: str) -> str:
    """In ASCII (IDNA, %-encoded), without fragment, user name and password."""
    if _SPACE.search(url):
        # A browser would take it into the URL, or out, and another URL would be listed.
        raise ListError(f"{url!r} has white space inside: one URL a line, a space in it as %20")
    try:
        parsed = ada_url.URL(url)
    except ValueError as error:
        raise ListError(f"{url!r} is not a valid URL") from error
    if parsed.protocol not in ("http:", "https:"):
        raise ListError(f"{url!r} is not an http or https URL")
    parsed.username = parsed.password = parsed.hash = ""
    return str(parsed.href)


def _normal_host(host: str) -> str:
    """In lower-case ASCII (IDNA), without the last dot; an IPv6 address without brackets."""
    try:
        parsed = ada_url.URL(f"http://{host}")
    except ValueError as error:
        raise ListError(f"{host!r} is not a valid host") from error
    if parsed.href != f"http://{parsed.hostname}/":
        raise ListError(f"{host!r} is more than a host")
    normal = str(parsed.hostname).removesuffix(".").strip("[]")
    if "*" in normal or not all(normal.split(".")):
        raise ListError(f"{host!r} names no host (sub-domains are covered without a sign)")
    return normal


_NO_ENTRIES: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Entries:
    """The entries of a list, by kind of key; several columns of a kind are looked up in turn."""

    columns: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    digest: str = _NO_ENTRIES
    """Of the entries alone, not of their files, order or comments."""

    def __len__(self) -> int:
        return sum(len(column) for columns in self.columns.values() for column in columns)

    def _names(self, *kinds: str) -> bool:
        return any(len(column) for kind in kinds for column in self.columns.get(kind, ()))

    @property
    def names_urls(self) -> bool:
        return self._names(*_OF_URLS)

    @property
    def names_images(self) -> bool:
        return self._names(*_OF_IMAGES)

    @property
    def names_samples(self) -> bool:
        return self._names("sample-id")

    def has(self, key: Key) -> bool:
        return any(column.has_one(key.value) for column in self.columns.get(key.kind, ()))

    def _has(self, kind: str, keys: Keys) -> NDArray[np.bool_]:
        found = np.zeros(len(keys), dtype=np.bool_)
        for column in self.columns.get(kind, ()):
            found |= column.has(keys)
        return found

    def have(self, kind: str, keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """Which of many keys of a kind there are."""
        return self._has(kind, keys_of(b"".join(keys), WIDTHS[kind]))

    def key_for_url(self, url: str) -> Key | None:
        """The entry that names the URL, its host, or a parent domain of its host.

        ``url`` is in the form in which pairs hold URLs.
        """
        encoded = url.encode()
        if self._names("url-sha256"):
            key = Key("url-sha256", hashlib.sha256(encoded).digest())
            if self.has(key):
                return key
        if self._names("url-md5"):
            key = Key("url-md5", hashlib.md5(encoded, usedforsecurity=False).digest())
            if self.has(key):
                return key
        if self._names("host"):
            for domain in _with_parents(_host(url)):
                key = Key("host", host_key(domain))
                if self.has(key):
                    return key
        return None

    def key_for_image(self, sha256: str | None, md5: str | None) -> Key | None:
        """The entry that names one of the hashes, given in hexadecimal."""
        for kind, value in (("sha256", sha256), ("md5", md5)):
            if value and self._names(kind) and self.has(key := Key(kind, bytes.fromhex(value))):
                return key
        return None

    def key_for_sample(self, sample_id: int) -> Key | None:
        key = Key("sample-id", sample_id.to_bytes(8, "big", signed=True))
        return key if self.has(key) else None

    def matches_url(self, url: str) -> bool:
        return self.key_for_url(url) is not None

    def matches_image(self, sha256: str, md5: str) -> bool:
        return self.key_for_image(sha256, md5) is not None

    def which_urls(self, urls: Sequence[str]) -> NDArray[np.bool_]:
        """The rows whose URL is named, by itself or by its host."""
        blocks = [
            self._which_urls(urls[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(urls), _ROWS_AT_ONCE)
        ]
        return np.concatenate([np.zeros(0, dtype=np.bool_), *blocks])

    def _which_urls(self, urls: Sequence[str]) -> NDArray[np.bool_]:
        found = np.zeros(len(urls), dtype=np.bool_)
        if self._names("url-sha256"):
            found |= self.have("url-sha256", [_sha256(url.encode()).digest() for url in urls])
        if self._names("url-md5"):
            found |= self.have(
                "url-md5", [_md5(url.encode(), usedforsecurity=False).digest() for url in urls]
            )
        if self._names("host"):
            # The authority, as it stands; each is taken apart once.
            places = [url.partition("//")[2].partition("/")[0] for url in urls]
            named = self._named_authorities(set(places))
            if named:
                found |= np.fromiter((place in named for place in places), np.bool_, len(places))
        return found

    def _named_authorities(self, authorities: Iterable[str]) -> set[str]:
        ordered, keys, owner = list(authorities), [], []
        for number, authority in enumerate(ordered):
            domains = _with_parents(_host(f"//{authority}"))
            keys += [host_key(domain) for domain in domains]
            owner += [number] * len(domains)
        hits = np.flatnonzero(self.have("host", keys))
        return {ordered[owner[hit]] for hit in hits}

    def which_images(self, sha256: Any, md5: Any) -> NDArray[np.bool_]:
        """The rows of two Arrow columns of hexadecimal text in which one hash is named."""
        found = np.zeros(len(sha256), dtype=np.bool_)
        for kind, column in (("sha256", sha256), ("md5", md5)):
            for start in range(0, len(column) if self._names(kind) else 0, _ROWS_AT_ONCE):
                keys, rows = hex_keys(column[start : start + _ROWS_AT_ONCE], WIDTHS[kind])
                found[start + rows[self._has(kind, keys)]] = True
        return found

    def which_samples(self, sample_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not self.names_samples:
            return np.zeros(len(sample_ids), dtype=np.bool_)
        return self._has("sample-id", keys_of(sample_ids.astype(">i8").tobytes(), 8))

    def which_rows(self, rows: Any) -> NDArray[np.bool_]:
        """The rows of an Arrow table or batch of samples whose id, URL or image is named; with the
        columns SAMPLE_ID, URL, sha256 and md5 of a subset."""
        mask: NDArray[np.bool_] = self.which_samples(rows["SAMPLE_ID"].to_numpy())
        if self.names_urls:
            mask = mask | self.which_urls(rows["URL"].to_pylist())
        if self.names_images:
            mask = mask | self.which_images(rows["sha256"], rows["md5"])
        return mask

    def and_also(self, other: Entries) -> Entries:
        """The entries of both; each stays where it is."""
        if not len(other):
            return self
        columns = {
            kind: self.columns.get(kind, ()) + other.columns.get(kind, ())
            for kind in WIDTHS
            if kind in self.columns or kind in other.columns
        }
        digest = hashlib.sha256(f"{self.digest} {other.digest}".encode()).hexdigest()
        return Entries(columns, digest)

    def without(self, other: Entries) -> Entries:
        """The entries that ``other`` has not, in memory."""
        columns = {}
        for kind, own in self.columns.items():
            left = list(own)
            for theirs in other.columns.get(kind, ()):
                left = [column.without(theirs) for column in left]
            columns[kind] = tuple(left)
        return _entries(columns)


_sha256: Final = hashlib.sha256
_md5: Final = hashlib.md5


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:  # not a URL: no entry names its host
        return ""


def _with_parents(host: str) -> list[str]:
    labels = host.split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]


def _entries(columns: Mapping[str, tuple[Column, ...]]) -> Entries:
    filled = {kind: own for kind, own in columns.items() if any(len(column) for column in own)}
    if not filled:
        return Entries()
    flat = [(kind, column) for kind in WIDTHS for column in filled.get(kind, ())]
    return Entries(filled, digest_of(flat))


def of_keys(keys: Iterable[Key]) -> Entries:
    """Entries in memory."""
    raw: dict[str, list[bytes]] = {}
    for key in keys:
        raw.setdefault(key.kind, []).append(key.value)
    return _entries(
        {
            kind: (Column.of(keys_of(b"".join(values), WIDTHS[kind])),)
            for kind, values in raw.items()
        }
    )


def parse(lines: Iterable[str], origin: str) -> Entries:
    """The entries of an iterable of lines. Raises :class:`ListError` naming ``origin``:line."""
    return of_keys(
        key
        for number, line in enumerate(lines, 1)
        if (key := _key_of_line(line.encode(), origin, number)) is not None
    )


def _key_of_line(line: bytes, origin: str, number: int) -> Key | None:
    """None for an empty line or a comment."""
    try:
        # A file saved on Windows may begin with a mark that nobody sees.
        text = _COMMENT.sub("", line.decode("utf-8-sig" if number == 1 else "utf-8")).strip()
        return key_of(*parse_entry(text)) if text else None
    except UnicodeDecodeError as error:
        raise ListError(f"{origin}:{number}: not UTF-8") from error
    except ListError as error:
        raise ListError(f"{origin}:{number}: {error}") from error


def load(folder: Path, cache: Path | None = None) -> Entries:
    """All entries of the folder's ``*.txt`` files; an absent folder is an empty list.

    ``cache`` is a folder in which the compiled columns are kept: while the text stays the same,
    they are opened and nothing is read. Without it they are made anew. Raises :class:`ListError`
    naming file and line, and for a file that is no list; a name that begins with a dot is passed
    over.
    """
    files = _files(folder)
    if not files:
        return Entries()
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="laion-assets-lists-") as scratch:
            _compile(files, Path(scratch))
            return opened(Path(scratch))  # mapped files outlive their names
    current = cache / "current.json"
    with locked(cache / ".lock", lambda: None):
        stamps = [_stamp(path) for path in files]
        known = json.loads(current.read_text()) if current.exists() else {}
        made = cache / known.get("version", "")
        if known.get("stamps") == stamps and known.get("settled") and made.is_dir():
            return opened(made)
        made = _compiled(folder, cache)
        entries = opened(made)
        # A file written just now may be written again without a new time stamp.
        settled = all(time.time_ns() - stamp[2] > _JUST_NOW_NS for stamp in stamps)
        write_json(current, {"version": made.name, "stamps": stamps, "settled": settled})
        made.touch()
        _forget_old(cache, made)
    return entries


def _compiled(folder: Path, cache: Path) -> Path:
    """The columns of the text as it is now, which may be written at any time."""
    for _ in range(_READ_AGAIN):
        files = _files(folder)
        version = _version(files)
        made = cache / version
        if made.is_dir():
            return made
        with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as scratch:
            beside = Path(scratch) / "made"
            _compile(files, beside)
            # Else the columns of one text would be kept under the name of another.
            if _version(files) == version:
                beside.rename(made)
                return made
    raise ListError(f"{folder} was written {_READ_AGAIN} times while it was read")


def _files(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir()) if folder.exists() else []
    shown = [path for path in paths if not path.name.startswith(".")]
    for path in shown:
        if path.suffix != ".txt":
            # Its writer believes it to be in force.
            raise ListError(f"{path} is not read: a list is a file *.txt")
    return shown


def load_version(cache: Path, digest: str) -> Entries | None:
    """The compiled entries of an earlier text, if the cache still has them."""
    for meta in cache.glob("*/meta.json"):
        if json.loads(meta.read_text())["digest"] == digest:
            return opened(meta.parent)
    return Entries() if digest == _NO_ENTRIES else None


def opened(made: Path) -> Entries:
    """Compiled columns, memory-mapped."""
    meta = json.loads((made / "meta.json").read_text())
    columns = {
        kind: (Column.open(made, kind, width),)
        for kind, width in WIDTHS.items()
        if meta["entries"].get(kind)
    }
    return Entries(columns, meta["digest"])


def _stamp(path: Path) -> list[Any]:
    stat = path.stat()
    return [path.name, stat.st_size, max(stat.st_mtime_ns, stat.st_ctime_ns), stat.st_ino]


def _version(files: Sequence[Path]) -> str:
    texts = [[path.name, sha256_file(path)] for path in files]
    return hashlib.sha256(json.dumps([_FORMAT, texts]).encode()).hexdigest()[:32]


def _forget_old(cache: Path, current: Path) -> None:
    """Delete all but the newest versions; who has one open keeps what it has mapped."""
    made = [path.parent for path in cache.glob("*/meta.json") if path.parent != current]
    made.sort(key=lambda path: path.stat().st_mtime_ns)
    for old in made[: max(0, len(made) - _VERSIONS_KEPT + 1)]:
        shutil.rmtree(old)


def _compile(files: Sequence[Path], out: Path) -> None:
    """Write the columns of text files, and what they are, to the folder ``out``."""
    out.mkdir(exist_ok=True)
    writers = {kind: ColumnWriter(out, kind, width) for kind, width in WIDTHS.items()}
    for path in files:
        number = 1
        with path.open("rb") as stream:
            while lines := stream.readlines(_BLOCK_BYTES):
                _add_block(lines, writers, str(path), number)
                number += len(lines)
    for writer in writers.values():
        writer.write()
    columns = {kind: (Column.open(out, kind, width),) for kind, width in WIDTHS.items()}
    entries = _entries(columns)
    meta = {
        "digest": entries.digest,
        "entries": {kind: len(column) for kind, (column,) in columns.items()},
    }
    with atomic_path(out / "meta.json") as beside:
        beside.write_text(json.dumps(meta))


_PLAIN: Final = {
    **{(kind.encode(), 2 * WIDTHS[kind]): kind for kind in _HASHES},
    **{(b"", digits): kind for digits, kind in _BARE.items()},
}


def _add_block(
    lines: Sequence[bytes], writers: Mapping[str, ColumnWriter], origin: str, number: int
) -> None:
    """Hashes are what long lists are made of: those that look like one are decoded together."""
    plain: dict[str, list[bytes]] = {kind: [] for kind in _HASHES}
    others: list[tuple[int, bytes]] = []
    for at, line in enumerate(lines, number):
        name, _, value = line.strip().rpartition(b":")
        kind = _PLAIN.get((name, len(value)))
        if kind is None:
            others.append((at, line))
        else:
            plain[kind].append(value)
    try:
        decoded = {kind: _from_hex(values) for kind, values in plain.items()}
    except ValueError:
        # One is not what it looks like: find it, in order with the others.
        decoded, others = {}, list(enumerate(lines, number))
    for at, line in others:
        key = _key_of_line(line, origin, at)
        if key is not None:
            writers[key.kind].add(key.value)
    for kind, raw in decoded.items():
        writers[kind].add(raw)


def _from_hex(values: Sequence[bytes]) -> bytes:
    text = b"".join(values)
    raw = bytes.fromhex(text.decode("ascii"))
    if 2 * len(raw) != len(text):
        raise ValueError("white space inside")  # which `fromhex` passes over
    return raw
