"""Daft's contest, run by the interpreter that has Daft: ``daft_download.py PAIRS OUT AT_ONCE S``.

The way of its documentation: download, decode, resize, encode, write, as columns of a dataframe.
Its resize knows no border and no shards, so each image is pressed into the square, and parquet
files hold the images. The last line of its output is JSON.
"""

from __future__ import annotations

import json
import sys
import time

import daft  # type: ignore[import-not-found]
from daft import col
from daft.functions import (  # type: ignore[import-not-found]
    decode_image,
    download,
    encode_image,
    resize,
)
from daft.io import HTTPConfig, IOConfig  # type: ignore[import-not-found]

SIDE = 256


def main() -> None:
    pairs, out, at_once, timeout_s = sys.argv[1:]
    patience = int(float(timeout_s) * 1000)
    http = HTTPConfig(connect_timeout_ms=patience, read_timeout_ms=patience, num_tries=1)
    begun = time.time()
    body = download(
        col("url"), max_connections=int(at_once), on_error="null", io_config=IOConfig(http=http)
    )
    image = resize(decode_image(body, on_error="null"), SIDE, SIDE)
    made = daft.read_parquet(pairs).select("url", "text", encode_image(image, "jpeg").alias("jpg"))
    made.where(col("jpg").not_null()).write_parquet(out)
    images = daft.read_parquet(f"{out}/*.parquet").count_rows()
    print(json.dumps({"images": images, "start_time": begun, "end_time": time.time()}))


if __name__ == "__main__":
    main()
