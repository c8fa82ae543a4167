"""Shards are as img2dataset's users read them, reproducible, and whole whatever happens."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from laion_assets import schemas
from laion_assets.clip.shards import read_rows
from laion_assets.download.preview import MAX_BYTES, contact_sheet
from laion_assets.download.tars import ImageBytes
from laion_assets.removals.entries import parse
from tests.conftest import heard
from tests.download.conftest import (
    SIZE,
    Listener,
    N,
    answer,
    content,
    options_for,
    redirect,
    run,
    urls,
    write_pairs,
)
from tests.processes import PATIENCE_S, until

pytestmark = pytest.mark.filterwarnings("ignore:value is deprecated:DeprecationWarning")


def test_shards_are_as_img2dataset_writes_them(
    images: Listener, bodies: list[bytes], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, urls())
    out = tmp_path / "shards"
    counts = run(pairs, out, options_for(images))
    assert counts.adds_up
    assert (counts.n_in, counts.kept) == (N, N - 3)
    assert counts.rejects == {"http_4xx": 1, "undecodable": 1, "too_small": 1}
    assert counts.examples["http_4xx"] == ["http://h1.test/4.jpg"]

    names = [f"{shard:05d}" for shard in range(5)]
    suffixes = (".parquet", ".tar", "_stats.json")
    assert sorted(p.name for p in out.iterdir()) == [
        *(n + s for n in names for s in suffixes),
        "_ledger",
    ]
    first = pq.read_table(out / "00000.parquet").to_pylist()
    assert list(first[0]) == [
        *("url", "caption", "uid", "language", "language_score", "license", "page_url"),
        *("crawl", "segment", "wat_file", "key", "status", "error_message", "width", "height"),
        *("original_width", "original_height", "exif", "sha256", "md5", "reason", "redirects"),
    ]
    assert [row["key"] for row in first] == [f"00000{i:04d}" for i in range(SIZE)]
    assert [row["url"] for row in first] == urls(SIZE)
    assert first[0]["status"] == "success"
    assert first[0]["uid"] == schemas.uid_of(urls()[0], "picture 0").hex()
    assert (first[1]["original_width"], first[1]["original_height"]) == (301, 200)
    assert (first[1]["width"], first[1]["height"]) == (256, 256)
    assert first[1]["sha256"] == hashlib.sha256(bodies[1]).hexdigest()
    assert first[1]["md5"] == hashlib.md5(bodies[1]).hexdigest()
    assert (first[4]["status"], first[4]["reason"]) == ("failed_to_download", "http_4xx")
    assert first[4]["error_message"] == "http_4xx: HTTP 404"
    second = pq.read_table(out / "00001.parquet").to_pylist()
    assert [row["reason"] for row in second] == [None, None, "undecodable", "too_small", None]
    assert second[2]["status"] == "failed_to_resize"

    with tarfile.open(out / "00001.tar") as tar:
        members = tar.getmembers()
        keys = [f"00001{i:04d}" for i in (0, 1, 4)]
        assert [m.name for m in members] == [
            f"{k}.{s}" for k in keys for s in ("jpg", "json", "txt")
        ]
        assert {m.mtime for m in members} == {0}
        about = json.load(tar.extractfile(f"{keys[0]}.json"))  # type: ignore[arg-type]
        assert about == second[0] | {"redirects": ""}  # see test_sample_json

    stats = json.loads((out / "00001_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (5, 3)
    assert (stats["failed_to_download"], stats["failed_to_resize"]) == (0, 2)
    assert stats["status_dict"] == {"success": 3, "undecodable": 1, "too_small": 1}
    assert stats["end_time"] - stats["start_time"] == pytest.approx(stats["duration"])


def test_other_loaders_and_the_next_stage_read_them(images: Listener, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, urls(SIZE))
    out = tmp_path / "shards"
    run(pairs, out, options_for(images))
    dataset = wds.WebDataset(str(out / "00000.tar"), shardshuffle=False).decode("pil")
    samples = list(dataset.to_tuple("jpg", "txt", "json"))
    assert [text for _, text, _ in samples] == [f"picture {i}" for i in range(4)]
    assert all(image.size == (256, 256) for image, *_ in samples)
    assert [about["url"] for *_, about in samples] == urls(4)

    rows = read_rows(out / "00000.tar").to_pylist()
    assert [row["SAMPLE_ID"] for row in rows] == [
        schemas.sample_id_of(schemas.uid_of(url, f"picture {i}")) for i, url in enumerate(urls(4))
    ]
    assert (rows[2]["width"], rows[2]["height"]) == (302, 200)
    with ImageBytes(out / "00000.tar") as tar:
        assert all(tar.read(row["key"]).startswith(b"\xff\xd8") for row in rows)


def test_equal_inputs_give_equal_bytes_whatever_the_order_of_answers(
    images: Listener, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    write_pairs(tmp_path / "one.parquet", urls())
    table = pq.read_table(tmp_path / "one.parquet")
    for part, (start, n) in enumerate([(0, 3), (3, 0), (3, 14), (17, 6)]):
        pq.write_table(table.slice(start, n), pairs / f"part-{part:05d}.parquet")
    run(tmp_path / "one.parquet", tmp_path / "a", options_for(images, concurrency=1))
    other = options_for(images, concurrency=32, per_host_concurrency=32)
    thread = threading.Thread(target=run, args=(pairs, tmp_path / "b", other))
    thread.start()  # it does not need the main thread
    thread.join()
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 10


def test_finished_shards_stay_and_changed_ones_are_made_again(
    images: Listener, tmp_path: Path
) -> None:
    pairs, out, options = tmp_path / "pairs.parquet", tmp_path / "shards", options_for(images)
    write_pairs(pairs, urls())
    first = run(pairs, out, options)
    made = content(out)
    images.requests.clear()
    assert run(pairs, out, options.model_copy(update={"concurrency": 3})) == first
    assert images.requests == []

    changed = urls()
    changed[6] = "http://h0.test/0.jpg"
    write_pairs(pairs, changed)
    run(pairs, out, options)
    assert [path for _, path in images.requests] == ["/0.jpg"]
    again = content(out)
    assert {name for name in made if made[name] != again[name]} == {"00001.tar", "00001.parquet"}

    write_pairs(pairs, urls(8))
    assert run(pairs, out, options).n_in == 8
    assert {name[:5] for name in content(out)} == {"00000", "00001"}

    images.requests.clear()
    counts = run(pairs, out, options.model_copy(update={"image_size": 128}))
    assert (len(images.requests), counts.n_in) == (8, 8)


def test_a_removed_image_leaves_the_shards(
    images: Listener, bodies: list[bytes], tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs.parquet", tmp_path / "shards"
    write_pairs(pairs, urls(4))
    assert run(pairs, out, options_for(images)).kept == 4
    removals = parse([f"sha256:{hashlib.sha256(bodies[2]).hexdigest()}"], "list")
    counts = run(pairs, out, options_for(images), removals=removals)
    assert (counts.kept, counts.rejects) == (3, {"removed": 1})
    with tarfile.open(out / "00000.tar") as tar:
        assert "000000002.jpg" not in tar.getnames()


def test_a_listed_url_or_host_is_never_fetched(
    images: Listener, bodies: list[bytes], tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs.parquet", tmp_path / "shards"
    for number, to in enumerate(["http://cdn.gone.test/a.jpg", "HTTP://H0.test/0.jpg#x"]):
        images.routes[f"/hop{number}.jpg"] = redirect(to)
    images.routes["/a.jpg"] = answer(bodies[9])
    asked = [
        *("http://h0.test/0.jpg", "http://h1.test/1.jpg", "http://h2.test/2.jpg"),
        *("HTTP://me:secret@H2.test:80/2.jpg#x", "http://xn--bcher-kva.test/3.jpg"),
        *("http://h1.test/hop0.jpg", "http://h1.test/hop1.jpg"),
    ]
    write_pairs(pairs, asked)
    options = options_for(images, samples_per_shard=10)
    assert run(pairs, out, options).kept == len(asked)
    images.requests.clear()

    removals = parse(["url:http://h2.test/2.jpg", "host:gone.test"], "removals")
    blocklists = parse(["host:Bücher.test", "host:h0.test", "host:gone.test"], "blocklists")
    counts = run(pairs, out, options, removals=removals, blocklists=blocklists)
    assert images.requests == []  # the redirects and the others' images are known
    assert (counts.kept, counts.rejects) == (1, {"removed": 3, "blocked": 3})
    rows = pq.read_table(out / "00000.parquet").to_pylist()
    reasons = ["blocked", None, "removed", "removed", "blocked", "removed", "blocked"]
    assert [row["reason"] for row in rows] == reasons
    assert {row["status"] for row in rows if row["reason"]} == {"failed_to_download"}

    images.requests.clear()
    assert run(pairs, out, options, removals=removals, blocklists=blocklists) == counts
    assert images.requests == []


def test_a_machine_without_network_is_warned_about(images: Listener, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, [f"http://h{i}.invalid/{i}.jpg" for i in range(SIZE)] + urls(2))
    lines: list[str] = []
    options = options_for(images, network_retries=0)
    warnings: list[str] = []
    with heard(lines.append), heard(warnings.append, logging.WARNING):
        counts = run(pairs, tmp_path / "out", options)
    assert len(warnings) == 1
    assert "shard 00000: 5 downloads failed, all for network reasons (dns 5)" in warnings[0]
    assert lines[-1].startswith("image_shards: 7/7 images in ") or "7/7" in "".join(lines)
    assert (counts.kept, counts.rejects) == (2, {"dns": 5})


def raw(head: bytes, body: bytes = b"") -> Any:
    return lambda connection: connection.sendall(head + b"\r\n\r\n" + body)


def test_headers_that_are_not_text_cost_their_image(
    images: Listener, bodies: list[bytes], tmp_path: Path
) -> None:
    images.routes["/0.jpg"] = raw(b"HTTP/1.1 503 X\r\nRetry-After: sp\xe4ter\r\nContent-Length: 0")
    # No coding: the body counts as it is, and is too short for an image.
    images.routes["/1.jpg"] = raw(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: \xe9\r\nContent-Length: 3", b"abc"
    )
    images.routes["/2.jpg"] = raw(
        b"HTTP/1.1 503 X\r\nRetry-After: Mon, 01 Jan 9999999 00:00:00 GMT\r\nContent-Length: 0"
    )
    images.routes["/3.jpg"] = redirect("http://me:secret@h2.test/hop.jpg#part")
    images.routes["/hop.jpg"] = answer(bodies[3])
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, [f"http://g{i}.test/{i}.jpg" for i in range(4)])
    counts = run(pairs, tmp_path / "out", options_for(images, busy_retries=0))
    assert (counts.kept, counts.rejects) == (1, {"busy": 2, "too_small": 1})
    rows = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert "Retry-After: sp?ter" in rows[0]["error_message"]
    assert rows[3]["redirects"] == ["http://h2.test/hop.jpg"]


def test_columns_of_any_type_are_carried_along_and_our_own_names_refused(
    images: Listener, tmp_path: Path
) -> None:
    when = datetime(2024, 5, 6, tzinfo=UTC)
    table = pa.table(
        {"url": [*urls(2), None], "text": ["a", None, "c"], "seen": [when] * 3, "n": [1, 2, 3]}
    )
    pairs = tmp_path / "pairs.parquet"
    pq.write_table(table, pairs)
    counts = run(pairs, tmp_path / "out", options_for(images))
    assert (counts.kept, counts.rejects) == (2, {"url_scheme": 1})
    rows = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert [(row["seen"], row["n"]) for row in rows[:2]] == [(str(when), 1), (str(when), 2)]
    pq.write_table(table.append_column("width", pa.array([1, 2, 3])), pairs)
    with pytest.raises(ValueError, match="of its own: width"):
        run(pairs, tmp_path / "other", options_for(images))


def test_no_pairs_and_wrong_pairs(images: Listener, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert run(tmp_path / "none", tmp_path / "a", options_for(images)).n_in == 0
    write_pairs(tmp_path / "pairs.parquet", [])
    assert run(tmp_path / "pairs.parquet", tmp_path / "b", options_for(images)).n_in == 0
    assert content(tmp_path / "b") == {}
    table = pq.read_table(tmp_path / "pairs.parquet").drop_columns(["url"])
    pq.write_table(table, tmp_path / "wrong.parquet")
    with pytest.raises(ValueError, match="no column url"):
        run(tmp_path / "wrong.parquet", tmp_path / "c", options_for(images))


CHILD = """
import sys
from pathlib import Path
from laion_assets.download.options import DownloadOptions
from laion_assets.download.segment import download_segment
from laion_assets.download.tars import ImageBytes
from laion_assets.removals.entries import Entries

def watch(event, details):
    local = event == "socket.connect" and isinstance(details[1], str)  # the pool's own
    if event == "socket.connect" and not local and details[1][0] != "127.0.0.2":
        print("DIALLED OUT", event, details[1:], flush=True)
    if event == "socket.getaddrinfo":
        print("DIALLED OUT", event, details[1:], flush=True)

sys.addaudithook(watch)
options = DownloadOptions.model_validate_json(sys.argv[3])
download_segment(Path(sys.argv[1]), Path(sys.argv[2]), options, removals=Entries(),
                 blocklists=Entries())
"""


def test_a_killed_run_leaves_nothing_torn_and_is_resumed(images: Listener, tmp_path: Path) -> None:
    """The process connects to the images' host only, too, whatever img2dataset imports."""
    pairs, out, options = tmp_path / "pairs.parquet", tmp_path / "shards", options_for(images)
    write_pairs(pairs, urls())
    answer_12 = images.routes["/12.jpg"]
    images.routes["/12.jpg"] = lambda _: images.closing.wait(PATIENCE_S) and None
    command = [sys.executable, "-c", CHILD, str(pairs), str(out)]
    child = subprocess.Popen(
        [*command, options.model_copy(update={"total_timeout_s": PATIENCE_S}).model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    stats = [out / f"{shard:05d}_stats.json" for shard in (0, 1)]
    until(lambda: all(path.exists() for path in stats) or child.poll() is not None)
    assert child.poll() is None
    (out / ".making-torn").mkdir()
    (out / ".making-torn" / "00002.tar").write_bytes(b"half")
    child.kill()
    output, _ = child.communicate()
    assert "DIALLED OUT" not in output
    done = {int(name[:5]) for name in content(out)}
    assert {0, 1} <= done <= {0, 1, 3, 4}

    images.routes["/12.jpg"] = answer_12
    images.requests.clear()
    counts = run(pairs, out, options)
    assert {int(path[1:-4]) // SIZE for _, path in images.requests} == set(range(5)) - done
    assert (counts.n_in, counts.kept) == (N, N - 3)
    run(pairs, tmp_path / "whole", options)
    assert content(out) == content(tmp_path / "whole")


def test_a_tar_that_rots_before_its_run_is_resumed_is_made_again(
    images: Listener, tmp_path: Path
) -> None:
    pairs, out, options = tmp_path / "pairs.parquet", tmp_path / "shards", options_for(images)
    write_pairs(pairs, urls())
    run(pairs, out, options)
    before, tar = content(out), out / "00001.tar"
    other_version = tmp_path / "00001.tar"
    other_version.hardlink_to(tar)
    about, rotten = tar.stat(), bytearray(tar.read_bytes())
    rotten[rotten.index(b"\xff\xda") + 20] ^= 1
    tar.write_bytes(rotten)
    os.utime(tar, ns=(about.st_atime_ns, about.st_mtime_ns))
    images.requests.clear()
    warnings: list[str] = []
    with heard(warnings.append, logging.WARNING):
        run(pairs, out, options)
    assert content(out) == before
    assert {int(path[1:-4]) // SIZE for _, path in images.requests} == {1}
    assert "00001.tar has changed since it was written" in warnings[0]
    assert other_version.read_bytes() == rotten


def test_a_contact_sheet_shows_images_with_captions(images: Listener, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", urls())
    run(tmp_path / "pairs.parquet", tmp_path / "out", options_for(images))
    sheet = contact_sheet(tmp_path / "out", n=12, seed=1)
    assert sheet == contact_sheet(tmp_path / "out", n=12, seed=1)
    assert sheet != contact_sheet(tmp_path / "out", n=12, seed=2)
    assert len(sheet) <= MAX_BYTES
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.size[0] > 800
        assert image.convert("L").getextrema()[0] < 64
    (tmp_path / "empty").mkdir()
    assert contact_sheet(tmp_path / "empty").startswith(b"\xff\xd8")
