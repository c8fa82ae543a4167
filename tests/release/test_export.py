from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from laion_assets import schemas
from laion_assets.cli import main
from laion_assets.clip.identity import ModelIdentity
from laion_assets.knn.codec import Codec, train_codec
from laion_assets.knn.options import IndexOptions
from laion_assets.lake import LocalLake
from laion_assets.lake.content import describe
from laion_assets.pairs.rules import PairRules
from laion_assets.release import export as exporting
from laion_assets.release import verify as verifying
from laion_assets.release.export import export
from laion_assets.release.files import write_faiss
from laion_assets.release.plan import ReleaseError
from laion_assets.release.verify import verify
from laion_assets.removals.active import read_lists
from laion_assets.url_lists.options import ReadOptions
from laion_assets.url_lists.url_list import pairs_of_list
from tests.conftest import heard
from tests.knn.conftest import MODEL
from tests.release.conftest import ABOUT, publish_catalog, unit
from tests.stats.conftest import SEGMENTS, SegmentFiles


def rows_of(release: Path) -> list[dict[str, object]]:
    parts = sorted((release / "metadata").glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def vectors_of(release: Path, kind: str) -> np.ndarray:
    parts = sorted((release / f"{kind}_emb").glob("*.npy"))
    return np.concatenate([np.load(part) for part in parts])


def contents(release: Path) -> dict[str, bytes]:
    paths = [path for path in release.rglob("*") if path.is_file()]
    return {str(path.relative_to(release)): path.read_bytes() for path in paths}


def test_a_release_has_the_subsets_rows_and_vectors_in_so_many_files(made: Path) -> None:
    release = made / "release"
    parts = sorted((release / "metadata").glob("*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [14, 14, 15, 14, 15]
    assert all(pq.read_schema(part).equals(schemas.SUBSET) for part in parts)
    subset = sorted((made / "lake" / "filtered_subset").glob("*/*"))
    assert rows_of(release) == [
        row
        for folder in subset
        for row in pq.ParquetFile(folder / "part-00000.parquet").read().to_pylist()
    ]
    for kind in ("img", "text"):
        wanted = [np.load(folder / f"_{kind}_emb/{kind}_emb_00000.npy") for folder in subset]
        assert (vectors_of(release, kind) == np.concatenate(wanted)).all()
        assert vectors_of(release, kind).dtype == np.float16


def test_a_release_loads_back_as_a_list(made: Path, tmp_path: Path) -> None:
    release = made / "release"
    rules = PairRules(languages=[], min_text_chars=1)
    pairs_of_list([str(release)], tmp_path / "pairs.parquet", rules, ReadOptions(), workers=1)
    pairs = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    columns = {"URL": "url", "TEXT": "text", "LICENSE": "license", "page_url": "page_url"}
    for row, pair in zip(rows_of(release), pairs, strict=True):
        assert row["SAMPLE_ID"] == schemas.sample_id_of(pair["uid"])
        assert {name: row[name] for name in columns} == {n: pair[c] for n, c in columns.items()}
        assert row == {name: pair.get(f"source_{name}", row[name]) for name in schemas.SUBSET.names}


def test_an_indexs_ids_are_rows_of_the_release(made: Path) -> None:
    for modality, kind in (("image", "img"), ("text", "text")):
        index = faiss.read_index(str(made / "release" / "indices" / f"{modality}.index"))
        _, found = index.search(vectors_of(made / "release", kind).astype(np.float32), 1)
        assert found[:, 0].tolist() == list(range(72))


def test_checksums_are_those_of_sha256sum(made: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=made / "release",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count(": OK") == 3 * 5 + 2 + 2


def test_the_readme_is_the_card_with_what_loaders_need(made: Path) -> None:
    _, front, card = (made / "release" / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["pretty_name"] == '"Quoted": a release'
    assert front["size_categories"] == ["n<1K"]
    assert front["language"] == ["de", "en"]
    assert front["configs"] == [{"config_name": "default", "data_files": "metadata/*.parquet"}]
    assert "# Dataset card\n\n72 image-text samples from 3 segments" in card
    assert "Write to https://example.org/contact" in card


def test_a_release_is_sound_and_made_once(made: Path, lake: LocalLake, tmp_path: Path) -> None:
    assert verify(made / "release") == []
    first = export(lake, tmp_path / "out", files=5)
    before = contents(tmp_path / "out")
    lines: list[str] = []
    with heard(lines.append):
        assert export(lake, tmp_path / "out", files=5) == first
    assert "is already complete" in lines[-1]
    assert contents(tmp_path / "out") == before
    with pytest.raises(ReleaseError, match="holds something else"):
        export(lake, tmp_path / "out", files=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "lake", "out"]


def test_more_files_than_samples_are_not_made(lake: LocalLake, tmp_path: Path) -> None:
    manifest = export(lake, tmp_path / "out", files=1000)
    assert sum(item["name"].startswith("metadata/") for item in manifest["files"]) == 72
    assert verify(tmp_path / "out") == []


def test_a_killed_export_goes_on_and_gives_the_same(
    lake: LocalLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(lake, tmp_path / "whole", files=3)
    written: list[str] = []
    real = exporting.write_vectors

    def some(*args: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(str(args[-1]))
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "write_vectors", some)
    with pytest.raises(KeyboardInterrupt):
        export(lake, tmp_path / "out", files=3)
    assert not (tmp_path / "out").exists()

    def rest(*args: object) -> None:
        written.append(str(args[-1]))
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "write_vectors", rest)
    export(lake, tmp_path / "out", files=3)
    assert len(written) == len(set(written)) == 6, "no file was written twice"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / ".out.export").exists()


def test_an_export_killed_when_it_was_published_is_mended(made: Path, lake: LocalLake) -> None:
    out = shutil.copytree(made / "release", lake.root.parent / "out")
    (out / exporting._STATE).write_text("{}")
    assert verify(out) == [f"{exporting._STATE} is not in manifest.json"]
    export(lake, out, files=5, about=ABOUT, index=IndexOptions())
    assert verify(out) == []


def test_the_readmes_languages_are_those_of_the_released_rows(
    lake: LocalLake, tmp_path: Path
) -> None:
    """German pairs exist before the filter only."""
    (lake.root / "removals").mkdir()
    rows = [
        row
        for part in lake.root.glob("filtered_subset/*/*/part-*")
        for row in pq.ParquetFile(part).read().to_pylist()
    ]
    german = [f"sample-id:{row['SAMPLE_ID']}" for row in rows if row["LANGUAGE"] == "de"]
    (lake.root / "removals" / "a.txt").write_text("\n".join(german))
    export(lake, tmp_path / "crawl=x [1]", files=1)
    _, front, _ = (tmp_path / "crawl=x [1]" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["language"] == ["en"]


def test_what_an_export_of_another_state_left_is_not_used(
    lake: LocalLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting._write_words
    monkeypatch.setattr(exporting, "_write_words", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(lake, tmp_path / "out", files=3)
    monkeypatch.setattr(exporting, "_write_words", real)
    (lake.root / "removals").mkdir()
    gone = pq.ParquetFile(next(lake.root.glob("filtered_subset/*/*/part-*"))).read().to_pylist()[5]
    (lake.root / "removals" / "a.txt").write_text(f"sample-id:{gone['SAMPLE_ID']}\n")
    export(lake, tmp_path / "out", files=3)
    assert gone["SAMPLE_ID"] not in {row["SAMPLE_ID"] for row in rows_of(tmp_path / "out")}
    assert verify(tmp_path / "out", read_lists(lake.root)) == []


def test_what_is_listed_is_left_out_before_its_segment_is_made_again(
    lake: LocalLake, tmp_path: Path
) -> None:
    part = sorted(lake.root.glob("filtered_subset/*/*/part-*.parquet"))[1]
    rows = pq.ParquetFile(part).read().to_pylist()
    vectors = np.load(part.parent / "_img_emb" / "img_emb_00000.npy")
    for name, lines in {
        "removals": [f"url:{rows[0]['URL']}", f"sample-id:{rows[3]['SAMPLE_ID']}"],
        "blocklists": [f"sha256:{rows[23]['sha256']}", f"sample-id:{rows[3]['SAMPLE_ID']}"],
    }.items():
        (lake.root / name).mkdir()
        (lake.root / name / "list.txt").write_text("\n".join(lines))
    manifest = export(lake, tmp_path / "out", files=4, index=IndexOptions())
    # The same bytes are in each of the three segments.
    assert manifest["left_out"] == {"removed": 2, "blocked": 3}
    assert manifest["samples"] == 72 - 5
    out = {row["URL"] for row in rows_of(tmp_path / "out")}
    assert not out & {rows[number]["URL"] for number in (0, 3, 23)}
    assert not any((vectors_of(tmp_path / "out", "img") == vectors[3]).all(axis=1))
    assert faiss.read_index(str(tmp_path / "out" / "indices" / "image.index")).ntotal == 67
    assert verify(tmp_path / "out", read_lists(lake.root)) == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert "67 image-text samples" in card
    assert "| Samples (removal lists applied) | 72 | 67 | 93 % |" in card
    assert "| Unique samples | 67 | 100 % |" in card
    released = rows_of(tmp_path / "out")
    licences = Counter(str(row["LICENSE"]) for row in released)
    assert all(f"| {licence} | {n} |" in card for licence, n in licences.items())
    tenths = np.quantile([row["similarity"] for row in released], np.arange(0.1, 0.95, 0.1))
    assert f"| similarity | {' | '.join(f'{value:.3f}' for value in tenths)} |" in card


def test_a_release_from_before_a_removal_is_noticed(made: Path, lake: LocalLake) -> None:
    row = rows_of(made / "release")[7]
    (lake.root / "removals").mkdir()
    (lake.root / "removals" / "list.txt").write_text(f"url:{row['URL']}\n")
    assert verify(made / "release", read_lists(lake.root)) == [
        "metadata/metadata_00000.parquet holds 1 samples that are removed by the active lists"
    ]


def test_a_partition_rebuilt_meanwhile_stops_the_export(
    lake: LocalLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting.write_metadata

    def while_written(*args: object) -> None:
        path = next(lake.root.glob("filtered_subset/*/*/_manifest.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_version": "new"}))
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "write_metadata", while_written)
    with pytest.raises(ReleaseError, match="was rebuilt"):
        export(lake, tmp_path / "out", files=1)
    assert not (tmp_path / "out").exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _forged(release: Path, name: str, change: Callable[[Path], None]) -> None:
    """Change a file and its checksums, so that only its content is wrong."""
    change(release / name)
    _sign(release)


def _sign(release: Path, *, of_data: bool = False) -> None:
    """Write checksums of the present files; with ``of_data`` into croissant.json, too."""
    manifest = json.loads((release / "manifest.json").read_text())
    if of_data:
        described = json.loads((release / "croissant.json").read_text())
        for item in described["distribution"]:
            if "sha256" in item:
                item["sha256"] = exporting.sha256_file(release / item["name"])
        (release / "croissant.json").write_text(json.dumps(described))
    sums = []
    for item in manifest["files"]:
        path = release / item["name"]
        item["bytes"] = path.stat().st_size
        item["sha256"] = exporting.sha256_file(path)
        sums.append(f"{item['sha256']}  {item['name']}\n")
    (release / "manifest.json").write_text(json.dumps(manifest))
    (release / "SHA256SUMS").write_text("".join(sums))


def _swap_rows(path: Path) -> None:
    np.save(path, np.load(path)[::-1])


def _nan(path: Path) -> None:
    vectors = np.load(path)
    vectors[3, 0] = np.nan
    np.save(path, vectors)


def _twice(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.take([0, *range(table.num_rows - 1)]), path)


def _other_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["md5"]), path)


def _other_texts(path: Path) -> None:
    table = pq.ParquetFile(path).read()
    number = table.schema.get_field_index("TEXT")
    texts = table["TEXT"].to_pylist()
    pq.write_table(table.set_column(number, table.schema.field(number), [texts[::-1]]), path)


def _other_ids(path: Path) -> None:
    index = faiss.read_index(str(path))
    other = faiss.IndexIDMap2(faiss.IndexFlatIP(index.d))
    other.add_with_ids(index.index.reconstruct_n(0, 72), np.arange(72) + 999)
    faiss.write_index(other, str(path))


def _other_vectors(path: Path) -> None:
    other = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
    other.add_with_ids(np.eye(16)[np.arange(72) % 16].astype(np.float32), np.arange(72))
    faiss.write_index(other, str(path))


def _other_checksum(path: Path) -> None:
    described = json.loads(path.read_text())
    described["distribution"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(described))


def _garbage(path: Path) -> None:
    path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("metadata/metadata_00000.parquet", _other_texts, "14 SAMPLE_IDs are not those of their"),
        ("metadata/metadata_00000.parquet", _garbage, "cannot be read"),
        ("img_emb/img_emb_00001.npy", _garbage, "cannot be read"),
        ("text_emb/text_emb_00002.npy", _swap_rows, "off their vectors' cosine"),
        ("img_emb/img_emb_00002.npy", _nan, "off unit length by nan"),
        ("metadata/metadata_00001.parquet", _twice, "1 SAMPLE_IDs occur twice"),
        ("metadata/metadata_00001.parquet", _other_columns, "has other columns"),
    ],
)
def test_what_does_not_belong_together_is_noticed(
    made: Path, tmp_path: Path, name: str, change: Callable[[Path], None], says: str
) -> None:
    release = shutil.copytree(made / "release", tmp_path / "release")
    _forged(release, name, change)
    assert any(says in problem for problem in verify(release))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_other_ids, "its ids are not the rows"),
        (_other_vectors, "vectors by themselves"),
        (_garbage, "cannot be read"),
    ],
)
def test_an_index_of_other_vectors_is_noticed(
    made: Path, tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    release = shutil.copytree(made / "release", tmp_path / "release")
    change(release / "indices" / "image.index")
    _sign(release, of_data=True)
    (problem,) = verify(release)
    assert problem.startswith("indices/image.index")
    assert says in problem


def test_croissant_is_held_to_the_manifest(made: Path, tmp_path: Path) -> None:
    release = shutil.copytree(made / "release", tmp_path / "release")
    _forged(release, "croissant.json", _other_checksum)
    (problem,) = verify(release)
    assert problem.startswith("croissant.json does not have the SHA-256 of ")


def test_a_release_has_its_files_and_no_others(made: Path, tmp_path: Path) -> None:
    release = shutil.copytree(made / "release", tmp_path / "release")
    (release / "img_emb" / "img_emb_00001.npy").rename(release / "img_emb" / "img_emb_00007.npy")
    manifest = json.loads((release / "manifest.json").read_text())
    for item in manifest["files"]:
        item["name"] = item["name"].replace("img_emb_00001", "img_emb_00007")
    (release / "manifest.json").write_text(json.dumps(manifest | {"indices": None}))
    _sign(release)
    assert verify(release) == [
        "manifest.json lists no img_emb/img_emb_00001.npy",
        "img_emb/img_emb_00007.npy does not belong in a release",
        "indices/image.index does not belong in a release",
        "indices/text.index does not belong in a release",
    ]


def _set_metadata(lake: LocalLake, asset: str, key: tuple[str, str], **metadata: object) -> None:
    """Change the metadata of a partition's manifest, as another materialization would."""
    path = SegmentFiles(lake.root, *key).folder(asset) / "_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["metadata"].update(metadata)
    path.write_text(json.dumps(manifest))


def test_vectors_of_several_models_are_not_released(lake: LocalLake, tmp_path: Path) -> None:
    _set_metadata(lake, "filtered_subset", SEGMENTS[1], model="another/model", model_version="2")
    with pytest.raises(
        ReleaseError, match=r"several models.*another/model \(version 2\), width 16"
    ):
        export(lake, tmp_path / "out", files=1)
    # The same weights under another name are the same model, but vectors have one width.
    _set_metadata(lake, "filtered_subset", SEGMENTS[1], model="tiny/moved", model_version="0123")
    for path in SegmentFiles(lake.root, *SEGMENTS[1]).folder("filtered_subset").glob("*_emb/*"):
        np.save(path, np.load(path)[:, :8])
    with pytest.raises(ReleaseError, match=r"several models.*tiny/moved.*, width 8"):
        export(lake, tmp_path / "out", files=1)


@pytest.mark.parametrize(("version", "repeat"), [("4567", 1), ("0123", 2)])
def test_a_codec_of_another_model_or_width_is_refused(
    lake: LocalLake, tmp_path: Path, version: str, repeat: int
) -> None:
    model = ModelIdentity(model="tiny/tiny", model_version=version)
    folder = shutil.copytree(
        SegmentFiles(lake.root, *SEGMENTS[0]).folder("filtered_subset"), tmp_path / "wide"
    )
    for path in folder.glob("*_emb/*"):
        np.save(path, np.tile(np.load(path), repeat))
    with lake.publish("index_codec", inputs={}, code_version="1") as staging:
        options = IndexOptions(kind="ivf_sq8", cells=1)
        train_codec([folder] * 12, staging.path, options, model=model)
    with pytest.raises(ReleaseError, match=rf"codec is of .*{version}\), width {16 * repeat},"):
        export(lake, tmp_path / "out", files=1, index=IndexOptions())


def test_statistics_of_other_partitions_are_not_released(lake: LocalLake, tmp_path: Path) -> None:
    for segment in SEGMENTS:
        _set_metadata(lake, "filtered_subset", segment, recipe="mine v2", threshold=0.25)
    with pytest.raises(ReleaseError, match="materialize segment_stats and catalog again"):
        export(lake, tmp_path / "out", files=1)
    for segment in SEGMENTS:
        SegmentFiles(lake.root, *segment).stats()
    publish_catalog(lake)
    manifest = export(lake, tmp_path / "out", files=1)
    assert (manifest["recipe"], manifest["threshold"]) == ("mine v2", 0.25)


@pytest.mark.parametrize(
    ("options", "key", "public"),
    [
        (
            {"model": "local-dir:/home/me/secret/clip", "pretrained": "openai"},
            "local-dir:/home/me/secret/clip",
            "clip",
        ),
        (
            {"model": "ViT-B-32", "pretrained": "/home/me/secret/a.pt"},
            "ViT-B-32//home/me/secret/a.pt",
            "ViT-B-32/a.pt",
        ),
    ],
)
def test_where_the_models_weights_lie_is_not_published(
    lake: LocalLake, tmp_path: Path, options: dict[str, str], key: str, public: str
) -> None:
    for segment in SEGMENTS:
        _set_metadata(
            lake, "embeddings", segment, model=key, options=options, model_version="abcd1234"
        )
        _set_metadata(
            lake,
            "filtered_subset",
            segment,
            model=key,
            options={"thresholds": {key: 0.3}},
            model_version="abcd1234",
        )
        SegmentFiles(lake.root, *segment).stats()
    publish_catalog(lake)
    manifest = export(lake, tmp_path / "out", files=1)
    assert manifest["model"].endswith(public)
    assert manifest["model_version"] == "abcd1234"
    for path in (tmp_path / "out").glob("*.*"):
        assert "secret" not in path.read_text(), path.name
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "model_version `abcd1234`" in readme
    assert "openai" not in readme


def test_damaged_missing_and_foreign_files_are_named(made: Path, tmp_path: Path) -> None:
    release = shutil.copytree(made / "release", tmp_path / "release")
    _cut(release / "metadata" / "metadata_00001.parquet")
    (release / "text_emb" / "text_emb_00000.npy").unlink()
    (release / "new.txt").write_text("mine")
    assert verify(release) == [
        f"new.txt is not in {exporting.MANIFEST}",
        "metadata/metadata_00001.parquet is not the file that was published",
        "text_emb/text_emb_00000.npy is missing",
    ]


def test_an_index_of_a_codec_is_a_faiss_file_that_finds(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(2_000, 32))).astype(np.float16)
    subset, release = tmp_path / "subset", tmp_path / "release"
    for kind in ("img", "text"):
        for folder in (subset / f"_{kind}_emb", release / f"{kind}_emb"):
            folder.mkdir(parents=True)
            np.save(folder / f"{kind}_emb_00000.npy", vectors)
    pq.write_table(
        pq.read_table(pq_of(vectors, tmp_path)).cast(schemas.SUBSET), subset / "part-00000.parquet"
    )
    (tmp_path / "codec").mkdir()
    options = IndexOptions(kind="ivf_sq8", cells=8)
    train_codec([subset], tmp_path / "codec", options, model=MODEL)
    (release / "indices").mkdir()
    write_faiss(release, 1, "image", Codec.open(tmp_path / "codec"), "auto", 8)
    index = faiss.read_index(str(release / "indices" / "image.index"))
    assert faiss.extract_index_ivf(index).nprobe == 8
    _, found = index.search(vectors[:100].astype(np.float32), 1)
    assert (found[:, 0] == np.arange(100)).all()
    manifest = {
        "samples": 2_000,
        "dimension": 32,
        "indices": {},
        "files": [{"name": "metadata/metadata_00000.parquet"}],
    }
    assert list(verifying._index(release, manifest, "image")) == []
    np.save(release / "img_emb" / "img_emb_00000.npy", vectors[::-1])
    (problem,) = verifying._index(release, manifest, "image")
    assert "vectors by themselves" in problem


def pq_of(vectors: np.ndarray, folder: Path) -> Path:
    table = schemas.SUBSET.empty_table().to_pydict()
    rows = [{**dict.fromkeys(table), "SAMPLE_ID": number} for number in range(len(vectors))]
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows, schema=schemas.SUBSET), folder / "rows.parquet")
    return folder / "rows.parquet"


def test_the_command_exports_verifies_and_fails_in_one_line(
    lake: LocalLake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(f'[lake]\nroot = "{lake.root}"\n[download]\ncontact = "https://a.test/me"\n')
    words = ["export", "--config", str(config), "-o", str(tmp_path / "out")]
    licence = ["--license", "cc0-1.0"]
    assert main([*words, *licence, "--files", "2", "--without-indices"]) == 0
    printed = capsys.readouterr()
    assert "samples        72" in printed.out
    assert "no --url" in printed.err
    assert "\nlicense: cc0-1.0\n" in (tmp_path / "out" / "README.md").read_text()
    assert "publicdomain/zero" in (tmp_path / "out" / "croissant.json").read_text()
    assert "Write to https://a.test/me" in (tmp_path / "out" / "README.md").read_text()
    assert main([*words, "--verify"]) == 0
    assert "is a sound release" in capsys.readouterr().out
    files = SegmentFiles(lake.root, "CC-MAIN-2000-05", "00")
    (lake.root / "blocklists").mkdir()
    (lake.root / "blocklists" / "a.txt").write_text(f"url:{files.subset[4]['url']}\n")
    assert main([*words, "--verify"]) == 1
    printed = capsys.readouterr()
    assert "1 samples that are blocked by the active lists" in printed.out
    assert "is not a sound release" in printed.err
    assert main([*words, "--files", "2"]) == 1
    assert "holds something else" in capsys.readouterr().err


def test_scores_of_the_same_heads_everywhere_are_released(
    lake: LocalLake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (crawl, segment) in enumerate(SEGMENTS):
        files = SegmentFiles(lake.root, crawl, segment)
        part = files.folder("filtered_subset") / "part-00000.parquet"
        table = pq.ParquetFile(part).read()
        for head in ("same", "other"):
            scores = pa.array([number / 4] * len(table), pa.float32())
            table = table.append_column(f"score_{head}", scores)
        pq.write_table(table, part)
        manifest = files.folder("filtered_subset") / "_manifest.json"
        value = json.loads(manifest.read_text())
        value["metadata"]["heads"] = {"same": "1", "other": str(number)}
        value["files"] = describe(files.folder("filtered_subset"), {})
        manifest.write_text(json.dumps(value))
        files.stats()
    publish_catalog(lake)
    released = export(lake, tmp_path / "release", files=2, about=ABOUT)
    assert "no scores of other" in caplog.text
    assert (released["heads"], released["columns"][-1]) == ({"same": "1"}, "score_same")
    rows = rows_of(tmp_path / "release")
    assert Counter(row["score_same"] for row in rows) == {0.0: 24, 0.25: 24, 0.5: 24}
    assert verify(tmp_path / "release") == []
    readme = (tmp_path / "release" / "README.md").read_text()
    assert "`score_same`" in readme
