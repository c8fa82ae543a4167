"""A small lake with every stage's files and manifests, as the lake publishes them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets import schemas
from laion_assets.download.outcomes import History, ledger_table
from laion_assets.download.shard_files import SHARDS, ledger_of
from laion_assets.funnel import StageCounts
from laion_assets.lake.content import describe
from laion_assets.schemas import sample_id_of, uid_of
from laion_assets.stats.segment import segment_stats
from laion_assets.tables import part_path, write_table

SEGMENTS = [("CC-MAIN-2000-05", "00"), ("CC-MAIN-2000-05", "01"), ("CC-MAIN-2001-05", "00")]
THRESHOLD = 0.3
HOSTS = ["a.test", "b.test", "c.test"]
SIDES = [128, 256, 300, 512, 1024, 2000]

Record = dict[str, Any]


def counts(stage: str, kept: int, rejects: dict[str, int]) -> StageCounts:
    made = StageCounts(stage)
    made.keep(kept)
    for reason, n in rejects.items():
        made.reject(reason, n=n)
    return made


def hash_of(row: int) -> str:
    """Hash of a pair's image; every tenth pair has the image of the one before."""
    return hashlib.sha256(str(row - (row % 10 == 9)).encode()).hexdigest()


class SegmentFiles:
    """One segment of a lake: 60 pairs, 55 unique, 40 images, 24 in the subset."""

    def __init__(self, lake: Path, crawl: str, segment: str) -> None:
        self.lake, self.crawl, self.segment = lake, crawl, segment
        self.pairs = [self._pair(row) for row in range(60)]
        self.unique = self.pairs[:55]
        self.images = self.pairs[:40]
        self.subset = self.images[:24]

    def folder(self, asset: str) -> Path:
        return self.lake / asset / f"crawl={self.crawl}" / f"segment={self.segment}"

    def _pair(self, row: int) -> Record:
        url = f"http://{HOSTS[row % 3]}/{self.crawl}/{self.segment}/{row}.jpg"
        text = "a picture of " + "x" * row
        return {
            "uid": uid_of(url, text),
            "url": url,
            "text": text,
            "language": "en" if row % 10 else "de",
            "language_score": 0.9,
            "license": "?" if row % 4 else "https://creativecommons.org/licenses/by/4.0/",
            "page_url": "http://page.test/",
            "crawl": self.crawl,
            "segment": self.segment,
            "wat_file": "a.warc.wat.gz",
        }

    def _scored(self, row: int) -> Record:
        pair = self.images[row]
        keep = ("url", "text", "license", "language", "language_score", "page_url")
        similarity = THRESHOLD + 0.005 * row if row < 24 else 0.29 - 0.005 * (row - 24)
        return {name: pair[name] for name in (*keep, "crawl", "segment", "wat_file")} | {
            "SAMPLE_ID": sample_id_of(pair["uid"]),
            "height": SIDES[row % 6],
            "width": SIDES[(row + 1) % 6],
            "sha256": hash_of(row),
            "md5": hash_of(row)[:32],
            "key": f"{row:09d}",
            "shard": 0,
            "similarity": similarity,
            "nsfw": ["UNLIKELY", "UNLIKELY", "UNSURE", "UNLIKELY", "NSFW"][row % 5],
            "nsfw_category_1": "x",
            "nsfw_category_2": "y",
            "text_names_minors": False,
            "underage_ranked": False,
            "animal_ranked": False,
        }

    def _sample(self, row: int) -> Record:
        scored = self._scored(row)
        upper = {"url", "text", "height", "width", "license", "nsfw", "language"}
        return {(name.upper() if name in upper else name): v for name, v in scored.items()}

    def _image(self, row: int) -> Record:
        pair = {name: value for name, value in self.unique[row].items() if name != "text"}
        pair["uid"] = pair["uid"].hex()
        ok = row < 40
        reason = None if ok else "http_4xx" if row < 50 else "too_small"
        return pair | {
            "caption": self.unique[row]["text"],
            "key": f"{row:09d}",
            "status": "success" if ok else "failed_to_download",
            "error_message": None if ok else "no",
            "width": 256 if ok else None,
            "height": 256 if ok else None,
            "original_width": SIDES[(row + 1) % 6] if ok else None,
            "original_height": SIDES[row % 6] if ok else None,
            "exif": None,
            "sha256": hash_of(row) if ok else None,
            "md5": hash_of(row)[:32] if ok else None,
            "reason": reason,
            "shard": 0,
            "redirects": None if row % 7 else ["http://cdn.test/"],
        }

    def table(self, asset: str, name: str, records: Sequence[Record], schema: pa.Schema) -> None:
        path = self.folder(asset) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = [{key: record[key] for key in schema.names} for record in records]
        pq.write_table(pa.Table.from_pylist(wanted, schema=schema), path)

    def manifest(self, asset: str, stages: Sequence[StageCounts], **metadata: object) -> None:
        value = {
            "asset": asset,
            "crawl": self.crawl,
            "segment": self.segment,
            "run_id": "11111111-2222",
            "code_version": "1-abcd",
            "fingerprint": "f",
            "data_version": "d",
            "started": "2026-01-02T03:04:05+01:00",
            "seconds": 1.5,
            "bytes": 1000,
            "files": describe(self.folder(asset), {}),
            "counts": [stage.to_json() for stage in stages],
            "metadata": metadata,
        }
        (self.folder(asset) / "_manifest.json").write_text(json.dumps(value))

    def describe_again(self, asset: str) -> None:
        """Have the manifest say what files there are now."""
        path = self.folder(asset) / "_manifest.json"
        value = json.loads(path.read_bytes()) | {"files": describe(self.folder(asset), {})}
        path.write_text(json.dumps(value))

    def write(self) -> None:
        self.table("pair_parquet", "part-00000.parquet", self.pairs[:30], schemas.PAIRS)
        self.table("pair_parquet", "part-00001.parquet", self.pairs[30:], schemas.PAIRS)
        self.manifest(
            "pair_parquet",
            [
                counts("wat", 20, {"not_html": 5}),
                counts("pairs", 60, {"no_alt": 100, "alt_too_short": 7}),
            ],
        )
        self.table("unique_pairs", "part-00000.parquet", self.unique, schemas.PAIRS)
        self.manifest("unique_pairs", [counts("unique_pairs", 55, {"duplicate": 5})])
        images = [self._image(row) for row in range(55)]
        path = part_path(self.folder("image_shards"), 0)
        write_table(path, pa.Table.from_pylist(images, schemas.IMAGES))
        keys, urls = [image["key"] for image in images], [image["url"] for image in images]
        write_table(ledger_of(path), ledger_table(keys, urls, [History().tried()] * len(images)))
        self.manifest("image_shards", [counts("images", 40, {"http_4xx": 10, "too_small": 5})])
        scored = [self._scored(row) for row in range(40)]
        self.table("embeddings", "part-00000.parquet", scored, schemas.EMBEDDED)
        self.manifest(
            "embeddings",
            [counts("embeddings", 40, {})],
            model="tiny/tiny",
            model_version="0123",
            dimensions=16,
        )
        self.table("scored_pairs", "part-00000.parquet", scored, schemas.SCORED)
        self.manifest(
            "scored_pairs",
            [],
            rows=40,
            prompts="laion400m v1",
            prompts_digest="4567",
            words="minors v1",
            model="tiny/tiny",
            model_version="0123",
        )
        samples = [self._sample(row) for row in range(24)]
        self.table("filtered_subset", "part-00000.parquet", samples, schemas.SUBSET)
        self.manifest(
            "filtered_subset",
            [counts("subset", 24, {"below_threshold": 16})],
            threshold=THRESHOLD,
            model="tiny/tiny",
            model_version="0123",
            recipe="laion400m v1",
        )

    def tar(self) -> None:
        """Write the shard's pictures as a webdataset."""
        shards = self.folder("image_shards") / SHARDS
        shards.mkdir()
        with tarfile.open(shards / "00000.tar", "w") as tar:
            for row, pair in enumerate(self.images):
                picture = io.BytesIO()
                Image.new("RGB", (40, 30), (row * 6, 0, 0)).save(picture, "JPEG")
                for kind, content in (
                    ("jpg", picture.getvalue()),
                    ("txt", pair["text"].encode()),
                    ("json", json.dumps({"url": pair["url"]}).encode()),
                ):
                    member = tarfile.TarInfo(f"{row:09d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def partitions(self) -> dict[str, Path]:
        assets = (
            "pair_parquet",
            "unique_pairs",
            "image_shards",
            "embeddings",
            "scored_pairs",
            "filtered_subset",
        )
        return {asset: self.folder(asset) for asset in assets}

    def stats(self) -> dict[str, Any]:
        out = self.folder("segment_stats")
        out.mkdir(parents=True, exist_ok=True)
        summary = segment_stats(self.partitions(), out)
        self.manifest("segment_stats", [])
        return summary


@pytest.fixture
def segment(tmp_path: Path) -> SegmentFiles:
    """One segment without statistics yet."""
    files = SegmentFiles(tmp_path / "lake", *SEGMENTS[0])
    files.write()
    return files


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three segments of two crawls, with statistics. Tests share it: do not write to it."""
    root = tmp_path_factory.mktemp("stats") / "lake"
    for crawl, name in SEGMENTS:
        files = SegmentFiles(root, crawl, name)
        files.write()
        files.stats()
    return root
