"""A small CLIP of one's own, trained in seconds, on its way from a folder to a release."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets import schemas
from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.download.shard_files import SHARDS, tar_path
from laion_assets.filtering.recipe import Recipe
from laion_assets.funnel import StageCounts
from laion_assets.knn.files import IndexSummary
from laion_assets.lake import LocalLake
from laion_assets.layout import PARTITIONS, SegmentKey
from laion_assets.settings import load_settings
from laion_assets.stats.catalog import build_catalog
from laion_assets.stats.segment import segment_stats
from laion_assets.tables import part_path, write_table
from tests.cli.conftest import Done, Stages, laion_assets, refused

ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
STEPS = 40
WEIGHTS = "open_clip_model.safetensors"


def train(shards: Path, folder: Path) -> None:
    """Train on the pairs of a shard, and write the model in open_clip's layout."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    with tarfile.open(shards / "00000.tar") as tar:
        content = {name: tar.extractfile(name).read() for name in sorted(tar.getnames())}  # type: ignore[union-attr]
    keys = sorted({name.partition(".")[0] for name in content})
    pictures = [Image.open(io.BytesIO(content[f"{key}.jpg"])).convert("RGB") for key in keys]
    pixels = np.stack([np.asarray(picture.resize((32, 32))) for picture in pictures])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    tokens = open_clip.get_tokenizer("ViT-B-32")([content[f"{key}.txt"].decode() for key in keys])

    torch.manual_seed(0)
    model, loss = open_clip.CLIP(**ARCHITECTURE), open_clip.ClipLoss()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss(*model((images - mean) / std, tokens)).backward()
        optimiser.step()
    folder.mkdir()
    save_file(model.state_dict(), folder / WEIGHTS)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE}))


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Those of open_clip's default preprocessing."""


def change_weights(folder: Path) -> None:
    """Train another way, as it were: turn all vectors of images about."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / WEIGHTS)
    state["visual.proj"] = state["visual.proj"].roll(1, dims=1).contiguous()
    save_file(state, folder / WEIGHTS)


@dataclass
class Own:
    """A user's folder: a model, its settings, and what is made with it."""

    root: Path
    shards: Path

    @property
    def config(self) -> Path:
        return self.root / "mine.toml"

    def settings(self, model: Path, subset: str = "") -> None:
        text = f'[lake]\nroot = "{self.root}/lake"\n'
        text += f'[clip]\nmodel = "local-dir:{model}"\n[safety]\nprompts = "sample"\n'
        self.config.write_text(text + subset)

    def run(self, command: str, *words: object) -> Done:
        return laion_assets(command, "--config", self.config, *words)

    def ran(self, command: str, *words: object) -> Done:
        done = self.run(command, *words)
        assert done.code == 0, done.err
        return done


@pytest.fixture(scope="module")
def own(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Own:
    """A model that has been trained, embedded with, and calibrated."""
    own = Own(tmp_path_factory.mktemp("own"), stages.root / "shards")
    train(own.shards, own.root / "model")
    own.settings(own.root / "model")
    done = own.ran("embed", own.shards, "-o", own.root / "emb")
    assert "no similarity threshold is known" in done.err
    # Without a threshold the pairs can be embedded, but nothing can be taken of them.
    refused_by = own.run("filter", own.root / "emb", "-o", own.root / "subset")
    assert refused_by.code == 1
    assert "laion-assets calibrate" in refused_by.err
    assert not (own.root / "subset" / "part-00000.parquet").exists()
    with pytest.raises(ValueError, match="laion-assets calibrate"):
        build_defs(load_settings(own.config))

    done = own.ran("calibrate", own.root / "emb", "--plot", own.root / "calibration.png")
    assert Image.open(own.root / "calibration.png").size[0] > 400
    assert "model local-dir:model (version " in done.out
    shares = re.findall(r"^ +(\d+)% +([-\d.]+) +([\d.]+)%$", done.out, re.MULTILINE)
    assert [share for share, *_ in shares] == ["1", "2", "5", "10"]
    kept = [float(share) for *_, share in shares]
    assert kept == sorted(kept)
    assert kept[-1] > 50, "it has learnt its own pairs"
    (line,) = re.findall(r'^"local-dir:model@.*', done.out, re.MULTILINE)
    assert Recipe(name="own", thresholds=tomllib.loads(line))
    assert f"threshold = {line.split(' = ')[1]}  #" in done.out
    own.settings(own.root / "model", done.out[done.out.index("[subset]") :])
    return own


@pytest.fixture
def copy(own: Own, tmp_path: Path) -> Own:
    """A copy of the user's folder, whose settings name the copied model."""
    copied = Own(shutil.copytree(own.root, tmp_path / "copy"), own.shards)
    copied.config.write_text(own.config.read_text().replace(str(own.root), str(copied.root)))
    return copied


def test_a_model_of_ones_own_filters_indexes_and_searches(copy: Own) -> None:
    emb, subset, index = (copy.root / name for name in ("emb", "subset", "idx"))
    counts = copy.ran("filter", emb, "-o", subset, "--scores", copy.root / "scores").counts
    n = counts["subset", "kept"]
    assert n > counts["subset", "in"] // 4
    # The scores say the same as the embeddings did.
    by_scores, by_vectors = (
        copy.ran("calibrate", copy.root / name).out.split("\n\n") for name in ("scores", "emb")
    )
    assert (by_scores[1], by_scores[-1]) == (by_vectors[1], by_vectors[-1])
    done = copy.ran("index", subset, "-o", index)
    assert "local-dir:" in done.out
    text = pq.ParquetFile(subset / "part-00000.parquet").read(["TEXT"])["TEXT"][0].as_py()
    asked = ("search", index, text, "--subset", subset, "-k", 3)
    before = copy.ran(*asked).out
    assert before.count("http") == 3

    # The same weights elsewhere: nothing is embedded again, and the index still answers.
    (copy.root / "model").rename(copy.root / "moved")
    copy.config.write_text(copy.config.read_text().replace("/model", "/moved"))
    assert copy.ran(*asked).out == before
    assert "0 samples embedded" in copy.ran("embed", copy.shards, "-o", emb).err
    assert copy.ran("filter", emb, "-o", subset).counts == counts

    # Other weights at the same place: nothing of the old model's is taken for theirs.
    change_weights(copy.root / "moved")
    refused(copy.run(*asked), r"built with .*local-dir:model \(version .* uses .*moved \(version")
    refused(copy.run("filter", emb, "-o", subset), "was embedded by local-dir:model")
    refused(copy.run("embed", copy.shards, "-o", emb), "of another model")
    # An index names the model of its vectors, whatever the settings name by now.
    copy.ran("index", subset, "-o", copy.root / "again")
    known = [IndexSummary.read(folder).model_version for folder in (index, copy.root / "again")]
    assert known[0] == known[1]
    refused(copy.run("search", copy.root / "again", *asked[2:]), "built with")


def test_a_subset_that_names_no_model_is_not_indexed(copy: Own) -> None:
    copy.ran("filter", copy.root / "emb", "-o", copy.root / "subset")
    (copy.root / "subset" / ".taken_with.json").unlink()
    refused(copy.run("index", copy.root / "subset", "-o", copy.root / "idx"), "what model made")


def test_prompts_of_another_model_are_warned_of(copy: Own) -> None:
    """A model that has never seen the prompts' words puts them anywhere."""
    config = copy.config.read_text()
    prompts = json.loads((shipped_prompts() / "laion400m.json").read_text())
    for category in prompts["categories"]:
        category["nsfw"] = True
    own_prompts = copy.root / "prompts.json"
    own_prompts.write_text(json.dumps(prompts))
    copy.config.write_text(config.replace('"sample"', f'"{own_prompts}"'))
    done = copy.ran("filter", copy.root / "emb", "-o", copy.root / "subset")
    assert "100% of" in done.err
    assert "the prompts may not suit the model" in done.err
    assert "docs/own-model.md" in done.err


def shipped_prompts() -> Path:
    from laion_assets.safety.prompts import HERE

    return HERE


KEY = SegmentKey("CC-MAIN-2000-05", "00")


class Graph:
    """The user's lake, which has the shards already."""

    def __init__(self, own: Own, instance: dg.DagsterInstance) -> None:
        self.own, self.instance = own, instance
        self.lake = LocalLake.at(own.root / "lake")
        rows = pq.ParquetFile(own.shards / "00000.parquet").read()
        rejects = Counter(rows["reason"].drop_null().to_pylist())
        kept = len(rows) - rejects.total()
        columns = {
            name: pa.array([0] * len(rows), pa.int32()) if name == "shard" else rows[name]
            for name in (*rows.column_names, "shard")
            if name in (*schemas.IMAGES.names, "shard")
        }
        with self.lake.publish("image_shards", KEY, inputs={}, code_version="1") as staging:
            (staging.path / SHARDS).mkdir()
            shutil.copy(own.shards / "00000.tar", tar_path(staging.path, 0))
            write_table(part_path(staging.path, 0), pa.table(columns))
            staging.counts.append(StageCounts("images", len(rows), kept, dict(rejects)))
        instance.add_dynamic_partitions(crawls.name or "", [KEY.crawl])
        self.load()

    def load(self) -> None:
        """Load the definitions, as each run of a deployment does."""
        self.job = build_defs(load_settings(self.own.config)).resolve_job_def("segment")

    def count(self) -> None:
        """Publish statistics and catalog of the stages that there are."""
        found = [asset for asset in PARTITIONS if self.lake.has(asset, KEY)]
        with self.lake.publish("segment_stats", KEY, inputs={}, code_version="1") as staging:
            segment_stats({name: self.lake.folder(name, KEY) for name in found}, staging.path)
        with self.lake.publish("catalog", inputs={}, code_version="1") as staging:
            build_catalog(self.lake.root, staging.path / "catalog.duckdb")

    def make(self, *assets: str) -> dg.ExecuteInProcessResult:
        return self.job.execute_in_process(
            instance=self.instance,
            partition_key=partition_key(KEY),
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            raise_on_error=False,
        )

    def metadata(self, asset: str, key: SegmentKey | None = KEY) -> dict[str, Any]:
        return dict(self.lake.manifest(asset, key).metadata)


def test_the_graph_carries_the_version_to_the_release(
    copy: Own, instance: dg.DagsterInstance
) -> None:
    graph = Graph(copy, instance)
    made = ("embeddings", "scored_pairs", "filtered_subset", "knn_index")
    assert graph.make(*made).success
    version = graph.metadata("embeddings")["model_version"]
    for asset in made[1:]:
        assert graph.metadata(asset)["model_version"] == version
    graph.count()
    release = copy.root / "release"
    copy.ran("export", "--without-indices", "--files", 1, "-o", release)
    manifest = json.loads((release / "manifest.json").read_text())
    assert (manifest["model"], manifest["model_version"]) == ("local-dir:model", version)
    readme = (release / "README.md").read_text()
    assert f"model `local-dir:model`, version `{version}`" in readme
    assert "openai" not in readme
    assert str(copy.root) not in readme
    by_lake = copy.ran("calibrate").out
    assert by_lake == copy.ran("calibrate", graph.lake.folder("scored_pairs", KEY)).out
    assert by_lake == copy.ran("calibrate", graph.lake.folder("embeddings", KEY)).out
    assert by_lake.splitlines()[-1] in copy.config.read_text()

    # The settings name other weights: what the old ones made keeps their name, or is refused.
    change_weights(copy.root / "model")
    graph.load()
    assert graph.make("knn_index").success
    assert graph.metadata("knn_index")["model_version"] == version
    assert graph.make("scored_pairs").success, "it has what the old model made of the prompts"
    assert graph.metadata("scored_pairs")["model_version"] == version
    assert not graph.make("embeddings", "filtered_subset").success, "the scores are old"
    other = graph.metadata("embeddings")["model_version"]
    assert other != version
    assert graph.metadata("filtered_subset")["model_version"] == version
    assert graph.make("scored_pairs", "filtered_subset", "knn_index").success
    assert graph.metadata("knn_index")["model_version"] == other
