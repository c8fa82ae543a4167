"""Kill removals at random moments, give the command again, and look for what is lost or left.

A sample world is built once. Each removal takes one sample of its subset out, by its URL; its
process gets SIGKILL, once or more often, and the same command then ends it. Afterwards no table may
hold the sample, and every other sample must have the row, the vectors and the picture that it had.
Exits with 1, and keeps the folder, if anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import dagster as dg
import numpy as np

from laion_assets.clip.vectors import image_path, text_path
from laion_assets.defs.build import build_defs
from laion_assets.download.shard_files import shard_of, tar_path
from laion_assets.download.tars import ImageBytes
from laion_assets.lake import Lake, open_lake
from laion_assets.layout import FILTERED_SUBSET, IMAGE_SHARDS, PARTITIONS
from laion_assets.sample_crawl.build import build_sample_crawl
from laion_assets.sample_crawl.server import SampleServer
from laion_assets.settings import DAGSTER_CONFIG
from laion_assets.tables import part_number, read_parquet
from tests.world.conftest import sample_settings

COMMAND: Final = Path(sys.executable).with_name("laion-assets")
CHECKOUT: Final = Path(__file__).parents[2]
EARLIEST_S: Final = 1.0
REPEATED: Final = 0.3
"""Chance that the command that goes on is killed, too."""

Samples = dict[int, tuple[str, ...]]
"""SAMPLE_ID -> its URL, then all that a removal of another sample must leave as it is."""


def samples(lake: Lake) -> Samples:
    """The samples of the subset."""
    found: Samples = {}
    for key in lake.segments(FILTERED_SUBSET):
        subset, images = lake.folder(FILTERED_SUBSET, key), lake.folder(IMAGE_SHARDS, key)
        tars: dict[int, ImageBytes] = {}
        for part in PARTITIONS[FILTERED_SUBSET].rows.paths(subset):
            vectors = [
                np.load(place(subset, part_number(part))) for place in (image_path, text_path)
            ]
            for i, row in enumerate(read_parquet(part).to_pylist()):
                shard = shard_of(row["key"])
                if shard not in tars:
                    tars[shard] = ImageBytes(tar_path(images, shard))
                picture = tars[shard].read(row["key"])
                found[row["SAMPLE_ID"]] = (
                    row["URL"],
                    str(row),
                    str(hash(picture)),
                    *(str(of[i].tolist()) for of in vectors),
                )
        for tar in tars.values():
            tar.close()
    return found


def remove(config: Path, home: Path, url: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [COMMAND, "remove", "--config", config, "--url", url, "--apply"],
            env=os.environ | {"DAGSTER_HOME": str(home), "PYTHONPATH": str(CHECKOUT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def soak(lake: Lake, config: Path, home: Path, kills: int, rng: random.Random) -> list[str]:
    """Make so many kills, within the time that a first removal takes; return what was wrong."""
    log, before = home / "removal.log", samples(lake)
    wrong: list[str] = []
    killed, latest_s = -1, 0.0
    while killed < kills and not wrong:
        url = rng.choice(sorted({sample[0] for sample in before.values()}))
        times = 0
        while True:
            began = time.monotonic()
            again = killed >= 0 and (times == 0 or rng.random() < REPEATED)
            with remove(config, home, url, log) as process:
                try:
                    process.wait(rng.uniform(EARLIEST_S, latest_s) if again else None)
                except subprocess.TimeoutExpired:
                    process.kill()
            if process.returncode >= 0:
                break
            times += 1
        if killed < 0:
            killed, latest_s = 0, time.monotonic() - began
        killed += times
        if process.returncode:
            wrong.append(f"{url}: ended with {process.returncode}: {log.read_text()[-2000:]}")
            continue
        after = samples(lake)
        expected = {number: of for number, of in before.items() if of[0] != url}
        differ = [of[0] for number, of in expected.items() if after.get(number) != of]
        if differ or after.keys() != expected.keys():
            wrong.append(f"{url}: {len(differ)} others differ, such as {differ[:3]}")
        before = after
        print(
            f"{killed} kills, {times} for {url}: {wrong or 'nothing lost, nothing left'}",
            flush=True,
        )
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    args = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="laion-assets-soak-"))
    build_sample_crawl(root / "crawl")
    with SampleServer(root / "crawl") as server:
        config, settings = sample_settings(root, server)
        (root / "home").mkdir()
        shutil.copyfile(DAGSTER_CONFIG, root / "home" / "dagster.yaml")
        definitions = build_defs(settings)
        with dg.DagsterInstance.from_config(str(root / "home")) as instance:
            instance.add_dynamic_partitions("crawls", ["CC-MAIN-2000-10"])
            key = dg.MultiPartitionKey({"crawl": "CC-MAIN-2000-10", "segment": "00"})
            for job, partition in (("segment", key), ("aggregates", None)):
                definitions.resolve_job_def(job).execute_in_process(
                    instance=instance, partition_key=partition
                )
        wrong = soak(
            open_lake(settings.lake), config, root / "home", args.kills, random.Random(args.seed)
        )
    if wrong:
        print("\n".join(wrong) + f"\nthe world is kept in {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
