"""A look-up file: hashes of 8 bytes, each with the row that it names, searched without being read.

A file is ``magic``, the number of entries n (uint64), then three columns of little-endian uint32.
Entries are sorted by hash and spread over ``2**bits`` buckets by the first bits of the hash; the
first column says where each bucket begins and the last one ends. The second has the next 32 bits of
each entry's hash, the third its row. A bucket holds 32 to 64 entries of distinct hashes, so one key
takes three small reads, and an entry takes 8.1 bytes. A file compares 32 + ``bits`` bits, so a row
that it names is a candidate: whoever asks reads the row and compares.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.errors import PermanentError
from laion_assets.files import atomic_path

Hashes = NDArray[np.uint64]
Rows = NDArray[np.uint32]

_MAGIC: Final = b"lookup 1"
_HEADER: Final = struct.Struct("<8sQ")
_BUCKET: Final = struct.Struct("<2I")
_BUCKET_BITS: Final = 6
_WORD: Final = 4
_WHOLE_FROM: Final = 256
"""A file with fewer entries than this, for each hash asked for, is read whole."""


class LookupDamagedError(PermanentError):
    """A look-up file is cut or is none; the message says what to do."""


def heads_of(digests: bytes, width: int) -> Hashes:
    """(n,) uint64 of n digests of ``width`` bytes, back to back: their first 8 bytes as a
    big-endian number, so that the order of numbers is that of the digests."""
    keys = np.frombuffer(digests, np.uint8).reshape(-1, width)
    heads: Hashes = np.ascontiguousarray(keys[:, :8]).view(">u8").ravel().astype(np.uint64)
    return heads


def write(path: Path, hashes: Hashes, rows: Rows) -> None:
    """Publish a look-up file of (n,) hashes and the row of each, in any order.

    Equal arguments give equal bytes; an entry given twice is written once.
    """
    order = np.lexsort((rows, hashes))
    hashes, rows = hashes[order], rows[order]
    new = np.ones(len(hashes), dtype=np.bool_)
    new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
    hashes, rows = hashes[new], rows[new]
    bits = _bits(len(hashes))
    bounds = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits) if bits else np.zeros(1)
    begins = np.append(np.searchsorted(hashes, bounds.astype(np.uint64)), len(hashes))
    rest = (hashes << np.uint64(bits)) >> np.uint64(32)
    with atomic_path(path) as beside, beside.open("wb") as stream:
        stream.write(_HEADER.pack(_MAGIC, len(hashes)))
        for column in (begins, rest, rows):
            stream.write(column.astype("<u4").tobytes())


def find(path: str | Path, hashes: Hashes) -> Rows:
    """The rows whose hash may be one of ``hashes``, sorted and distinct, both.

    Raises ``FileNotFoundError``, and :class:`LookupDamagedError`.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        n, bits = _header(handle, path)
        if len(hashes) * _WHOLE_FROM > n:
            return _find_many(handle, path, n, bits, hashes)
        found = [_find_one(handle, path, n, bits, int(value)) for value in hashes]
    finally:
        os.close(handle)
    hits = [rows for rows in found if len(rows)]
    return np.unique(np.concatenate(hits)) if hits else _NONE


_NONE: Final = np.empty(0, np.uint32)


def _bits(n: int) -> int:
    return max(0, n.bit_length() - _BUCKET_BITS)


def _header(handle: int, path: str | Path) -> tuple[int, int]:
    """Number of entries, and of the bits that name a bucket."""
    head = os.pread(handle, _HEADER.size, 0)
    magic, n = _HEADER.unpack(head) if len(head) == _HEADER.size else (b"", 0)
    bits = _bits(n)
    whole = _HEADER.size + _WORD * ((1 << bits) + 1 + 2 * n) if magic == _MAGIC else -1
    if os.fstat(handle).st_size != whole:
        raise _damaged(path)
    return n, bits


def _damaged(path: str | Path) -> LookupDamagedError:
    return LookupDamagedError(
        f"{path} is damaged: materialize its partition again. Without this file the partition is "
        "searched row by row, so deleting it helps until then"
    )


def _find_one(handle: int, path: str | Path, n: int, bits: int, value: int) -> Rows:
    directory = _HEADER.size + _WORD * (value >> (64 - bits))
    begin, stop = _BUCKET.unpack(os.pread(handle, _BUCKET.size, directory))
    if not begin <= stop <= n:
        raise _damaged(path)
    rest = _HEADER.size + _WORD * ((1 << bits) + 1)
    bucket = os.pread(handle, _WORD * (stop - begin), rest + _WORD * begin)
    wanted = (value >> (32 - bits)) & 0xFFFFFFFF
    if wanted.to_bytes(_WORD, "little") not in bucket:
        return _NONE
    entries = np.frombuffer(bucket, "<u4")
    first, last = (int(entries.searchsorted(wanted, side)) for side in ("left", "right"))
    rows = rest + _WORD * (n + begin + first)
    return np.frombuffer(os.pread(handle, _WORD * (last - first), rows), "<u4")


def _find_many(handle: int, path: str | Path, n: int, bits: int, hashes: Hashes) -> Rows:
    """Compare all entries with all hashes, both sorted."""
    columns = np.frombuffer(os.pread(handle, os.fstat(handle).st_size, 0), "<u4")
    columns = columns[_HEADER.size // _WORD :]
    begins, rest, rows = np.split(columns, [(1 << bits) + 1, (1 << bits) + 1 + n])
    ends = begins.astype(np.int64)
    sizes = ends[1:] - ends[:-1]
    if sizes.min() < 0 or sizes.sum() != n:
        raise _damaged(path)
    buckets = np.repeat(np.arange(1 << bits, dtype=np.uint64), sizes)
    entries = (buckets << np.uint64(32)) | rest
    wanted = hashes >> np.uint64(32 - bits)
    if len(wanted) > n:
        at = np.minimum(np.searchsorted(wanted, entries), len(wanted) - 1)
        return np.unique(rows[wanted[at] == entries])
    first = np.searchsorted(entries, wanted)
    held = np.flatnonzero(first < n)
    held = held[entries[first[held]] == wanted[held]]
    last = np.searchsorted(entries, wanted[held], "right")
    hits = [rows[a:b] for a, b in zip(first[held], last, strict=True)]
    return np.unique(np.concatenate(hits)) if hits else _NONE
