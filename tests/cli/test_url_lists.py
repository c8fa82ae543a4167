"""Lists of image URLs, as people have them, on the command line without any option."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laion_assets.schemas import PAIRS
from tests.cli.conftest import Stages, laion_assets, refused

DATA = Path(__file__).parents[1] / "url_lists" / "data"
LISTS = {"datacomp.parquet": 7, "cc12m.tsv": 0, "urls.txt": 0}
"""List -> how many columns it has beside URL and caption."""
OTHERS = {
    **dict.fromkeys(("laion400m.parquet", "relaion.parquet", "coyo.parquet"), 24),
    **dict.fromkeys(("list.csv", "list.jsonl", "spark"), 24),
    **{"dirty.parquet": 8, "laion-columns/laion.parquet": 3, "laion-columns/folder": 4},
    "laion-columns/caption-col.parquet": 3,
}
"""Each other list -> its rows."""


@pytest.mark.parametrize("name", LISTS)
def test_download_takes_a_list_as_it_is(stages: Stages, name: str, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    done = laion_assets("download", "--config", stages.config, DATA / name, "-o", shards)
    assert done.code == 0, done.err
    assert done.counts["pairs", "in"] == done.counts["pairs", "kept"] == 24
    assert done.counts["images", "in"] == 24
    rows = pq.ParquetFile(shards / "00000.parquet").read()
    assert (
        len([column for column in rows.column_names if column.startswith("source_")])
        == (LISTS[name])
    )
    captions = rows["caption"].to_pylist()
    with tarfile.open(shards / "00000.tar") as tar:
        kinds = Counter(Path(member).suffix for member in tar.getnames())
    assert kinds[".jpg"] == done.counts["images", "kept"] > 15
    if name == "urls.txt":
        assert set(captions) == {None}
        assert ".txt" not in kinds
        assert "without captions" in done.err
    else:
        assert all(captions)
        assert kinds[".txt"] == kinds[".jpg"]
        assert "without captions" not in done.err


def test_download_takes_all_other_lists_at_once(stages: Stages, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    files = [DATA / name for name in OTHERS]
    done = laion_assets("download", "--config", stages.config, *files, "-o", shards)
    assert done.code == 0, done.err
    assert done.counts["pairs", "in"] == sum(OTHERS.values())
    # Most have the same rows.
    assert done.counts["pairs", "kept"] == done.counts["images", "in"] >= 24
    rows = pq.ParquetFile(shards / "00000.parquet").read(["caption", "source_similarity"])
    assert rows["caption"].null_count == 0


def test_a_second_download_makes_neither_pairs_nor_shards_again(
    stages: Stages, tmp_path: Path
) -> None:
    words = ("download", "--config", stages.config, DATA / "list.csv", "-o", tmp_path / "shards")
    first = laion_assets(*words)
    assert first.code == 0, first.err
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = laion_assets(*words)
    assert "those of an earlier call" in again.err
    assert again.counts["images", "kept"] == first.counts["images", "kept"]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    other = laion_assets(*words, "--languages", "de")
    assert other.counts["pairs", "language"] == 24


def test_from_a_list_to_search_in_two_commands(stages: Stages, tmp_path: Path) -> None:
    config = ("--config", stages.config)
    done = laion_assets("build", *config, DATA / "list.jsonl", "-o", tmp_path / "mine")
    assert done.code == 0, done.err
    assert done.counts["subset", "kept"] > 10
    subset = tmp_path / "mine" / "subset"
    words = (tmp_path / "mine" / "index", "a hot pepper", "-k", "1", "--subset", subset)
    found = laion_assets("search", *config, *words)
    assert "pepper" in found.out, found.err


def test_a_list_of_urls_alone_is_searched_and_not_filtered_by_similarity(
    stages: Stages, tmp_path: Path
) -> None:
    config = ("--config", stages.config)
    done = laion_assets("build", *config, DATA / "urls.txt", "-o", tmp_path / "mine")
    assert done.code == 0, done.err
    assert "no captions: nothing is filtered by similarity" in done.err
    assert ("subset", "below_threshold") not in done.counts
    emb, subset, index = (tmp_path / "mine" / name for name in ("emb", "subset", "index"))
    for folder in (emb, subset):
        assert [path.name for path in folder.glob("_*")] == ["_img_emb"] or folder == emb
        assert not (folder / "_text_emb").exists()
    assert not list(index.glob("text*"))
    rows = pq.ParquetFile(subset / "part-00000.parquet").read(["TEXT", "similarity"])
    assert rows["TEXT"].null_count == rows["similarity"].null_count == len(rows) > 15
    asked = ("search", *config, index, "an elephant", "-k", "1", "--subset", subset)
    found = laion_assets(*asked)
    assert re.search(r"^ 1  0\.\d+  \n +http://", found.out), found.err
    refused(laion_assets(*asked, "--over", "text"), ".* no texts to search over")
    filtered = ("filter", *config, emb, "-o", tmp_path / "no", "--threshold", "0.3")
    refused(laion_assets(*filtered), ".* have no captions, so there is no similarity")
    refused(laion_assets("calibrate", *config, emb), ".* have no captions")
    # Shards with captions do not become texts among those without.
    words = ("embed", *config, stages.root / "shards", "-o", emb)
    refused(laion_assets(*words), ".* or only one of them has captions")


def test_captions_are_left_out_where_that_is_asked_for(stages: Stages, tmp_path: Path) -> None:
    out = tmp_path / "pairs.parquet"
    words = ("pairs", "--config", stages.config, "--from-list", DATA / "list.csv", "-o", out)
    done = laion_assets(*words, "--no-captions")
    assert done.code == 0, done.err
    rows = pq.ParquetFile(out).read()
    assert rows["text"].null_count == len(rows) == 24
    assert rows["source_caption"].null_count == 0
    with pytest.raises(SystemExit) as ended:
        laion_assets(*words, "--no-captions", "--text-column", "caption")
    assert ended.value.code == 2


def test_pairs_from_a_list_has_reasons_for_dirty_rows(stages: Stages, tmp_path: Path) -> None:
    out = tmp_path / "pairs.parquet"
    words = ("pairs", "--config", stages.config, "--from-list", DATA / "dirty.parquet", "-o", out)
    done = laion_assets(*words, "--languages", "any")
    assert done.code == 0, done.err
    assert {reason: n for (_, reason), n in done.counts.items()} == {
        "in": 8,
        "kept": 4,
        "no_alt": 3,
        "alt_too_long": 1,
    }
    table = pq.ParquetFile(out).read()
    assert table.schema.names == PAIRS.names
    assert table["text"].to_pylist() == [
        "Fish & chips on a plate",
        "a b control character",
        "fine caption of an apple",
        "bold apple",
    ]


def test_several_files_and_named_columns(stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("where,what,n\nhttps://a.example/1.jpg,a red apple tree,007\n")
    (tmp_path / "b.csv").write_text("where,what,m\nhttps://a.example/2.jpg,a blue plum tree,x\n")
    out = tmp_path / "pairs.parquet"
    words = ("pairs", "--config", stages.config, "-o", out, "--from-list", tmp_path / "*.csv")
    refused(laion_assets(*words), "no column of .*a.csv has a known name.*where, what, n")
    done = laion_assets(*words, "--url-column", "where", "--text-column", "what")
    assert done.code == 0, done.err
    rows = pq.ParquetFile(out).read().select(["text", "wat_file", "source_n", "source_m"])
    assert rows.to_pylist() == [
        {"text": "a red apple tree", "wat_file": "a.csv", "source_n": "007", "source_m": None},
        {"text": "a blue plum tree", "wat_file": "b.csv", "source_n": None, "source_m": "x"},
    ]
    refused(laion_assets(*words, "--url-column", "what else"), ".*has no column what else")
