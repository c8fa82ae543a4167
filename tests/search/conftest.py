"""A small lake with real pictures, embedded by the shipped model; the service over real HTTP."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.download.options import DownloadOptions
from laion_assets.download.shard_files import SHARDS, tar_path
from laion_assets.files import write_json
from laion_assets.filtering.subset import NOTE, TakenWith
from laion_assets.generation.shown_samples import SHOWN
from laion_assets.heads.score import Scorer, as_column
from laion_assets.knn.build import build_index
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.query import subset_beside
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.sample_crawl.plan import Pictures, Plan
from laion_assets.schemas import SUBSET, sample_id_of, uid_of
from laion_assets.search.encoder import Encoder
from laion_assets.search.options import ServeOptions
from laion_assets.search.serve import make_server
from laion_assets.search.service import SearchService
from laion_assets.tables import part_path, write_table
from tests.heads.conftest import write_linear
from tests.processes import PATIENCE_S

CLIP = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny", device="cpu")
FIRST = SegmentKey("CC-MAIN-2000-05", "00")
SECOND = SegmentKey("CC-MAIN-2000-10", "00")
HOSTILE = '<img src=x onerror="document.title=1">'
UNKNOWN_URL = "javascript:alert(1)"
FREE = ServeOptions(port=0, query_rate=1e6, query_burst=1_000_000, watch_s=0.05)
"""Options without limits that a test could reach by accident."""
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Row:
    """A sample to write: a committed picture, and its columns in the subset."""

    file: str
    text: str
    nsfw: str = "UNLIKELY"
    license: str = "?"
    language: str = "en"
    page_url: str = "https://page.test/a"
    quality: int = 90

    @property
    def url(self) -> str:
        return f"http://pictures.test/{self.file}?{self.quality}"


def rows() -> tuple[list[Row], list[Row]]:
    """20 rows of the first segment and 10 of the second; the first ones are what tests look for."""
    pairs = {pair.file: pair for pair in reversed(Plan().group("matched"))}
    named = [Row(pair.file, pair.text) for pair in reversed(pairs.values())]
    apple = next(row for row in named if "red-apple" in row.file)
    pizza = next(row for row in named if "pizza" in row.file)
    others = [row for row in named if row not in (apple, pizza)]
    first = [
        apple,
        replace(apple, text="the same apple, saved again", quality=60),
        replace(others[0], nsfw="NSFW"),
        replace(others[1], nsfw="UNSURE"),
        replace(others[2], text=HOSTILE, page_url=UNKNOWN_URL, license=UNKNOWN_URL),
        replace(others[3], license="https://creativecommons.org/licenses/by-nc/2.0/"),
        replace(others[4], license="https://creativecommons.org/publicdomain/zero/1.0/"),
        replace(others[5], language="de"),
        *others[6:18],
    ]
    return first, [pizza, *others[18:27]]


class SmallLake:
    """Shards, subsets and a published index, as the graph writes them."""

    def __init__(self, root: Path, model: ClipModel) -> None:
        self.lake = LocalLake.at(root)
        self.model = model
        self.pictures = Pictures()
        self._embedded: dict[Row, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def root(self) -> Path:
        return self.lake.root

    @property
    def index(self) -> Path:
        return self.root / "search_index"

    def write(self, key: SegmentKey, chosen: Sequence[Row]) -> None:
        """The segment's shard, subset and index."""
        shard = self.lake.folder("image_shards", key)
        subset = self.lake.folder("filtered_subset", key)
        vectors_of = [image_path(subset, 0).parent, text_path(subset, 0).parent]
        for folder in (shard / SHARDS, *vectors_of):
            folder.mkdir(parents=True, exist_ok=True)
        pictures, records = [], []
        with tarfile.open(tar_path(shard, 0), "w") as tar:
            for n, row in enumerate(chosen):
                image, body = stored(self.pictures.read(row.file), row.quality)
                pictures.append(image)
                name = f"{n:09d}"
                member = tarfile.TarInfo(f"{name}.jpg")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
                records.append(record(key, name, row, hashlib.sha256(body).hexdigest()))
        stored_rows = [
            {"key": row["key"], "sha256": row["sha256"], "status": "success", "shard": 0}
            for row in records
        ]
        write_table(part_path(shard, 0), pa.Table.from_pylist(stored_rows))
        vectors = self.embed(chosen, pictures)
        for record_, (one, other) in zip(records, vectors, strict=True):
            record_["similarity"] = float(one @ other)
        for path_of, values in zip(
            (image_path, text_path), zip(*vectors, strict=True), strict=True
        ):
            np.save(path_of(subset, 0), np.stack(values).astype(np.float16))
        pq.write_table(pa.Table.from_pylist(records, schema=SUBSET), subset / "part-00000.parquet")
        out = self.lake.folder("knn_index", key)
        out.mkdir(parents=True, exist_ok=True)
        build_index(subset, out, IndexOptions(), model=self.model.identity)

    def embed(
        self, chosen: Sequence[Row], pictures: Sequence[Image.Image]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Vectors of images and texts; a copy of the lake does not embed again what it has."""
        new = [i for i, row in enumerate(chosen) if row not in self._embedded]
        images = self.model.encode_images([pictures[i] for i in new])
        texts = self.model.encode_texts([chosen[i].text for i in new])
        for i, image, text in zip(new, images, texts, strict=True):
            self._embedded[chosen[i]] = image, text
        return [self._embedded[row] for row in chosen]

    def copy(self, root: Path) -> SmallLake:
        shutil.copytree(self.root, root)
        copied = SmallLake(root, self.model)
        copied._embedded = self._embedded
        return copied

    def write_samples(self, page: str) -> dict[str, Any]:
        """Write a page of generated samples that shows one real sample; return its row."""
        folder = self.root / "dalle_samples"
        folder.mkdir()
        (folder / "report.html").write_text(page)
        part = self.lake.folder("filtered_subset", FIRST) / "part-00000.parquet"
        shown = pq.ParquetFile(part).read().slice(3, 1)
        pq.write_table(shown, folder / SHOWN)
        row: dict[str, Any] = shown.to_pylist()[0]
        return row

    def publish(self, *keys: SegmentKey) -> None:
        """Publish `search_index` over these segments."""
        parts = [SegmentIndex(key, "1") for key in keys]
        index_of = partial(self.lake.folder, "knn_index")
        inputs = {str(key): "1" for key in keys}
        with self.lake.publish("search_index", inputs=inputs, code_version="1") as staging:
            merge_indices(parts, index_of, staging.path, IndexOptions(), subset_beside(self.index))


def stored(body: bytes, quality: int) -> tuple[Image.Image, bytes]:
    """The picture as a shard stores it: 256 × 256 with white borders."""
    with Image.open(io.BytesIO(body)) as opened:
        picture = opened.convert("RGBA")
    picture.thumbnail((256, 256))
    square = Image.new("RGB", (256, 256), "white")
    square.paste(picture, ((256 - picture.width) // 2, (256 - picture.height) // 2), picture)
    encoded = io.BytesIO()
    square.save(encoded, "JPEG", quality=quality)
    return Image.open(encoded).convert("RGB"), encoded.getvalue()


def record(key: SegmentKey, name: str, row: Row, sha256: str) -> dict[str, object]:
    return {
        "SAMPLE_ID": sample_id_of(uid_of(row.url, row.text)),
        "URL": row.url,
        "TEXT": row.text,
        "HEIGHT": 300,
        "WIDTH": 400 + int(name),
        "LICENSE": row.license,
        "NSFW": row.nsfw,
        "similarity": 0.0,
        "LANGUAGE": row.language,
        "page_url": row.page_url,
        "sha256": sha256,
        "md5": "0",
        "key": name,
        "crawl": key.crawl,
        "segment": key.segment,
        "wat_file": "a.warc.wat.gz",
    }


@pytest.fixture(scope="session")
def model() -> ClipModel:
    return load_clip(CLIP)


@pytest.fixture(scope="session")
def small_lake(tmp_path_factory: pytest.TempPathFactory, model: ClipModel) -> SmallLake:
    """30 samples of two crawls. Tests share it read-only; :func:`own_lake` is a copy."""
    made = SmallLake(tmp_path_factory.mktemp("search") / "lake", model)
    first, second = rows()
    made.write(FIRST, first)
    made.write(SECOND, second)
    made.publish(FIRST, SECOND)
    return made


@pytest.fixture
def own_lake(tmp_path: Path, small_lake: SmallLake) -> SmallLake:
    """A copy of the small lake, for a test to change."""
    return small_lake.copy(tmp_path / "lake")


@dataclass
class Serving:
    """A running service."""

    service: SearchService
    url: str
    http: httpx.Client

    def another_client(self) -> httpx.Client:
        """One from another address than :attr:`http`."""
        address = httpx.HTTPTransport(local_address="127.0.0.2")
        return httpx.Client(base_url=self.url, transport=address, timeout=PATIENCE_S)

    def search(self, **asked: Any) -> dict[str, Any]:
        answer = self.http.post("/search", json=asked)
        assert answer.status_code == 200, answer.text
        value: dict[str, Any] = answer.json()
        return value

    def results(self, **asked: Any) -> list[dict[str, Any]]:
        return list(self.search(**asked)["results"])

    def captions(self, **asked: Any) -> list[str]:
        return [result["caption"] for result in self.results(**asked)]


@contextmanager
def serving(
    index: Path,
    model: ClipModel | None,
    options: ServeOptions = FREE,
    *,
    clip: ClipOptions = CLIP,
    download: DownloadOptions | None = None,
    subset: Path | None = None,
    heads: Sequence[Scorer] = (),
) -> Iterator[Serving]:
    """The service on a free port of loopback; ``model`` is one that is loaded already."""
    encoder = Encoder(clip, options, load=lambda _: model) if model else None
    service = SearchService(
        index,
        options,
        clip,
        download or DownloadOptions(),
        subset=subset,
        encoder=encoder,
        heads=heads,
    )
    addresses: list[str] = []
    listening = threading.Event()

    def ready(address: str) -> None:
        addresses.append(address)
        listening.set()

    server = make_server(service, ready)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert listening.wait(PATIENCE_S), "the service does not listen"
        with httpx.Client(base_url=addresses[0], timeout=PATIENCE_S) as http:
            yield Serving(service, addresses[0], http)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served(small_lake: SmallLake) -> Iterator[Serving]:
    """The service over the shared lake, without limits."""
    with serving(small_lake.index, small_lake.model) as running:
        yield running


@pytest.fixture(scope="session")
def heads(small_lake: SmallLake, tmp_path_factory: pytest.TempPathFactory) -> list[Scorer]:
    """An aesthetic head that prefers apples, the shipped one, and one that scored nothing yet."""
    folder = tmp_path_factory.mktemp("heads")
    apple = np.load(image_path(small_lake.lake.folder("filtered_subset", FIRST), 0))[0]
    linear = partial(write_linear, weights=apple.astype(float), model=small_lake.model.identity)
    return [
        Scorer.load("aesthetic", str(linear(folder / "apples.json"))),
        Scorer.load("new", str(linear(folder / "new.json"))),
        Scorer.load("watermark", "watermark-tiny"),
    ]


@pytest.fixture(scope="session")
def scored(
    small_lake: SmallLake, heads: list[Scorer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """The service over a lake whose first segment has both heads' scores, the second one's one."""
    own = small_lake.copy(tmp_path_factory.mktemp("scored") / "lake")
    aesthetic, _, watermark = heads
    add_scores(own, FIRST, [aesthetic, watermark])
    add_scores(own, SECOND, [aesthetic])
    with serving(own.index, own.model, heads=heads) as running:
        yield running


def add_scores(lake: SmallLake, key: SegmentKey, heads: list[Scorer]) -> None:
    folder = lake.lake.folder("filtered_subset", key)
    table: pa.Table = pq.ParquetFile(part_path(folder, 0)).read()
    images = np.load(image_path(folder, 0))
    for scorer in heads:
        table = table.append_column(scorer.column, as_column(scorer.score(images)))
    pq.write_table(table, part_path(folder, 0))
    note_heads(lake, key, {scorer.name: scorer.head.digest for scorer in heads})


def note_heads(lake: SmallLake, key: SegmentKey, heads: Mapping[str, str]) -> None:
    """Write what a subset records of the heads that scored it."""
    made = TakenWith(**lake.model.identity.model_dump(), recipe="r v1", threshold=None, heads=heads)
    write_json(lake.lake.folder("filtered_subset", key) / NOTE, made.model_dump())


@pytest.fixture(scope="session")
def clip_client() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script with ``ClipClient`` and ``Modality`` of clip-retrieval 2.45.0.

    Its package imports Flask, faiss and all of its back end, pinned to old releases. Only the
    client's file is loaded, as it was released.
    """
    folder = ROOT / ".cache" / "clip-retrieval-2.45.0"
    if not (folder / "clip_retrieval" / "clip_client.py").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*pip, str(folder), "clip-retrieval==2.45.0"], check=True)
    loading = (
        "import importlib.util, json, sys\n"
        f"path = {str(folder / 'clip_retrieval' / 'clip_client.py')!r}\n"
        "spec = importlib.util.spec_from_file_location('clip_client', path)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "ClipClient, Modality = module.ClipClient, module.Modality\n"
    )

    def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", loading + script, *args],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"]},
            timeout=PATIENCE_S,
        )

    return run
