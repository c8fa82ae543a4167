"""What the released tools leave one to do for a removal: make the segment again.

Each tool in its own environment, as released: img2dataset fetches all images of the segment again,
clip-retrieval embeds some of them, autofaiss builds the two indices anew.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.embed.weights import MODEL, save_weights
from benchmarks.peer import peer_python
from benchmarks.removal.make import NEEDLE
from laion_assets.clip.vectors import PLACES
from laion_assets.lake import LocalLake
from laion_assets.layout import FILTERED_SUBSET, PARTITIONS, UNIQUE_PAIRS
from laion_assets.sample_crawl.server import IMAGE_HOSTS, SampleServer
from laion_assets.tables import read_parquet

_BENCHMARKS: Final = Path(__file__).parent.parent
_SHARD: Final = 256
"""Samples of a tar of img2dataset; one tar is embedded."""
_BATCH: Final = "64"


class Step(NamedTuple):
    """``samples``: how many it was measured on. ``cpu_seconds``: for all of the segment."""

    what: str
    samples: int
    cpu_seconds: float


def rebuild(lake: LocalLake, crawl: Path, work: Path) -> list[Step]:
    """Do what a rebuild of the segment takes; ``work``: a folder that is emptied first."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with SampleServer(crawl) as server:
        n, fetching = _fetch(lake, server.port, work)
    return [
        Step("img2dataset 1.47.0: fetch all images again", n, fetching),
        _embed(n, work),
        *_index(lake, work),
    ]


def _fetch(lake: LocalLake, port: int, work: Path) -> tuple[int, float]:
    """How many images were fetched, and the CPU seconds of that."""
    paths = PARTITIONS[UNIQUE_PAIRS].rows.paths(lake.folder(UNIQUE_PAIRS, NEEDLE))
    pairs = pa.concat_tables([read_parquet(path, ["url", "text"]) for path in paths])
    # Its resolver is pointed to the server by name; the port stands in the URL.
    urls = [
        url._replace(netloc=f"{url.netloc}:{port}").geturl()
        for url in map(urlsplit, pairs["url"].to_pylist())
    ]
    pq.write_table(pa.table({"url": urls, "text": pairs["text"]}), work / "pairs.parquet")
    peer = peer_python("img2dataset", _BENCHMARKS / "download" / "img2dataset.txt")
    done = measure.run(
        [
            peer.with_name("img2dataset"),
            f"--url_list={work / 'pairs.parquet'}",
            f"--output_folder={work / 'shards'}",
            *("--input_format=parquet", "--url_col=url", "--caption_col=text"),
            *("--output_format=webdataset", f"--number_sample_per_shard={_SHARD}"),
            *(f"--processes_count={len(os.sched_getaffinity(0))}", "--thread_count=64"),
            *("--image_size=256", "--resize_mode=border", "--enable_wandb=False"),
        ],
        env={
            "PYTHONPATH": str(_BENCHMARKS / "download" / "theirs_names"),
            "BENCH_NAMES": json.dumps({f"*{IMAGE_HOSTS}": "127.0.0.1"}),
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "WANDB_MODE": "disabled",
        },
    )
    stats = [json.loads(path.read_text()) for path in (work / "shards").glob("*_stats.json")]
    fetched = sum(of["successes"] for of in stats)
    if fetched < len(urls) / 2:
        raise SystemExit(f"img2dataset got {fetched} of {len(urls)} images")
    return fetched, done.cpu_seconds


def _embed(n: int, work: Path) -> Step:
    """clip-retrieval's inference with a ViT-B/32 on one tar, as many times as there are images."""
    peer = peer_python("clip_retrieval", _BENCHMARKS / "embed" / "clip_retrieval.txt")
    weights = work / f"{MODEL}-random.safetensors"
    save_weights(weights)
    (tar, *_) = sorted((work / "shards").glob("[0-9]*.tar"))
    (work / "one").mkdir()
    tar.rename(work / "one" / tar.name)
    program = _BENCHMARKS / "embed" / "theirs.py"
    out = work / "embedded"
    done = measure.run([peer, program, work / "one", weights, out, _BATCH, "1"])
    answer = json.loads(done.stdout.splitlines()[-1])
    cost = answer["cpu_seconds"] / answer["n"]
    return Step("clip-retrieval 2.45.0: embed all again, ViT-B/32", answer["n"], cost * n)


def _index(lake: LocalLake, work: Path) -> list[Step]:
    """autofaiss on the subset's own vectors."""
    peer = peer_python("autofaiss", _BENCHMARKS / "knn" / "autofaiss.txt")
    subset, steps = lake.folder(FILTERED_SUBSET, NEEDLE), []
    for place, of in zip(PLACES, ("images", "texts"), strict=True):
        folder = work / of
        folder.mkdir()
        (vectors,) = sorted(place(subset, 0).parent.glob("*.npy"))
        np.save(folder / "0.npy", np.load(vectors))
        program = _BENCHMARKS / "knn" / "theirs.py"
        done = measure.run([peer, program, "build", folder, work / f"{of}.index", "100"])
        n = len(np.load(vectors, mmap_mode="r"))
        steps.append(Step(f"autofaiss 2.18.0: index of the {of} anew", n, done.cpu_seconds))
    return steps
