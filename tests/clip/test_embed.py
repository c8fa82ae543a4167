from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.clip import embed
from laion_assets.clip import vectors as clip_vectors
from laion_assets.clip.embed import OtherEmbeddingsError, embed_files, embed_shards
from laion_assets.clip.model import ClipModel
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.shards import ShardError, find_shards, read_rows
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.download.tars import ImageBytes
from laion_assets.schemas import EMBEDDED, sample_id_of, uid_of
from laion_assets.tables import part_path
from tests.clip.conftest import EPS, MakeShard, jpeg, picture, row
from tests.conftest import heard


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def metadata(out: Path, number: int = 0) -> pa.Table:
    return pq.ParquetFile(part_path(out, number)).read()


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
def test_shards_without_samples_give_one_part_without_rows(
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
    assert metadata(out).schema.equals(EMBEDDED)
    assert len(metadata(out)) == 0
    before = digests(out)
    assert embed_shards(tmp_path / "shards", out, model, options).counts.n_in == 0
    assert digests(out) == before


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
    assert [path.name for path in out.glob("*.parquet")] == ["part-00000.parquet"]
    assert len(metadata(out)) == 3


def test_the_same_shards_give_the_same_bytes_whatever_the_threads(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(n) for n in range(13)])
    make_shard([row(n) for n in range(13, 20)], number=1)
    for name, threads in (("a", 1), ("b", 4)):
        changed = options.model_copy(update={"decode_threads": threads})
        embed_shards(tmp_path / "shards", tmp_path / name, model, changed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert list(digests(tmp_path / "a")) == [
        *(".made_of.json", "_image_digests.npy"),
        *("_img_emb/img_emb_00000.npy", "_text_emb/text_emb_00000.npy"),
        "part-00000.parquet",
    ]


def test_a_resumed_run_redoes_only_what_is_missing_and_counts_all(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    two_shards_with_a_broken_image_each(make_shard)
    shards, out, half = tmp_path / "shards", tmp_path / "out", tmp_path / "half"
    fresh = embed_shards(shards, out, model, options).counts
    assert fresh.rejects == {"undecodable": 2}

    killed_before(embed_shards, shards, half, model, options, name="_join")
    raw = half / ".raw"
    assert sorted(path.name for path in raw.glob("*.*")) == [
        *("00000.json", "00000.npy", "00001.json", "00001.npy"),
        *("part-00000.parquet", "part-00001.parquet"),
    ]
    # The state after a kill between the second shard's files and its note.
    (raw / "00001.json").unlink()
    image_path(raw, 1).write_bytes(b"stale")
    untouched = part_path(raw, 0).stat().st_mtime_ns
    killed_before(embed_shards, shards, half, model, options, name="_join")
    assert part_path(raw, 0).stat().st_mtime_ns == untouched
    lines: list[str] = []
    with heard(lines.append):
        assert embed_shards(shards, half, model, options).counts == fresh
    assert "12/12 samples were done by an earlier run" in lines[0]
    assert digests(half) == digests(out)
    assert embed_shards(shards, half, model, options).counts == fresh
    assert digests(half) == digests(out)


def two_shards_with_a_broken_image_each(make_shard: MakeShard) -> None:
    for number in range(2):
        first = number * 5
        rows = [row(n) for n in range(first, first + 5)] + [row(first + 20, image=b"broken")]
        make_shard(rows, number=number)


def killed_before(function: Callable[..., object], *args: object, name: str) -> None:
    """Call a function of the module, which ends when it is about to call the one of this name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            function(*args)


def killed_at(publication: int, function: Callable[..., object], *args: object) -> int:
    """Call a function in a process that kills itself before it publishes a file, the first, second
    or further one; return how the process ended."""
    process = os.fork()
    if process == 0:
        count, replace = itertools.count(), Path.replace

        def replace_or_die(path: Path, target: Path) -> Path:
            if next(count) == publication:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Path, "replace", replace_or_die)
                function(*args)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - this process is to end here, whatever happens
            traceback.print_exc()
        finally:
            os._exit(1)  # or it would go on as a second test runner
    how = os.waitpid(process, 0)[1]
    assert how in (0, signal.SIGKILL), "the function failed in the process"
    return how


def test_a_run_that_is_killed_while_it_joins_is_gone_on_with(
    make_shard: MakeShard,
    model: ClipModel,
    options: ClipOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clip_vectors, "ROWS_PER_PART", 4)
    two_shards_with_a_broken_image_each(make_shard)
    shards, out, raw = tmp_path / "shards", tmp_path / "out", tmp_path / "raw"
    fresh = embed_shards(shards, out, model, options).counts
    assert [len(metadata(out, number)) for number in range(3)] == [4, 4, 2]
    killed_before(embed_shards, shards, raw, model, options, name="_join")
    publications = 0
    while True:
        half = tmp_path / f"half-{publications}"
        shutil.copytree(raw, half)
        if killed_at(publications, embed_shards, shards, half, model, options) == 0:
            break
        assert embed_shards(shards, half, model, options).counts == fresh
        for torn in half.rglob(".*.*.*"):  # what the killed process was writing
            torn.unlink()
        assert digests(half) == digests(out)
        publications += 1
    assert publications == 3 * 3 + 2, "of each part the vectors and the rows, digests, the notes"

    # The state after a kill between the notes and the end of `.raw`.
    shutil.copytree(raw / ".raw", out / ".raw")
    before = part_path(out, 0).stat().st_mtime_ns
    assert embed_shards(shards, out, model, options).counts == fresh
    assert part_path(out, 0).stat().st_mtime_ns == before
    assert digests(half) == digests(out)


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


def test_embedding_reader_reads_the_vectors_in_place(
    make_shard: MakeShard,
    model: ClipModel,
    options: ClipOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from embedding_reader import EmbeddingReader

    monkeypatch.setattr(clip_vectors, "ROWS_PER_PART", 5)
    make_shard([row(n) for n in range(7)])
    make_shard([row(n) for n in range(7, 12)], number=1)
    out = tmp_path / "out"
    embed_shards(tmp_path / "shards", out, model, options)
    numbers = [0, 1, 2]
    for folder, place in (("_img_emb", image_path), ("_text_emb", text_path)):
        reader = EmbeddingReader(embeddings_folder=str(out / folder), file_format="npy")
        assert (reader.count, reader.dimension) == (12, model.dim)
        pieces = list(reader(batch_size=4, start=0, end=reader.count, show_progress=False))
        vectors = np.concatenate([np.load(place(out, number)) for number in numbers])
        np.testing.assert_array_equal(np.concatenate([found for found, _ in pieces]), vectors)
    keys = [key for number in numbers for key in metadata(out, number)["key"].to_pylist()]
    assert keys == [f"{number:09d}" for number in range(12)]


def test_files_given_one_by_one(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(1)])
    second = make_shard([row(2), row(3)], number=1)
    assert [tar.name for tar in find_shards(tmp_path / "shards")] == ["00000.tar", "00001.tar"]
    counts = embed_files([second], tmp_path / "out", model, options).counts
    assert counts.kept == 2
    assert metadata(tmp_path / "out")["shard"].to_pylist() == [1, 1]


def test_a_folder_is_gone_on_with_for_the_same_shards_and_model(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    tars = [make_shard([row(n)], number=n) for n in range(3)]
    out = tmp_path / "out"
    embed_files(tars[:1], out, model, options)
    killed_before(embed_files, tars[1:2], out, model, options, name="_join")
    before = part_path(out, 0).stat().st_mtime_ns
    made = embed_files(tars, out, model, options.model_copy(update={"decode_threads": 1}))
    assert (made.samples, made.counts.kept) == (1, 3)
    assert part_path(out, 0).stat().st_mtime_ns == before
    assert [metadata(out, number)["shard"].to_pylist() for number in (0, 1)] == [[0], [1, 2]]
    for number, place in itertools.product((0, 1), (image_path, text_path)):
        assert len(np.load(place(out, number))) == len(metadata(out, number))
    before = digests(out)
    made = embed_files(tars[:2], out, model, options)
    assert (made.samples, made.counts.kept) == (0, 2)
    assert digests(out) == before


def test_a_folder_of_other_embeddings_is_refused_untouched(
    make_shard: MakeShard,
    model: ClipModel,
    other_model: ClipModel,
    options: ClipOptions,
    tmp_path: Path,
) -> None:
    tar, second = make_shard([row(1)]), make_shard([row(2)], number=1)
    out = tmp_path / "out"
    embed_files([tar, second], out, model, options)
    before = digests(out)

    def refused(tars: list[Path], model: ClipModel) -> None:
        with pytest.raises(OtherEmbeddingsError, match=r"out holds .*: choose another folder"):
            embed_files(tars, out, model, options)
        assert digests(out) == before

    refused([tar], other_model)
    make_shard([row(3)])
    refused([tar], model)
    refused([second, make_shard([row(4)], number=2)], other_model)
    embed_files([second], out, model, options)

    killed_before(embed_files, [make_shard([row(5)], 3)], out, model, options, name="_join")
    before = digests(out)
    refused([make_shard([row(6)], number=3)], model)
    shutil.rmtree(out / ".raw")
    (out / ".made_of.json").unlink()
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
