"""Cost of a crawl, or of a part of it, in hours, bytes and euros, from rates and assumptions.

It only multiplies. The measured rates lie beside it in ``rates.json``, which ``python -m
deploy.cost`` writes from docs/benchmarks.md. Tables for people do not belong here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RATES: Final = Path(__file__).with_name("rates.json")
SEGMENTS: Final = 100
"""Segments of a crawl."""
_HOUR: Final = 3600.0


@dataclass(frozen=True)
class Assumptions:
    """Values that are not measured here. Each is an option of the command."""

    wat_files: float = 90_000
    """WAT files of one crawl; Common Crawl's `wat.paths.gz` lists them."""
    wat_mb: float = 230
    """Compressed size of a WAT file in MB."""
    pairs_per_mb: float = 104
    """English pairs per MB of WAT after the text rules: 300 billion image-text pairs of 5 million
    WAT files (cc2dataset's README) are 261 a MB, and 40 % of LAION-5B is English. The WAT of `make
    bench-wat` has 850."""
    unique: float = 0.3
    """Share of the pairs that no other WAT of the crawl has. A guess: see your own funnel."""
    alive: float = 0.6
    """Share of the URLs that give an image (CC12M after some years: 62 %)."""
    dead_ms: float = 1.0
    """CPU time of a URL that gives no image, in ms: the fetching process takes 1.1 to 1.2 ms a URL
    (2,000 URLs of `make bench-download`), whatever comes."""
    fetch_ms: float = 1.2
    """CPU time of any URL in the process that fetches it, in ms, measured in the same run. It
    bounds a machine, whatever its cores."""
    fetch_processes: float = 1
    """Processes that fetch, `[download] fetch_processes`."""
    hand_out_ms: float = 0.4
    """CPU time of a URL in the process that hands URLs out, where several others fetch, in ms: 0.4
    for an image (docs/downloading.md)."""
    asked_again: float = 0.1
    """Share of the URLs that a second pass asks for again, because they failed for a transient
    reason."""
    busy: float = 0.6
    """Share of the paid time of a core or GPU in which it works: a segment ends with its slowest
    hosts, and stages follow one another."""
    image_kb: float = 25
    """Size of a stored image of 256 pixels in KB, as JPEG of quality 95, with its share of tar and
    parquet (img2dataset's README: 190 million in 5 TB)."""
    quality: float = 1.0
    """Size of a stored image relative to JPEG quality 95: 0.68 at 90, 0.54 at 85, 0.41 at 75 (100
    pictures of `make bench-download`)."""
    machine_cores: float = 16
    """Cores of the one machine whose days are estimated."""
    gpus: float = 1
    """GPUs of that machine; without one its cores embed."""
    concurrency: float = 512
    """URLs asked at the same time, `[download] concurrency`."""
    url_s: float = 1.0
    """Time in seconds until a URL has answered or failed, on average. A guess: dead hosts take up
    to `total_timeout_s`, near ones a tenth of a second."""
    fetched_kb: float = 150
    """Size of an image in KB as the web sends it."""
    kept: float = 0.1
    """Share of the images that the recipe keeps (LAION-5B: 10 % of its candidates)."""
    dimensions: float = 512
    """Dimensions of an embedding."""
    gpu_images_per_s: float = 1500
    """Images per second on one GPU with ViT-B/32; reported by clip-retrieval for an RTX 3080, not
    measured here."""
    index_bytes: float = 70
    """Bytes of a vector in the served index."""
    indexed_per_core_s: float = 1150
    """Vectors indexed per core and second; autofaiss reports 200 million in 3 hours, assumed to be
    on 16 cores."""
    pair_bytes: float = 100
    """Parquet bytes of a row of pairs, of scored pairs, or of the subset without its vectors."""
    claim_bytes: float = 20
    """Bytes of a pair in the dedup ledger (`make bench-dedup`)."""
    core_hour: float = 0.04
    """Price of a core for an hour in euros."""
    gpu_hour: float = 0.60
    """Price of a GPU with its host for an hour in euros."""
    gb_month: float = 0.022
    """Price of a GB in an object store for a month in euros."""
    months: float = 1.0
    """Time for which the images and embeddings are kept, in months."""


@dataclass(frozen=True)
class Rates:
    """Measured rates; :meth:`shipped` has those of docs/benchmarks.md."""

    wat_mb_per_core_s: float
    claim_s_per_million: float
    download_cpu_s_per_1000: float
    scored_rows_per_s: float
    subset_rows_per_s: float
    embed_cpu_s_per_1000: float
    """CPU time of ViT-B/32 for 1,000 images and texts, where there is no GPU."""

    @classmethod
    def shipped(cls) -> Rates:
        """The rates in :data:`RATES`."""
        return cls(**json.loads(RATES.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Line:
    """Amounts of one stage; ``unit_hours`` are paid core hours, or GPU hours if ``gpu``."""

    stage: str
    items: float
    unit_hours: float
    comes_in: float
    """Bytes from the network."""
    stored: float
    """Bytes in the object store."""
    gpu: bool = False

    def euros(self, of: Assumptions) -> float:
        """Cost of computing and storing."""
        price = of.gpu_hour if self.gpu else of.core_hour
        return self.unit_hours * price + self.stored / 1e9 * of.gb_month * of.months


@dataclass(frozen=True)
class Amounts:
    """Rows that come out of the stages."""

    pairs: float
    urls: float
    """Unique pairs, each of which is asked for."""
    images: float
    kept: float

    @classmethod
    def of(cls, of: Assumptions) -> Amounts:
        pairs = of.wat_files * of.wat_mb * of.pairs_per_mb
        urls = pairs * of.unique
        return cls(pairs, urls, urls * of.alive, urls * of.alive * of.kept)


def download_hours(amounts: Amounts, of: Assumptions, rates: Rates) -> float:
    """Core hours of the download: the images, what gives none, and the second pass."""
    dead = amounts.urls * (1 - of.alive + of.asked_again)
    cpu = amounts.images / 1000 * rates.download_cpu_s_per_1000 + dead * of.dead_ms / 1000
    return cpu / _HOUR


def estimate(of: Assumptions, rates: Rates) -> list[Line]:
    """Estimate each stage of one crawl."""
    amounts = Amounts.of(of)
    pairs, urls, images, kept = amounts.pairs, amounts.urls, amounts.images, amounts.kept
    wat_bytes = of.wat_files * of.wat_mb * 1e6
    vectors = 2 * 2 * of.dimensions
    embed_s = 1 / of.gpu_images_per_s if of.gpus else rates.embed_cpu_s_per_1000 / 1000
    return [
        Line(
            "WAT to pairs",
            pairs,
            wat_bytes / 1e6 / rates.wat_mb_per_core_s / _HOUR / of.busy,
            wat_bytes,
            pairs * of.pair_bytes,
        ),
        Line(
            "unique pairs",
            urls,
            pairs / 1e6 * rates.claim_s_per_million / _HOUR / of.busy,
            0,
            urls * (of.pair_bytes + of.claim_bytes),
        ),
        Line(
            "download",
            images,
            download_hours(amounts, of, rates) / of.busy,
            images * of.fetched_kb * 1e3,
            images * of.image_kb * of.quality * 1e3,
        ),
        Line(
            "embed",
            images,
            images * embed_s / _HOUR / of.busy,
            0,
            images * vectors,
            gpu=of.gpus > 0,
        ),
        Line(
            "score and tag",
            images,
            images / rates.scored_rows_per_s / _HOUR / of.busy,
            0,
            images * of.pair_bytes,
        ),
        Line(
            "subset",
            kept,
            images / rates.subset_rows_per_s / _HOUR / of.busy,
            0,
            kept * (vectors + of.pair_bytes),
        ),
        Line(
            "index",
            kept,
            2 * kept / of.indexed_per_core_s / _HOUR / of.busy,
            0,
            2 * kept * of.index_bytes,
        ),
    ]


def hours_on_one_machine(of: Assumptions, rates: Rates) -> float:
    """Hours that one machine works on all of it, one stage after another.

    The download is bound by its fetching processes, by the process that hands URLs out to several,
    by the requests under way, or by the cores, whichever is slowest.
    """
    lines = estimate(of, rates)
    asked = Amounts.of(of).urls * (1 + of.asked_again)
    making = next(line.unit_hours for line in lines if line.stage == "download")
    waiting = asked * of.url_s / of.concurrency / _HOUR
    if of.fetch_processes > 1:
        one = max(of.fetch_ms / of.fetch_processes, of.hand_out_ms)
        cores = of.machine_cores  # what they fetch is part of `making`
    else:
        one, cores = of.fetch_ms, max(of.machine_cores - 1, 1)
    download = max(asked * one / 1000 / _HOUR / of.busy, waiting, making / cores)
    on_gpus = sum(line.unit_hours for line in lines if line.gpu)
    on_cores = sum(line.unit_hours for line in lines if not line.gpu) - making
    return download + on_gpus / max(of.gpus, 1) + on_cores / of.machine_cores


def days_of_a_segment(of: Assumptions, rates: Rates) -> float:
    """Days that one machine works on one of the segments of a crawl."""
    return hours_on_one_machine(of, rates) / SEGMENTS / 24
