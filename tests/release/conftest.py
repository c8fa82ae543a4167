"""A lake with vectors beside its subset, and a release of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from laion_assets.knn.options import IndexOptions
from laion_assets.lake import LocalLake
from laion_assets.release.export import About, export
from laion_assets.stats.catalog import build_catalog
from tests.stats.conftest import SEGMENTS, SegmentFiles

WIDTH = 16
ABOUT = About(name='"Quoted": a release', contact="https://example.org/contact")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(folder: Path, seed: int) -> None:
    """Write random image vectors beside each part, and text vectors of the rows' similarity."""
    random = np.random.default_rng(seed)
    for part in sorted(folder.glob("part-*.parquet")):
        similarity = pq.ParquetFile(part).read()["similarity"].to_numpy()[:, None]
        image = unit(random.normal(size=(len(similarity), WIDTH)))
        other = random.normal(size=image.shape)
        other = unit(other - (other * image).sum(axis=1, keepdims=True) * image)
        text = similarity * image + np.sqrt(1 - similarity**2) * other
        number = part.stem.removeprefix("part-")
        for kind, vectors in (("img", image), ("text", text)):
            path = folder / f"_{kind}_emb" / f"{kind}_emb_{number}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, vectors.astype(np.float16))


def make_lake(root: Path) -> LocalLake:
    lake = LocalLake.at(root)
    for seed, (crawl, segment) in enumerate(SEGMENTS):
        files = SegmentFiles(root, crawl, segment)
        files.write()
        write_vectors(files.folder("filtered_subset"), seed)
        manifest = files.folder("filtered_subset") / "_manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"data_version": crawl}))
        files.stats()
    files.tar()
    publish_catalog(lake)
    return lake


def publish_catalog(lake: LocalLake) -> None:
    with lake.publish("catalog", inputs={}, code_version="1") as staging:
        build_catalog(lake.root, staging.path / "catalog.duckdb")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of ``lake`` and ``release``, which has five files of 72 samples. Tests share it."""
    root = tmp_path_factory.mktemp("release")
    export(make_lake(root / "lake"), root / "release", files=5, about=ABOUT, index=IndexOptions())
    return root


@pytest.fixture
def lake(made: Path, tmp_path: Path) -> LocalLake:
    """A copy of the lake, for a test to change."""
    return LocalLake.at(shutil.copytree(made / "lake", tmp_path / "lake"))
