"""img2dataset's writer, and its keys and EXIF: the only module that imports img2dataset.

Of its package only the writer's module is run. Importing the package takes seconds: albumentations,
which asks the network for its newest version, pandas, and wandb, which could report to a server.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from laion_assets.download.options import DownloadOptions
from laion_assets.download.sample_json import SampleJson
from laion_assets.download.shard_files import SHARD_DIGITS, name_of

ROW_DIGITS: Final = 4
TAR_MTIME: Final = 0
"""Seconds since 1970. A float would add a header of a kilobyte to each file of a tar."""


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


@functools.cache
def module(name: str) -> Any:
    """A module of img2dataset's package, run by itself.

    Raises ``ModuleNotFoundError`` where img2dataset is not installed.
    """
    package = importlib.util.find_spec("img2dataset")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("img2dataset is not installed", name="img2dataset")
    path = Path(package.origin).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"img2dataset_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def load() -> Any:
    """The class of img2dataset's writer."""
    return module("writer").WebDatasetSampleWriter


def open_writer(folder: Path, shard: int, schema: pa.Schema, options: DownloadOptions) -> Writer:
    """A writer of ``folder/00000.tar`` and ``.parquet`` whose output is reproducible."""
    writer = load()(
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
    return f"{name_of(shard)}{row:0{row_digits(samples_per_shard)}d}"


def row_digits(samples_per_shard: int) -> int:
    """Digits of a row's number in a key."""
    return max(ROW_DIGITS, len(str(samples_per_shard - 1)))


def exif_json(body: bytes) -> str:
    """img2dataset's ``exif`` column: the tags as JSON."""
    import exifread  # type: ignore[import-untyped]

    tags = exifread.process_file(BytesIO(body), details=False)
    return json.dumps({name: str(value).strip() for name, value in tags.items()})
