from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.clip.embed import (
    OtherEmbeddingsError,
    embed_files,
    embed_shards,
    image_path,
    metadata_path,
    text_path,
)
from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.shards import ShardError, find_shards, read_rows
from laion_assets.download.tars import ImageBytes
from laion_assets.schemas import EMBEDDED, sample_id_of, uid_of
from tests.clip.conftest import EPS, MakeShard, jpeg, picture, row
from tests.conftest import heard


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def metadata(out: Path, number: int = 0) -> pa.Table:
    return pq.ParquetFile(metadata_path(out, number)).read()


def test_rows_of_vectors_and_metadata_are_the_same_samples(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(n) for n in range(10)])
    out = tmp_path / "out"
    counts = embed_shards(tmp_path / "shards", out, model, options).counts
    assert (counts.n_in, counts.kept, counts.rejects) == (10, 10, {})

    images, texts = np.load(image_path(out, 0)), np.load(text_path(out, 0))
    assert images.dtype == texts.dtype == np.float16
    assert images.shape == texts.shape == (10, model.dim)
    np.testing.assert_allclose(np.linalg.norm(images.astype(np.float32), axis=1), 1, atol=1e-3)

    rows = metadata(out)
    assert rows.schema.equals(EMBEDDED)
    for at, one in enumerate(rows.to_pylist()):
        number = int(one["key"])
        # The tar holds JPEG bytes, so what they decode to is what must have been embedded.
        stored = Image.open(io.BytesIO(jpeg(picture(number))))
        np.testing.assert_allclose(model.encode_images([stored])[0], images[at], atol=2e-3)
        np.testing.assert_allclose(model.encode_texts([one["text"]])[0], texts[at], atol=2e-3)
        assert one["text"] == f"a picture of thing {number}"


def test_metadata_carries_the_samples_identity_and_original_size(make_shard: MakeShard) -> None:
    tar = make_shard([row(7, license="CC BY")], number=3)
    (one,) = read_rows(tar).to_pylist()
    assert one["SAMPLE_ID"] == sample_id_of(bytes([7]) * 16)
    assert (one["width"], one["height"]) == (407, 307)
    assert (one["shard"], one["license"], one["language"]) == (3, "CC BY", "en")
    assert one["wat_file"] == "a.warc.wat.gz"


def test_a_uid_may_be_hexadecimal(make_shard: MakeShard) -> None:
    uid = uid_of("https://a.test/1.jpg", "caption")
    tar = make_shard([row(1, uid=uid.hex())])
    assert read_rows(tar)["SAMPLE_ID"].to_pylist() == [sample_id_of(uid)]


def test_a_plain_img2dataset_shard_has_its_identity_from_url_and_text(
    make_shard: MakeShard,
) -> None:
    ours = {"uid", "language", "language_score", "license", "page_url", "md5"}
    ours |= {"crawl", "segment", "wat_file"}
    tar = make_shard([{k: v for k, v in row(n).items() if k not in ours} for n in range(2)])
    rows = read_rows(tar)
    assert rows.schema.equals(EMBEDDED)
    first = rows.to_pylist()[0]
    assert first["SAMPLE_ID"] == sample_id_of(uid_of(first["url"], first["text"]))
    assert (first["license"], first["language"]) == ("?", None)


def test_failed_downloads_are_no_input(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(0), row(1, status="failed_to_download"), row(2)])
    counts = embed_shards(tmp_path / "shards", tmp_path / "out", model, options).counts
    assert (counts.n_in, counts.kept) == (2, 2)
    assert metadata(tmp_path / "out")["key"].to_pylist() == ["000000000", "000000002"]


def test_damaged_images_are_counted_and_the_rest_stays_aligned(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    bad = {1: b"not a picture", 4: jpeg(picture(4))[:200], 6: None, 8: b""}
    make_shard([row(n, **({"image": bad[n]} if n in bad else {})) for n in range(11)])
    out = tmp_path / "out"
    counts = embed_shards(tmp_path / "shards", out, model, options).counts
    assert (counts.n_in, counts.kept, counts.rejects) == (11, 7, {"undecodable": 4})
    assert counts.examples["undecodable"] == [f"https://a.test/{n}.jpg" for n in bad]

    sound = [n for n in range(11) if n not in bad]
    assert [int(key) for key in metadata(out)["key"].to_pylist()] == sound
    texts = model.encode_texts([f"a picture of thing {n}" for n in sound])
    np.testing.assert_allclose(np.load(text_path(out, 0)), texts, atol=2e-3)


def test_images_are_jpeg_png_or_webp_whatever_their_suffix(
    make_shard: MakeShard,
    model: ClipModel,
    options: ClipOptions,
    tmp_path: Path,
    ghostscript_started: Callable[[], bool],
) -> None:
    images = [EPS]
    for kind in ("BMP", "GIF", "JPEG", "PNG", "WEBP"):
        stream = io.BytesIO()
        picture(1).save(stream, kind)
        images.append(stream.getvalue())
    make_shard([row(n, image=image) for n, image in enumerate(images)])
    counts = embed_shards(tmp_path / "shards", tmp_path / "out", model, options).counts
    assert counts.rejects == {"undecodable": 3}
    assert [int(key) for key in metadata(tmp_path / "out")["key"].to_pylist()] == [3, 4, 5]
    assert not ghostscript_started()


def test_a_cut_tar_keeps_what_came_before(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    tar = make_shard([row(n) for n in range(6)])
    whole = tar.read_bytes()
    with ImageBytes(tar) as images:
        third = images.read("000000003")
    tar.write_bytes(whole[: whole.index(third) + 100])
    counts = embed_shards(tmp_path / "shards", tmp_path / "out", model, options).counts
    assert (counts.kept, counts.rejects) == (3, {"undecodable": 3})


def test_a_damaged_member_costs_that_member(make_shard: MakeShard) -> None:
    tar = make_shard([row(n) for n in range(3)])
    content = bytearray(tar.read_bytes())
    header = content.index(b"000000001.jpg")
    content[header : header + 512] = b"\xff" * 512
    tar.write_bytes(content)
    with ImageBytes(tar) as images:
        assert images.read("000000000") == jpeg(picture(0))
        assert images.read("000000001") == b""
        assert images.read("000000002") == jpeg(picture(2))


def test_rows_join_by_key_and_not_by_place_in_the_tar(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    tar = make_shard([row(n) for n in range(5)])
    table = pq.read_table(tar.with_suffix(".parquet"))
    pq.write_table(table.take([4, 2, 0, 3, 1]), tar.with_suffix(".parquet"))
    out = tmp_path / "out"
    embed_shards(tmp_path / "shards", out, model, options)
    assert [int(key) for key in metadata(out)["key"].to_pylist()] == [4, 2, 0, 3, 1]
    pictures = model.encode_images([picture(n) for n in (4, 2, 0, 3, 1)])
    cosines = (pictures * np.load(image_path(out, 0)).astype(np.float32)).sum(axis=1)
    assert cosines.min() > 0.99


@pytest.mark.parametrize("rows", [[], [row(0, status="failed_to_download", image=None)]])
def test_a_shard_without_samples_gives_vectors_without_rows_and_no_metadata(
    rows: list[dict[str, object]],
    make_shard: MakeShard,
    model: ClipModel,
    options: ClipOptions,
    tmp_path: Path,
) -> None:
    like = pa.Table.from_pylist([{k: v for k, v in row(0).items() if k != "image"}]).schema
    make_shard(rows, schema=like)
    out = tmp_path / "out"
    counts = embed_shards(tmp_path / "shards", out, model, options).counts
    assert (counts.n_in, counts.kept) == (0, 0)
    assert np.load(image_path(out, 0)).shape == (0, model.dim)
    assert np.load(text_path(out, 0)).dtype == np.float16
    assert not metadata_path(out, 0).exists()
    made = text_path(out, 0).stat().st_mtime_ns
    assert embed_shards(tmp_path / "shards", out, model, options).counts.n_in == 0
    assert text_path(out, 0).stat().st_mtime_ns == made


def test_a_shard_that_had_no_samples_and_now_has_some_is_embedded(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    like = pa.Table.from_pylist([{k: v for k, v in row(0).items() if k != "image"}]).schema
    out = tmp_path / "out"
    tar = make_shard([], schema=like)
    assert embed_files([tar], out, model, options).counts.n_in == 0
    make_shard([row(n) for n in range(3)])
    counts = embed_files([tar], out, model, options).counts
    assert (counts.n_in, counts.kept) == (3, 3)


def test_the_same_shards_give_the_same_bytes_whatever_the_threads(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(n) for n in range(13)])
    make_shard([row(n) for n in range(13, 20)], number=1)
    for name, threads in (("a", 1), ("b", 4)):
        changed = options.model_copy(update={"decode_threads": threads})
        embed_shards(tmp_path / "shards", tmp_path / name, model, changed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 6


def test_a_resumed_run_redoes_only_what_is_missing_and_counts_all(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    for number in range(2):
        first = number * 5
        rows = [row(n) for n in range(first, first + 5)] + [row(first + 20, image=b"broken")]
        make_shard(rows, number=number)
    out, shards = tmp_path / "out", tmp_path / "shards"
    fresh = embed_shards(shards, out, model, options).counts
    before = digests(out)

    # The state after a kill between the vectors and the metadata of the second shard.
    metadata_path(out, 1).unlink()
    image_path(out, 1).write_bytes(b"stale")
    untouched = metadata_path(out, 0).stat().st_mtime_ns
    lines: list[str] = []
    with heard(lines.append):
        resumed = embed_shards(shards, out, model, options).counts
    assert resumed == fresh
    assert resumed.rejects == {"undecodable": 2}
    assert digests(out) == before
    assert metadata_path(out, 0).stat().st_mtime_ns == untouched
    assert "6/12 samples were done by an earlier run" in lines[0]


def test_a_call_reports_what_it_did(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(n) for n in range(6)] + [row(6, image=b"broken")])
    lines: list[str] = []
    shards, out = tmp_path / "shards", tmp_path / "out"
    with heard(lines.append):
        first = embed_shards(shards, out, model, options)
    assert re.fullmatch(r"embeddings: 7/7 samples in [\d.]+ s, [\d.]+/s; 00000\.tar", lines[-1]), (
        lines
    )
    assert (first.samples, first.device, first.precision) == (7, "cpu", "fp32")
    assert 0 < first.waited_seconds < first.seconds
    assert first.metadata()["samples_per_second"] == round(7 / first.seconds, 1)
    make_shard([row(n) for n in range(10, 13)], number=1)
    second = embed_shards(shards, out, model, options)
    assert (second.samples, second.counts.n_in) == (3, 10)


def test_embedding_reader_reads_the_folder(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    from embedding_reader import EmbeddingReader

    make_shard([row(n) for n in range(5)])
    make_shard([row(n) for n in range(5, 12)], number=1)
    out = tmp_path / "out"
    embed_shards(tmp_path / "shards", out, model, options)
    reader = EmbeddingReader(
        embeddings_folder=str(out / "_img_emb"),
        metadata_folder=str(out / "metadata"),
        meta_columns=["key", "text"],
        file_format="parquet_npy",
    )
    assert (reader.count, reader.dimension) == (12, model.dim)
    pieces = list(reader(batch_size=4, start=0, end=reader.count, show_progress=False))
    images = np.concatenate([np.load(image_path(out, number)) for number in (0, 1)])
    np.testing.assert_array_equal(np.concatenate([vectors for vectors, _ in pieces]), images)
    keys = [key for _, rows in pieces for key in rows["key"]]
    assert keys == [f"{number:09d}" for number in range(12)]


def test_files_given_one_by_one(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(1)])
    second = make_shard([row(2), row(3)], number=1)
    assert [tar.name for tar in find_shards(tmp_path / "shards")] == ["00000.tar", "00001.tar"]
    counts = embed_files([second], tmp_path / "out", model, options).counts
    assert counts.kept == 2
    assert [path.name for path in (tmp_path / "out/metadata").iterdir()] == [
        "metadata_00001.parquet"
    ]


def test_a_folder_is_gone_on_with_for_the_same_shards_and_model(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    tars = [make_shard([row(n)], number=n) for n in range(3)]
    out, whole = tmp_path / "out", tmp_path / "whole"
    embed_files(tars[:1], out, model, options)
    embed_files(tars[1:2], out, model, options)
    metadata_path(out, 1).unlink()  # the state after a kill
    counts = embed_files(tars, out, model, options.model_copy(update={"decode_threads": 1})).counts
    assert counts.kept == 3
    embed_files(tars, whole, model, options)
    assert digests(out) == digests(whole)
    assert [path.name for path in sorted((out / ".made_of").iterdir())] == [
        f"0000{n}.json" for n in range(3)
    ]
    embed_shards(tmp_path / "shards", tmp_path / "lake", model, options)
    assert sorted(path.name for path in (tmp_path / "lake").iterdir()) == [
        *("_img_emb", "_text_emb", "metadata")
    ]


def test_a_folder_of_other_embeddings_is_refused_untouched(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    tar, second = make_shard([row(1)]), make_shard([row(2)], number=1)
    out = tmp_path / "out"
    embed_files([tar, second], out, model, options)
    before = digests(out)

    def refused(tars: list[Path], model: ClipModel) -> None:
        with pytest.raises(OtherEmbeddingsError, match=r"out holds .*: choose another folder"):
            embed_files(tars, out, model, options)
        assert digests(out) == before

    other = load_clip(options.model_copy(update={"precision": "bf16"}))
    refused([tar], other)
    make_shard([row(3)])
    refused([tar], model)
    refused([second, make_shard([row(4)], number=2)], other)
    embed_files([second], out, model, options)

    (out / ".made_of" / "00001.json").unlink()
    before = digests(out)
    refused([second], model)


def test_two_tars_of_one_number_are_refused(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    tar = make_shard([row(1)])
    other = tmp_path / "others"
    shutil.copytree(tar.parent, other)
    with pytest.raises(ShardError, match="have the same number"):
        embed_files([tar, other / tar.name], tmp_path / "out", model, options)
    assert not (tmp_path / "out").exists()


def test_a_shard_without_its_parquet_or_number_is_named(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    tar = make_shard([row(1)])
    tar.with_suffix(".parquet").unlink()
    with pytest.raises(ShardError, match=r"00000\.parquet"):
        embed_files([tar], tmp_path / "out", model, options)
    with pytest.raises(ShardError, match="name must be a number"):
        embed_files([tar.with_name("mine.tar")], tmp_path / "out", model, options)
