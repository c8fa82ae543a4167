"""Daft's contest, run by the interpreter that has Daft: ``daft_wat.py WAT``."""

import json
import sys
import time

import daft  # type: ignore[import-not-found]
from daft import col
from daft.functions import decode, jq  # type: ignore[import-not-found]

# Daft's jq has no path through null.
_IMAGES = (
    '[try (.Envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"].Links) catch []'
    ' | select(. != null) | .[] | select(.path == "IMG@/src" and .alt != null and .alt != "")'
    " | [.url, .alt]]"
)

if __name__ == "__main__":
    started, before = time.perf_counter(), time.process_time()
    records = daft.read_warc(sys.argv[1]).where(col("WARC-Type") == "metadata")
    links = jq(decode(col("warc_content"), "utf-8"), _IMAGES).alias("links")
    found = records.select("WARC-Target-URI", links).to_pydict()["links"]
    n = sum(len(json.loads(of_page)) for of_page in found)
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - before}
    print(json.dumps(spent | {"n": n}))
