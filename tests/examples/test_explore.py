"""The notebook, cell by cell in a process of its own, on a lake with pictures and an index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laion_assets.clip.model import load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.knn.build import build_index
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.query import subset_beside
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.settings import CONFIG_VARIABLE, sample_config
from laion_assets.stats.catalog import build_catalog
from tests.stats.conftest import SegmentFiles

NOTEBOOK = Path(__file__).parent.parent.parent / "examples" / "explore.ipynb"
KEY = SegmentKey("CC-MAIN-2000-05", "00")
RUN = """
import ast, json, sys

shown, names = [], {}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
    size = len(value) if hasattr(value, "columns") else list(getattr(value, "size", ()) or ())
    shown.append([type(value).__name__, size])
print(json.dumps(shown))
"""
"""Runs the cells as a kernel does and prints, of each cell's last value, type and size."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> LocalLake:
    """One segment of pictures of one colour, each embedded and indexed by the shipped model."""
    lake = LocalLake.at(tmp_path_factory.mktemp("explore") / "lake")
    files = SegmentFiles(lake.root, KEY.crawl, KEY.segment)
    files.write()
    files.tar()
    files.stats()
    model = load_clip(ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny"))
    pictures = [Image.new("RGB", (40, 30), (row * 6, 0, 0)) for row in range(24)]
    texts = [str(pair["text"]) for pair in files.subset]
    subset = files.folder("filtered_subset")
    for path, vectors in (
        (image_path(subset, 0), model.encode_images(pictures)),
        (text_path(subset, 0), model.encode_texts(texts)),
    ):
        path.parent.mkdir()
        np.save(path, vectors.astype(np.float16))
    index = files.folder("knn_index")
    index.mkdir(parents=True)
    build_index(subset, index, IndexOptions(), model=model.identity)
    with lake.publish("search_index", inputs={str(KEY): "1"}, code_version="1") as staging:
        merge_indices(
            [SegmentIndex(KEY, "1")],
            partial(lake.folder, "knn_index"),
            staging.path,
            IndexOptions(),
            subset_beside(lake.root / "search_index"),
        )
    catalog = lake.folder("catalog") / "catalog.duckdb"
    catalog.parent.mkdir()
    build_catalog(lake.root, catalog)
    return lake


def test_every_cell_runs_and_shows_what_it_says(lake: LocalLake, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(sample_config().read_text().replace(".demo/lake", str(lake.root)))
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {CONFIG_VARIABLE: str(config), "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    assert printed[0] == str(lake)
    assert "kept" in "\n".join(printed[1:]), "the story of a pair"
    shown = json.loads(last)
    frames = [size for kind, size in shown if kind == "DataFrame"]
    assert len(frames) == 4
    assert frames[1:3] == [10, 12 + 9], "all but what has a safety tag"
    assert frames[3] == 8
    assert [kind for kind, _ in shown].count("Text") == 1, "the figure's last label"
    [picture] = [size for kind, size in shown if kind == "JpegImageFile"]
    assert min(picture) > 200


def test_it_is_a_notebook_without_outputs() -> None:
    """As `jupyter nbconvert --clear-output` leaves it: what people ran is not committed."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
