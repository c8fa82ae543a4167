"""img2dataset's resizer, writer and keys: the only module that imports img2dataset.

Two things are changed around the import. albumentations, with which img2dataset resizes, asks the
network for its newest version when it is imported; wandb, imported for a logger that is not used
here, could report. Environment variables keep both silent. And img2dataset mutes a decoder's output
by redirecting the whole process's stdout and stderr for each image. That loses other threads'
output and, with several images at once, is never undone, so it is removed.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from PIL import Image

from laion_assets.download.options import DownloadOptions
from laion_assets.download.sample_json import SampleJson
from laion_assets.download.shard_files import SHARD_DIGITS

SILENCE: Final = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
}
ROW_DIGITS: Final = 4
TAR_MTIME: Final = 0
"""Seconds since 1970. A float would add a header of a kilobyte to each file of a tar."""

_import_lock: Final = threading.Lock()


class Writer:
    """img2dataset's ``WebDatasetSampleWriter``: a tar and a parquet file.

    Only the JSON in the tar is not img2dataset's, which repeats the parquet's row: see
    :mod:`.sample_json`.
    """

    def __init__(self, writer: Any, schema: pa.Schema, suffix: str) -> None:
        self._writer = writer
        self._json = SampleJson(schema)
        self._suffix = suffix

    def write(self, encoded: bytes | None, row: dict[str, Any]) -> None:
        """Add a row of the schema, and to the tar its encoded image, if it has one.

        An image without a caption has no text file; img2dataset writes an empty one.
        """
        if encoded is not None:
            text = {} if row["caption"] is None else {"txt": row["caption"]}
            sample = {"__key__": row["key"], self._suffix: encoded, **text}
            self._writer.tarwriter.write({**sample, "json": self._json(row)})
        self._writer.buffered_parquet_writer.write(row)

    def close(self) -> None:
        self._writer.close()


Resizer = Callable[[BytesIO], tuple[bytes | None, int, int, int, int, str | None]]
"""img2dataset's resizer: stream -> encoded, width, height, original width and height, error."""


@dataclass(frozen=True)
class Parts:
    """The parts of img2dataset that are used here."""

    resizer_class: Any
    writer_class: Any
    compute_key: Callable[[int, int, int, int], str]
    exif_of: Callable[..., dict[str, Any]]


def load() -> Parts:
    """Import img2dataset, once; this takes some seconds."""
    with _import_lock:
        return _load()


@functools.cache
def _load() -> Parts:
    os.environ.update(SILENCE)
    # img2dataset calls albumentations in a deprecated way, which warns for every image.
    warnings.filterwarnings("ignore", "value is deprecated, use fill", DeprecationWarning)
    warnings.filterwarnings("ignore", "'imghdr' is deprecated", DeprecationWarning)
    # `images` judges declared sizes; Pillow would warn of some that are refused anyway.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    # Pillow would warn of each odd tag in a stranger's image.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    logging.getLogger("exifread").setLevel(logging.CRITICAL)
    import exifread  # type: ignore[import-untyped]
    from img2dataset import resizer
    from img2dataset.downloader import compute_key
    from img2dataset.writer import WebDatasetSampleWriter

    resizer.SuppressStdoutStderr = nullcontext
    return Parts(resizer.Resizer, WebDatasetSampleWriter, compute_key, exifread.process_file)


def make_resizer(options: DownloadOptions) -> Resizer:
    """img2dataset's resizer with these options."""
    resizer: Resizer = load().resizer_class(
        image_size=options.image_size,
        resize_mode=options.resize_mode,
        resize_only_if_bigger=options.resize_only_if_bigger,
        encode_quality=options.encode_quality,
        encode_format=options.encode_format,
    )
    return resizer


def open_writer(folder: Path, shard: int, schema: pa.Schema, options: DownloadOptions) -> Writer:
    """A writer of ``folder/00000.tar`` and ``.parquet`` whose output is reproducible."""
    writer = load().writer_class(
        shard,
        str(folder),
        True,  # save_caption
        SHARD_DIGITS,
        schema,
        options.encode_format,
    )
    writer.tarwriter.mtime = TAR_MTIME
    # By default img2dataset flushes every 100 rows, which makes a row group.
    writer.buffered_parquet_writer.buffer_size = options.samples_per_shard
    return Writer(writer, schema, options.encode_format)


def key_of(shard: int, row: int, samples_per_shard: int) -> str:
    """``"000010002"``: shard, then row, as img2dataset numbers shards of 10,000."""
    return load().compute_key(row, shard, row_digits(samples_per_shard), SHARD_DIGITS)


def row_digits(samples_per_shard: int) -> int:
    """Digits of a row's number in a key."""
    return max(ROW_DIGITS, len(str(samples_per_shard - 1)))


def exif_json(body: bytes) -> str:
    """img2dataset's ``exif`` column: the tags as JSON."""
    tags = load().exif_of(BytesIO(body), details=False)
    return json.dumps({name: str(value).strip() for name, value in tags.items()})
