"""The look-ups of a partition name its rows, through all parts, and follow from these alone."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laion_assets import schemas, tables
from laion_assets.files import LocalFile
from laion_assets.layout import IMAGE_SHARDS, LOOKUP, PAIR_PARQUET
from laion_assets.lookup.files import Rows, find
from laion_assets.lookup.write import BLOCK, FILES, write_lookups
from laion_assets.removals.entry import key_of, parse_entry

URLS = [
    "https://example.org/a.jpg",
    "https://img.example.org/b.jpg",
    "https://cdn.img.example.org:8443/c.jpg",
    "https://notexample.org/d.jpg",
    "https://xn--bcher-kva.example/e.jpg",
    "https://127.0.0.1/f.jpg",
]


def look_up(folder: Path, asset: str, entry: str) -> list[int]:
    """Rows that a list's entry names, as far as the look-ups of a folder tell."""
    key = key_of(*parse_entry(entry))
    head = np.array([int.from_bytes(key.value[:8], "big")], np.uint64)
    with closing(LocalFile(folder / LOOKUP / FILES[asset][key.kind])) as file:
        rows: Rows = find(file, head)
    return rows.tolist()


def write_pairs(folder: Path, urls: list[str]) -> list[bytes]:
    """A table of pairs in parts of four rows."""
    uids = [schemas.uid_of(url, "text") for url in urls]
    records = [{"uid": uid, "url": url} for uid, url in zip(uids, urls, strict=True)]
    with tables.PartsWriter(folder, schemas.PAIRS, rows=4) as writer:
        writer.write(pa.Table.from_pylist(records, schemas.PAIRS))
    return uids


def write_images(folder: Path, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schemas.IMAGES)
    tables.write_table(tables.part_path(folder, 0), table)


def test_a_pair_is_found_by_all_that_names_it(tmp_path: Path) -> None:
    uids = write_pairs(tmp_path, URLS)
    assert len(list(tmp_path.glob("part-*"))) == 2
    write_lookups(PAIR_PARQUET, tmp_path)
    for row, (url, uid) in enumerate(zip(URLS, uids, strict=True)):
        entries = [
            f"url:{url}",
            f"url-sha256:{hashlib.sha256(url.encode()).hexdigest()}",
            f"url-md5:{hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()}",
            f"sample-id:{schemas.sample_id_of(uid)}",
        ]
        for entry in entries:
            assert look_up(tmp_path, PAIR_PARQUET, entry) == [row], entry
    assert look_up(tmp_path, PAIR_PARQUET, "url:https://example.org/absent.jpg") == []


def test_a_host_is_found_with_its_sub_domains(tmp_path: Path) -> None:
    """By the first row of a block that has it."""
    write_pairs(tmp_path, URLS)
    write_lookups(PAIR_PARQUET, tmp_path)
    hosts = {
        "example.org": [0],
        "img.example.org": [1],
        "cdn.img.example.org": [2],
        ".org": [0],
        "notexample.org": [3],
        "ample.org": [],
        "bücher.example": [4],
        "127.0.0.1": [5],
    }
    found = {host: look_up(tmp_path, PAIR_PARQUET, f"host:{host}") for host in hosts}
    assert found == hosts


def test_each_block_of_rows_has_an_entry_for_a_host(tmp_path: Path) -> None:
    urls = [f"https://{'ab'[row % 2]}.test/{row}" for row in range(2 * BLOCK + 2)]
    urls[1 : BLOCK + 1 : 2] = ["https://c.test/"] * (BLOCK // 2)
    records = [{"uid": b"0" * 16, "url": url} for url in urls]
    table = pa.Table.from_pylist(records, schemas.PAIRS)
    tables.write_table(tables.part_path(tmp_path, 0), table)
    write_lookups(PAIR_PARQUET, tmp_path)
    for host, rows in {
        "a.test": [0, BLOCK, 2 * BLOCK],
        "b.test": [BLOCK + 1, 2 * BLOCK + 1],
        "c.test": [1],
        ".test": [0, BLOCK, 2 * BLOCK],
    }.items():
        assert look_up(tmp_path, PAIR_PARQUET, f"host:{host}") == rows, host


def test_an_image_is_found_by_its_bytes_and_by_its_redirects(tmp_path: Path) -> None:
    sha256, md5 = "ab" * 32, "CD" * 16
    write_images(
        tmp_path,
        [
            {"url": URLS[0], "sha256": sha256, "md5": md5},
            {"url": URLS[1]},
            {"url": URLS[3], "redirects": ["http://HOP.test/x y", "http://me@cdn.hop.test/z#a"]},
            {"url": URLS[4], "sha256": sha256, "md5": "ef" * 16},
        ],
    )
    write_lookups(IMAGE_SHARDS, tmp_path)
    for entry, rows in {
        f"sha256:{sha256}": [0, 3],
        f"md5:{md5}": [0],
        f"url:{URLS[0]}": [],
        "url:http://hop.test/x%20y": [2],
        "url:http://cdn.hop.test/z": [2],
        "host:hop.test": [2],
        "host:example.org": [],
    }.items():
        assert look_up(tmp_path, IMAGE_SHARDS, entry) == rows, entry


@pytest.mark.parametrize("asset", FILES)
def test_an_empty_partition_has_look_ups(tmp_path: Path, asset: str) -> None:
    if asset == PAIR_PARQUET:
        write_pairs(tmp_path, [])
    else:
        write_images(tmp_path, [])
    write_lookups(asset, tmp_path)
    assert {path.name for path in (tmp_path / LOOKUP).iterdir()} == set(FILES[asset].values())
    assert look_up(tmp_path, asset, "url:https://example.org/a.jpg") == []


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    urls = [f"https://h{row % 17}.test/{row}" for row in range(500)]
    made = []
    for name, rows in (("a", 7), ("b", 500)):
        folder = tmp_path / name
        folder.mkdir()
        records = [{"uid": schemas.uid_of(url, ""), "url": url} for url in urls]
        with tables.PartsWriter(folder, schemas.PAIRS, rows=rows) as writer:
            writer.write(pa.Table.from_pylist(records, schemas.PAIRS))
        write_lookups(PAIR_PARQUET, folder)
        write_lookups(PAIR_PARQUET, folder)  # as a resumed run does
        made.append({p.name: p.read_bytes() for p in (folder / LOOKUP).iterdir()})
    assert made[0] == made[1]
