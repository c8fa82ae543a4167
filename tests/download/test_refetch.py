"""A segment that was downloaded before: what is refetched, what is kept, what is flagged."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from laion_assets.download.segment import NoNetworkError
from laion_assets.download.tars import ImageBytes
from laion_assets.removals.entries import parse
from laion_assets.tables import read_parquet
from tests.conftest import heard
from tests.download.conftest import (
    PUBLIC,
    SIZE,
    Answer,
    Listener,
    N,
    answer,
    content,
    download,
    encoded,
    listening,
    options_for,
    picture,
    urls,
    write_pairs,
)

OTHER = encoded(picture(99, 310, 210))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.parquet"
    write_pairs(path, urls())
    return path


def row(folder: Path, i: int, ledger: bool = False) -> dict[str, Any]:
    shard = folder / "_ledger" if ledger else folder
    rows = pq.ParquetFile(shard / f"{i // SIZE:05d}.parquet").read().to_pylist()
    found: dict[str, Any] = rows[i % SIZE]
    return found


def image(folder: Path, i: int) -> bytes:
    with ImageBytes(folder / f"{i // SIZE:05d}.tar") as images:
        return images.read(row(folder, i)["key"])


def asked(web: Listener) -> list[str]:
    """Paths requested since the last call, sorted."""
    paths = sorted(path for _, path in web.requests)
    web.requests.clear()
    return paths


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_only_transient_failures_are_refetched(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    options = options_for(images)
    images.routes["/0.jpg"] = answer(b"down", "500 Down")
    images.routes["/6.jpg"] = answer(b"down", "500 Down")
    first = download(pairs, tmp_path / "a", options)
    assert (first.asked_for, first.reused, first.counts.rejects["http_5xx"]) == (N, 0, 2)
    asked(images)

    images.routes["/0.jpg"] = answer(bodies[0])
    second = download(pairs, tmp_path / "b", options, before=tmp_path / "a")
    assert asked(images) == ["/0.jpg", "/6.jpg"]
    assert (second.asked_for, second.reused, second.changed) == (2, N - 2, 0)
    assert second.counts.kept == first.counts.kept + 1
    before, after = row(tmp_path / "a", 0, ledger=True), row(tmp_path / "b", 0, ledger=True)
    assert (before["attempts"], before["sha256"], before["first_seen"]) == (1, None, None)
    assert (after["attempts"], after["sha256"]) == (2, sha256(bodies[0]))
    assert after["first_tried"] == before["first_tried"] < after["last_tried"]
    assert after["first_seen"] == after["last_seen"]
    assert row(tmp_path / "b", 4, ledger=True)["attempts"] == 1  # a 404 is an answer
    a, b = content(tmp_path / "a"), content(tmp_path / "b")
    assert {name[:5] for name in a if a[name] != b[name]} == {"00000"}

    settled = options.model_copy(update={"give_up_after": 2})
    download(pairs, tmp_path / "c", settled, before=tmp_path / "b")
    assert asked(images) == []
    assert content(tmp_path / "c") == b

    none = options.model_copy(update={"refetch": "none"})
    download(pairs, tmp_path / "b", none, again=True)
    assert asked(images) == []
    download(
        pairs, tmp_path / "b", options
    )  # finished shards stay, unless they are opened to refetching
    assert asked(images) == []
    download(pairs, tmp_path / "b", options, again=True)
    assert asked(images) == ["/6.jpg"]


def test_an_undisturbed_run_and_a_refetch_give_the_same_shards(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    images.routes["/0.jpg"] = answer(b"down", "500 Down")
    download(pairs, tmp_path / "a", options_for(images))
    images.routes["/0.jpg"] = answer(bodies[0])
    download(pairs, tmp_path / "b", options_for(images), before=tmp_path / "a")
    download(pairs, tmp_path / "whole", options_for(images))
    assert content(tmp_path / "b") == content(tmp_path / "whole")


def test_bytes_that_differ_from_the_recorded_ones_are_flagged_and_not_taken(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    """A stranger may have bought the domain since (arXiv 2302.10149)."""
    options = options_for(images)
    download(pairs, tmp_path / "a", options)
    images.routes["/2.jpg"] = answer(OTHER)
    again = options.model_copy(update={"refetch": "all"})
    flagged = download(pairs, tmp_path / "b", again, before=tmp_path / "a")
    assert (flagged.changed, flagged.counts.kept, flagged.asked_for) == (1, N - 3, N)
    assert row(tmp_path / "b", 2) == row(tmp_path / "a", 2)
    assert image(tmp_path / "b", 2) == image(tmp_path / "a", 2)
    noted = row(tmp_path / "b", 2, ledger=True)
    assert (noted["sha256"], noted["changed_sha256"]) == (sha256(bodies[2]), sha256(OTHER))
    assert noted["changed"] >= noted["last_seen"]
    others = row(tmp_path / "b", 3, ledger=True)
    assert others["first_seen"] < others["last_seen"]
    assert others["changed"] is None

    taking = again.model_copy(update={"take_changed": True})
    taken = download(pairs, tmp_path / "c", taking, before=tmp_path / "b")
    assert (taken.changed, taken.counts.kept) == (1, N - 3)
    assert row(tmp_path / "c", 2)["sha256"] == sha256(OTHER)
    noted = row(tmp_path / "c", 2, ledger=True)
    assert (noted["sha256"], noted["changed_sha256"]) == (sha256(OTHER), sha256(OTHER))
    assert noted["first_seen"] == noted["last_seen"] >= noted["changed"]


def test_changed_bytes_are_refused_where_the_recorded_image_cannot_be_kept(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    download(pairs, tmp_path / "a", options_for(images))
    images.routes["/2.jpg"] = answer(OTHER)
    smaller = options_for(images, image_size=128)
    again = download(pairs, tmp_path / "b", smaller, before=tmp_path / "a")
    assert again.counts.rejects["changed"] == 1
    assert row(tmp_path / "b", 2)["reason"] == "changed"
    asked(images)
    download(pairs, tmp_path / "b", smaller, again=True)
    assert asked(images) == []  # it stays refused until a person accepts it
    smaller = smaller.model_copy(update={"take_changed": True})
    taken = download(pairs, tmp_path / "b", smaller, again=True)
    assert asked(images) == ["/2.jpg"]
    assert "changed" not in taken.counts.rejects
    assert row(tmp_path / "b", 2)["sha256"] == sha256(OTHER)


def test_a_failed_refetch_does_not_lose_the_image_but_an_opt_out_does(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    options = options_for(images)
    download(pairs, tmp_path / "a", options)
    images.routes["/2.jpg"] = answer(b"gone", "410 Gone")
    images.routes["/3.jpg"] = answer(bodies[3], X_Robots_Tag="noai")
    again = options.model_copy(update={"refetch": "all"})
    result = download(pairs, tmp_path / "b", again, before=tmp_path / "a")
    assert image(tmp_path / "b", 2) == image(tmp_path / "a", 2) != b""
    assert result.counts.rejects["opt_out"] == 1
    assert image(tmp_path / "b", 3) == b""
    noted = row(tmp_path / "b", 2, ledger=True)
    assert (noted["attempts"], noted["first_seen"]) == (2, noted["last_seen"])


def test_a_url_of_several_rows_is_fetched_once(
    images: Listener, bodies: list[bytes], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, ["http://h0.test/0.jpg", "http://h1.test/4.jpg"] * 2)
    result = download(pairs, tmp_path / "a", options_for(images))
    assert asked(images) == ["/0.jpg", "/4.jpg"]
    assert (result.counts.kept, result.counts.rejects) == (2, {"http_4xx": 2})
    assert image(tmp_path / "a", 0) == image(tmp_path / "a", 2) != b""
    assert result.bytes == len(bodies[0])


def test_a_damaged_previous_shard_is_logged_and_refetched(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    options = options_for(images)
    first = download(pairs, tmp_path / "a", options)
    for damaged in ("00001.parquet", "_ledger/00002.parquet"):
        path = tmp_path / "a" / damaged
        path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "a" / "00000.tar").write_bytes(b"")
    asked(images)
    warnings: list[str] = []
    write_pairs(pairs, ["http://h9.test/0.jpg", *urls()])  # every shard's rows are others now
    with heard(warnings.append, logging.WARNING):
        result = download(pairs, tmp_path / "b", options, before=tmp_path / "a")
    # Of the shard whose tar alone is lost, refusals and histories are known.
    rows = read_parquet(tmp_path / "a" / "00000.parquet", ["url", "status"]).to_pylist()
    lost = [urlsplit(row["url"]).path for row in rows if row["status"] == "success"]
    assert 0 < len(lost) < len(rows)
    assert asked(images) == sorted([f"/{i}.jpg" for i in range(5, 15)] + lost + ["/0.jpg"])
    assert result.counts.kept == first.counts.kept + 1
    assert len(warnings) == 3  # in the order in which the shards are begun
    for said in ("shard 00001 of ", "shard 00002 of ", "00000.tar is missing or damaged"):
        assert any(said in warning for warning in warnings)


def test_an_image_that_its_tar_loses_meanwhile_is_asked_for_once_if_the_host_refuses(
    images: Listener, bodies: list[bytes], pairs: Path, tmp_path: Path
) -> None:
    before = tmp_path / "a"
    write_pairs(pairs, urls(3))
    download(pairs, before, options_for(images))
    asked(images)

    def cutting(then: Answer) -> Answer:
        def cut(connection: socket.socket) -> None:
            os.truncate(before / "00000.tar", 0)
            then(connection)

        return cut

    images.routes["/0.jpg"] = cutting(answer(b"gone", "404 Not Found"))
    images.routes["/1.jpg"] = cutting(answer(OTHER))
    images.routes["/2.jpg"] = cutting(answer(bodies[2]))
    options = options_for(images, refetch="all")
    result = download(pairs, tmp_path / "b", options, before=before)
    assert asked(images) == ["/0.jpg", "/1.jpg", "/2.jpg", "/2.jpg"]
    assert (result.counts.kept, result.counts.rejects) == (1, {"http_4xx": 1, "changed": 1})
    assert [row(tmp_path / "b", i, ledger=True)["attempts"] for i in range(3)] == [2, 2, 2]


def test_leftover_files_of_other_shards_are_deleted(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    download(pairs, out, options_for(images))
    made = content(out)
    (out / "00077.tar").write_bytes(b"torn")
    download(pairs, out, options_for(images))
    assert content(out) == made


def test_the_download_waits_for_a_network_that_comes_back(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    options = options_for(images, network_wait_s=0.4, host_failures=2, samples_per_shard=50)
    images.close()
    again: list[Listener] = []

    def repair() -> None:
        time.sleep(0.2)
        again.append(Listener(PUBLIC, images.port, routes=images.routes))

    thread = threading.Thread(target=repair)
    thread.start()
    warnings: list[str] = []
    with heard(warnings.append, logging.WARNING):
        result = download(pairs, tmp_path / "a", options)
    thread.join()
    again[0].close()
    assert (result.counts.kept, result.without_network) == (N - 3, [])
    assert len(warnings) == 1
    assert "23 downloads failed, all for network reasons" in warnings[0]
    assert (result.asked_for, result.reused) == (N, 0)
    assert "trying again in 0.4 s" in warnings[0]


def test_a_machine_without_network_publishes_nothing_and_gives_up_no_image(
    pairs: Path, tmp_path: Path
) -> None:
    with listening(PUBLIC) as web:
        options = options_for(web, network_wait_s=0.01, network_retries=2, give_up_after=1)
    for _ in range(3):  # as the sensor tries
        with pytest.raises(NoNetworkError, match="no host has answered"):
            download(pairs, tmp_path / "a", options)
    assert row(tmp_path / "a", 0, ledger=True)["failures"] == 0
    with listening(PUBLIC, web.port) as web:
        web.routes |= {f"/{i}.jpg": answer(OTHER) for i in range(N)}
        assert download(pairs, tmp_path / "a", options).counts.kept == N
        made = content(tmp_path / "a")
    # A whole partition exists, and an option has changed.
    smaller = options.model_copy(update={"image_size": 128, "network_retries": 0})
    for _ in range(2):
        with pytest.raises(NoNetworkError):
            download(pairs, tmp_path / "b", smaller, before=tmp_path / "a")
    assert content(tmp_path / "a") == made


def test_two_dead_hosts_are_not_a_dead_network(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, ["http://a.invalid/1.jpg", "http://b.invalid/2.jpg"])
    with listening(PUBLIC) as web:
        result = download(pairs, tmp_path / "a", options_for(web))
    assert (result.counts.rejects, result.without_network) == ({"dns": 2}, [])


def test_only_consecutive_failures_count_towards_giving_up(
    images: Listener, bodies: list[bytes], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, urls(2))
    options = options_for(images, give_up_after=2, refetch="all")
    download(pairs, tmp_path / "a", options)
    for _ in range(3):
        download(pairs, tmp_path / "a", options, again=True)
    assert row(tmp_path / "a", 0, ledger=True)["attempts"] == 4
    images.routes["/0.jpg"] = answer(b"", "500 Down")
    smaller = options.model_copy(update={"image_size": 128, "refetch": "transient"})
    assert download(pairs, tmp_path / "a", smaller).counts.kept == 1
    images.routes["/0.jpg"] = answer(bodies[0])
    assert download(pairs, tmp_path / "a", smaller, again=True).counts.kept == 2


def test_images_that_were_not_requested_are_not_given_up(images: Listener, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.parquet"
    write_pairs(pairs, [f"http://h0.test/{i}.jpg" for i in range(4)])
    good = {f"/{i}.jpg": images.routes[f"/{i}.jpg"] for i in range(4)}
    images.routes |= {path: answer(b"", "503 X", Retry_After="3600") for path in good}
    options = options_for(images, per_host_concurrency=1, give_up_after=3)
    for _ in range(3):
        counts = download(pairs, tmp_path / "a", options, again=True).counts
        assert counts.rejects == {"busy": 4}
    images.routes |= good
    # One has been asked for three times, the others never.
    assert download(pairs, tmp_path / "a", options, again=True).counts.kept == 3


def test_changed_bytes_that_are_listed_remove_the_image(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    options = options_for(images, refetch="all")
    kept = download(pairs, tmp_path / "a", options).counts.kept
    images.routes["/2.jpg"] = answer(OTHER)
    listed = parse([f"sha256:{sha256(OTHER)}"], "list")
    result = download(pairs, tmp_path / "b", options, before=tmp_path / "a", blocklists=listed)
    assert (result.counts.kept, result.counts.rejects["blocked"]) == (kept - 1, 1)
    assert image(tmp_path / "b", 2) == b""


def test_a_url_of_two_rows_keeps_the_image_that_one_of_them_got(
    images: Listener, bodies: list[bytes], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.parquet"
    twice = "http://h0.test/0.jpg"
    write_pairs(pairs, [twice, *urls(5)[1:], twice])
    turns = iter([answer(b"", "500 X"), answer(bodies[0])])
    images.routes["/0.jpg"] = lambda connection: next(turns)(connection)
    options = options_for(images, concurrency=1, per_host_concurrency=1)
    assert download(pairs, tmp_path / "a", options).counts.kept == 4
    images.routes["/0.jpg"] = answer(b"", "404 X")
    write_pairs(pairs, [twice, *urls(4)[1:], twice])
    again = download(pairs, tmp_path / "b", options, before=tmp_path / "a")
    assert (again.counts.kept, again.counts.rejects) == (5, {})


def test_reused_rows_count_as_reused_in_the_next_run_too(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    download(pairs, tmp_path / "a", options_for(images))
    for _ in range(2):
        result = download(pairs, tmp_path / "b", options_for(images), before=tmp_path / "a")
        assert (result.asked_for, result.reused, result.bytes) == (0, N, 0)


def test_a_shard_with_a_cut_tar_is_not_done(images: Listener, pairs: Path, tmp_path: Path) -> None:
    whole = download(pairs, tmp_path / "a", options_for(images)).counts
    tar = tmp_path / "a" / "00002.tar"
    tar.write_bytes(tar.read_bytes()[:30_000])
    asked(images)
    again = download(pairs, tmp_path / "b", options_for(images), before=tmp_path / "a")
    assert again.counts == whole
    assert asked(images) == sorted(f"/{i}.jpg" for i in range(10, 15))


def test_robots_txt_that_fails_for_a_while_costs_no_image(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    options = options_for(images, respect_robots_txt=True, refetch="all", busy_retries=0)
    kept = download(pairs, tmp_path / "a", options).counts.kept
    images.routes["/robots.txt"] = answer(b"", "500 X")
    again = download(pairs, tmp_path / "b", options, before=tmp_path / "a")
    assert again.counts.kept == kept
    images.routes["/robots.txt"] = answer(b"User-agent: *\nDisallow: /2.jpg\n")
    again = download(pairs, tmp_path / "c", options, before=tmp_path / "b")
    assert (again.counts.kept, again.counts.rejects["robots"]) == (kept - 1, 1)
