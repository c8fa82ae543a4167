"""A lake with one segment that samples are taken out of, and any number of others.

Two segments of a crawl of drawings are materialized by Dagster, from the WAT files to the index;
only the model is left out: vectors are drawn at random, by the bytes that they stand for. All
further segments are hard links to the first, without an index, as merging is measured elsewhere.
The two are made once, and lakes of every size are grown from them.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from benchmarks.lake.make import Template, keys
from laion_assets.clip.model import ClipModel
from laion_assets.dedup.ledger import unsettled
from laion_assets.defs.build import build_defs
from laion_assets.defs.code_version import code_version
from laion_assets.defs.partitions import partition_key
from laion_assets.lake import LakeOptions, LocalLake, open_lake
from laion_assets.layout import (
    DEDUP_LEDGER,
    KNN_INDEX,
    OVER_ALL,
    PAIR_PARQUET,
    PARTITIONS,
    UNIQUE_PAIRS,
    WAT_MANIFEST,
    SegmentKey,
)
from laion_assets.sample_crawl.drawn_crawl import CRAWL, build_drawn_crawl
from laion_assets.sample_crawl.server import SampleServer
from laion_assets.settings import DAGSTER_CONFIG, load_settings, sample_config

NEEDLE: Final = SegmentKey(CRAWL, "01")
OTHERS: Final = SegmentKey(CRAWL, "00")
SHARDS: Final = 10
"""Shards of a segment."""
_SETTINGS: Final = "config.toml"


def build(root: Path, samples: int) -> Path:
    """Make a lake of two segments, ``root/lake``, and its Dagster instance, ``root/home``; return
    the folder of the crawl that they were made of."""
    crawl = root.parent / f"crawl-{samples}"
    build_drawn_crawl(crawl, 2 * samples)
    (root / "home").mkdir(parents=True)
    shutil.copyfile(DAGSTER_CONFIG, root / "home" / "dagster.yaml")
    config = root / _SETTINGS
    with SampleServer(crawl) as server, _instance(root) as instance:
        config.write_text(_settings(root, server, samples), encoding="utf-8")
        definitions = build_defs(load_settings(config))
        instance.add_dynamic_partitions("crawls", [CRAWL])
        _draw_vectors()
        for key in (OTHERS, NEEDLE):
            _run(instance, definitions, "segment", key)
        _run(instance, definitions, "aggregates", None)
    return crawl


def grow(template: Path, root: Path, segments: int) -> Path:
    """Copy what :func:`build` made, with so many segments, by hard links; return the settings."""
    shutil.copytree(template / "lake", root / "lake", copy_function=os.link)
    shutil.copytree(template / "home", root / "home")
    config = root / _SETTINGS
    text = (template / _SETTINGS).read_text(encoding="utf-8")
    config.write_text(text.replace(str(template), str(root)), encoding="utf-8")
    for asset in PARTITIONS:
        if asset != KNN_INDEX:
            linked = Template(root / "lake" / asset, OTHERS)
            for key in keys(segments - 2):
                linked.link(key)
    with _instance(root) as instance:
        _run(instance, build_defs(load_settings(config)), "aggregates", None)
    return config


def put_into_store(root: Path, url: str, endpoint: str) -> Path:
    """Publish in a store what the lake ``root/lake`` has; return settings that name it.

    The machine of these settings has no copies yet. Of the segments that nothing is taken out of,
    the store has no tars.
    """
    lake, settings = LocalLake.at(root / "lake"), load_settings(root / _SETTINGS)
    given = {"endpoint": endpoint, "region": "us-east-1"}
    store = open_lake(LakeOptions(root=url, cache=str(root / "putting"), storage_options=given))
    for asset in [*PARTITIONS, *OVER_ALL]:
        for key, manifest in lake.manifests(asset).items():
            inputs = {}
            if asset == PAIR_PARQUET:
                # By these, pairs are copied from the version before and not read from WAT files.
                wat = lake.manifest(WAT_MANIFEST, key).data_version
                inputs = {WAT_MANIFEST: wat, "options": code_version(0, settings.pairs)}
            with store.publish(
                asset, key, inputs=inputs, code_version=manifest.code_version
            ) as staging:
                shutil.copytree(
                    lake.folder(asset, key),
                    staging.path,
                    copy_function=os.link,
                    ignore=shutil.ignore_patterns(*([] if key == NEEDLE else ["*.tar"])),
                    dirs_exist_ok=True,
                )
                staging.counts, staging.metadata = list(manifest.counts), dict(manifest.metadata)
                staging.data_version = manifest.data_version
    with store.lease(DEDUP_LEDGER, UNIQUE_PAIRS, unsettled) as lease:
        shutil.copytree(root / "lake" / DEDUP_LEDGER, lease.folder, dirs_exist_ok=True)
    config = root / "store.toml"
    text = (root / _SETTINGS).read_text(encoding="utf-8")
    inner = ", ".join(f"{name} = {json.dumps(value)}" for name, value in given.items())
    named = f'root = "{url}"\ncache = "{root}/cache"\nstorage_options = {{ {inner} }}'
    config.write_text(text.replace(f'root = "{root}/lake"', named), encoding="utf-8")
    return config


def _instance(root: Path) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(root / "home"))


def _run(
    instance: dg.DagsterInstance, definitions: dg.Definitions, job: str, key: SegmentKey | None
) -> None:
    done = definitions.resolve_job_def(job).execute_in_process(
        instance=instance,
        partition_key=partition_key(key) if key else None,
        run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
    )
    assert done.success


def _settings(root: Path, server: SampleServer, samples: int) -> str:
    values: dict[str, Any] = tomllib.loads(
        sample_config().with_name("drawn.toml").read_text(encoding="utf-8")
    )
    values["lake"]["root"] = str(root / "lake")
    values["crawl_source"] |= {
        "collinfo_url": f"{server.url}collinfo.json",
        "data_url": server.url,
    }
    values["download"] |= {
        "connect_to": server.connect_to,
        "samples_per_shard": -(-samples // SHARDS),
        "per_host_rate": 1000.0,
    }
    # Similarities of random vectors are about 0: nearly all are kept.
    values["subset"] = {"name": "nearly-all", "threshold": -0.2}
    lines = []
    for section, content in values.items():
        lines.append(f"[{section}]")
        for name, value in content.items():
            if isinstance(value, dict):
                inner = ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items())
                lines.append(f"{name} = {{ {inner} }}")
            else:
                lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines)


def _draw_vectors() -> None:
    """Have this process's models draw vectors instead of computing them."""

    def drawn(model: ClipModel, items: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        seeds = [zlib.crc32(item.tobytes()) for item in items]
        vectors = np.stack([np.random.default_rng(s).standard_normal(model.dim) for s in seeds])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
        return unit

    def images(
        model: ClipModel, batches: Iterable[Sequence[NDArray[Any]]]
    ) -> Iterator[NDArray[np.float32]]:
        return (drawn(model, batch) for batch in batches)

    ClipModel.embed_images = images  # type: ignore[method-assign,assignment]
    ClipModel.embed_tokens = drawn  # type: ignore[method-assign,assignment]
