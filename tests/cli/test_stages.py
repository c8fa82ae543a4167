"""The stages on plain files, without Dagster."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from laion_assets import schemas
from laion_assets.sample_crawl.build import Manifest
from tests.cli.conftest import Stages, ends_of, laion_assets, refused


def test_pairs_counts_where_each_link_of_the_file_ended(stages: Stages) -> None:
    links = [case for case in stages.cases if case.stage != "wat"]
    refused = Counter(case.reason for case in links if case.stage == "pairs")
    counts = stages.done["pairs"].counts
    found = {reason: n for (stage, reason), n in counts.items() if stage == "pairs"}
    assert found == {"in": len(links), "kept": len(links) - refused.total(), **refused}
    file = pq.ParquetFile(stages.root / "pairs.parquet")
    assert file.schema_arrow.equals(schemas.PAIRS)
    assert file.metadata.num_rows == found["kept"]
    assert stages.done["pairs"].out.splitlines()[-1] == str(stages.root / "pairs.parquet")


def test_pairs_takes_other_languages_when_asked(stages: Stages, tmp_path: Path) -> None:
    foreign = next(
        case.wat_file
        for case in Manifest.read(stages.crawl).cases
        if (case.stage, case.reason) == ("pairs", "language")
    )
    kept = {}
    for languages in ("en", "de,fr", "any"):
        done = laion_assets(
            *("pairs", "--config", stages.config, stages.crawl / foreign),
            *("--languages", languages, "-o", tmp_path / "pairs.parquet"),
        )
        assert done.code == 0, done.err
        found = pq.ParquetFile(tmp_path / "pairs.parquet").read(["language"])["language"]
        kept[languages] = Counter(found.to_pylist())
    assert set(kept["en"]) == {"en"}
    assert set(kept["de,fr"]) == {"de", "fr"}
    assert kept["any"] > kept["en"] + kept["de,fr"]


def test_download_writes_img2datasets_shards(stages: Stages) -> None:
    shards = stages.root / "shards"
    refused = {end: n for end, n in stages.expected.items() if end[0] == "images"}
    assert refused
    n_in = len(stages.taken)
    kept = n_in - sum(refused.values())
    counts = {("images", "in"): n_in, ("images", "kept"): kept, **refused}
    assert stages.done["download"].counts == counts
    names = {path.name for path in shards.iterdir() if not path.name.startswith(".")}
    assert {"00000.tar", "00000.parquet", "00000_stats.json"} <= names
    with tarfile.open(shards / "00000.tar") as tar:
        assert Counter(Path(name).suffix for name in tar.getnames())[".jpg"] == kept
    rows = pq.ParquetFile(shards / "00000.parquet").read(["url", "caption", "status"])
    assert rows["url"].to_pylist() == stages.taken["url"].to_pylist()
    assert rows["caption"].to_pylist() == stages.taken["text"].to_pylist()


def test_embed_writes_a_vector_for_each_image_and_text(stages: Stages) -> None:
    emb = stages.root / "emb"
    n = stages.done["download"].counts["images", "kept"]
    assert stages.done["embed"].counts == {("embeddings", "in"): n, ("embeddings", "kept"): n}
    for modality in ("img_emb", "text_emb"):
        vectors = np.load(emb / f"_{modality}" / f"{modality}_00000.npy")
        assert vectors.dtype == np.float16
        assert vectors.shape[0] == n
        assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
    assert pq.read_metadata(emb / "part-00000.parquet").num_rows == n


def test_filter_keeps_what_the_crawl_was_made_to_keep(stages: Stages) -> None:
    ends = ends_of(stages.cases)
    taken = stages.taken.select(["url", "text"]).to_pylist()
    kept = [(row["url"], row["text"]) for row in taken]
    kept = [pair for pair in kept if ends[pair] == ("subset", "kept")]
    part = stages.part
    assert part.schema.equals(schemas.with_scores(schemas.SUBSET, ["score_watermark"]))
    assert list(zip(part["URL"].to_pylist(), part["TEXT"].to_pylist(), strict=True)) == kept
    counts = {end: n for end, n in stages.expected.items() if end[0] == "subset"}
    assert set(counts) > {("subset", "kept")}
    assert stages.done["filter"].counts == {("subset", "in"): sum(counts.values()), **counts}


def test_filter_takes_a_threshold(stages: Stages, tmp_path: Path) -> None:
    low, high = sorted(stages.part["similarity"].to_pylist())[:: len(stages.part) - 1]
    between = (low + high) / 2
    done = laion_assets(
        *("filter", "--config", stages.config, stages.root / "emb", "-o", tmp_path),
        *("--threshold", between, "--scores", tmp_path / "scores"),
    )
    assert done.code == 0, done.err
    expected = [value for value in stages.part["similarity"].to_pylist() if value >= between]
    found = pq.ParquetFile(tmp_path / "part-00000.parquet").read()["similarity"].to_pylist()
    assert found == expected
    assert done.counts["subset", "kept"] == len(expected)
    scores = pq.ParquetFile(tmp_path / "scores" / "part-00000.parquet").read()
    assert scores.schema.equals(schemas.with_scores(schemas.SCORED, ["score_watermark"]))
    assert len(scores) == done.counts["subset", "in"]


def test_filter_takes_a_recipe_by_name(stages: Stages, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(stages.config.read_text() + '\n[subsets.wide]\nwhere = "width > height"\n')
    words = ("filter", "--config", config, stages.root / "emb", "-o", tmp_path / "out", "--recipe")
    done = laion_assets(*words, "wide")
    assert done.code == 0, done.err
    rows = stages.part.select(["URL", "WIDTH", "HEIGHT"]).to_pylist()
    wide = [row["URL"] for row in rows if row["WIDTH"] > row["HEIGHT"]]
    assert 0 < len(wide) < len(rows)
    found = pq.ParquetFile(tmp_path / "out" / "part-00000.parquet").read()["URL"].to_pylist()
    assert found == wide
    refused(laion_assets(*words, "nobody"), "no recipe 'nobody'.*laion5b-en")


def test_index_holds_every_sample_twice(stages: Stages) -> None:
    import faiss

    n = len(stages.part)
    summary = dict(line.split(maxsplit=1) for line in stages.done["index"].out.splitlines())
    assert int(summary["n"]) == n
    for modality in ("image", "text"):
        assert faiss.read_index(str(stages.root / "idx" / f"{modality}.index")).ntotal == n
    assert pq.read_metadata(stages.root / "idx" / "ids.parquet").num_rows == n


@pytest.mark.parametrize(
    ("command", "lacks"),
    [("embed", "shards"), ("filter", "embeddings"), ("download", "lists"), ("index", "samples")],
)
def test_a_folder_of_something_else_is_reported_in_one_line(
    command: str, lacks: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = laion_assets(command, tmp_path / "empty", "-o", tmp_path / "out")
    refused(done, f"there are no {lacks}.* in {re.escape(str(tmp_path))}/empty")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--removals", "--blocklists"])
def test_a_mistyped_folder_of_lists_is_no_empty_list(option: str, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.parquet", tmp_path / "out"
    pairs.touch()
    for wrong, said in ((tmp_path / "removal", "does not exist"), (pairs, "is not a folder")):
        done = laion_assets("download", pairs, option, wrong, "-o", out)
        refused(done, f"{re.escape(str(wrong))} {said}")
        assert not out.exists()
