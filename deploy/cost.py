"""Cost of one crawl in bytes, hours and euros, from measured rates and stated prices.

``python -m deploy.cost`` prints the tables of docs/operations.md and writes them there. It only
multiplies: change an assumption by its option, and read the new tables.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

from benchmarks.table import DOCUMENT, markdown

OPERATIONS: Final = DOCUMENT.parent / "operations.md"
_HOUR: Final = 3600.0
_SCORED: Final = "all of these, read and written: `scored_pairs`"
_TAKEN: Final = "a subset with its embeddings, read and written: `filtered_subset`"
_FULL: Final = 850
"""English pairs per MB of the WAT of `make bench-wat`, denser than any crawl seen."""
SEGMENTS: Final = 100
"""Segments of a crawl."""


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
    """CPU time of any URL in the one process that fetches, in ms, measured in the same run. It
    bounds a machine, whatever its cores."""
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
    """Measured rates, from docs/benchmarks.md."""

    wat_mb_per_core_s: float
    claim_s_per_million: float
    download_cpu_s_per_1000: float
    scored_rows_per_s: float
    subset_rows_per_s: float


def _cell(text: str, row: str, column: str) -> float:
    """Number in the first table that has the row and the column. Raises ``ValueError``."""
    for lines in re.split(r"\n\s*\n", text):
        table = [
            [cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in lines.splitlines()
            if line.startswith("|")
        ]
        if not table or column not in table[0]:
            continue
        for cells in table[1:]:
            if cells[0] == row:
                return float(cells[table[0].index(column)].replace(",", ""))
    raise ValueError(f"the benchmarks have no row {row!r} with a column {column!r}")


def measured(document: Path = DOCUMENT) -> Rates:
    """Read the measured rates. Raises ``ValueError`` naming a figure that the document lacks."""
    text = document.read_text(encoding="utf-8")
    return Rates(
        wat_mb_per_core_s=_cell(text, "ours, all rules, English, parquet", "MB/s"),
        claim_s_per_million=_cell(text, "100", "CPU s"),
        download_cpu_s_per_1000=_cell(text, "clean: ours", "CPU s a 1,000"),
        scored_rows_per_s=_cell(text, _SCORED, "rows/s"),
        subset_rows_per_s=_cell(text, _TAKEN, "rows/s"),
    )


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
            images / of.gpu_images_per_s / _HOUR / of.busy,
            0,
            images * vectors,
            gpu=True,
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


def days_of_a_segment(of: Assumptions, rates: Rates) -> float:
    """Days that one machine with a GPU works on one segment, one stage after another.

    The download is bound by its one fetching process or by the other cores, whichever is slower.
    """
    amounts = Amounts.of(of)
    lines = {line.stage: line.unit_hours for line in estimate(of, rates)}
    gpu = lines.pop("embed")
    urls = amounts.urls * (1 + of.asked_again)
    fetching = urls * of.fetch_ms / 1000 / _HOUR / of.busy
    making = lines.pop("download") / (of.machine_cores - 1)
    rest = sum(lines.values()) / of.machine_cores
    return (max(fetching, making) + gpu + rest) / SEGMENTS / 24


def cost_table(of: Assumptions, rates: Rates) -> str:
    """Write the table of a whole crawl, with one of its segments in the last column."""
    lines = estimate(of, rates)
    rows = [
        [
            line.stage,
            _count(line.items),
            f"{line.unit_hours:,.0f} {'GPU' if line.gpu else 'core'}",
            f"{line.comes_in / 1e12:,.1f}",
            f"{line.stored / 1e12:,.2f}",
            f"{line.euros(of):,.0f}",
            f"{line.euros(of) / SEGMENTS:,.2f}",
        ]
        for line in lines
    ]
    total = sum(line.euros(of) for line in lines)
    rows.append(
        [
            "**all**",
            "",
            "",
            f"{sum(line.comes_in for line in lines) / 1e12:,.1f}",
            f"{sum(line.stored for line in lines) / 1e12:,.2f}",
            f"{total:,.0f}",
            f"{total / SEGMENTS:,.2f}",
        ]
    )
    heads = ["stage", "comes out", "hours", "TB in", "TB kept", "€ a crawl", "€ a segment"]
    return markdown(heads, rows)


def size_table(of: Assumptions, rates: Rates) -> str:
    """Write what one segment is: at LAION-400M's size, by these assumptions, and at its densest."""
    per_mb = SEGMENTS / (of.wat_files * of.wat_mb)
    densities = {
        "LAION-400M's: 5 million pairs": 5e6 * per_mb,
        f"these assumptions: {of.pairs_per_mb:g} pairs a MB": of.pairs_per_mb,
        f"full density: {_FULL:g} pairs a MB": _FULL,
    }
    rows = []
    for name, density in densities.items():
        dense = replace(of, pairs_per_mb=density)
        amounts, lines = Amounts.of(dense), estimate(dense, rates)
        rows.append(
            [
                name,
                *(
                    _count(n / SEGMENTS)
                    for n in (amounts.pairs, amounts.urls, amounts.images, amounts.kept)
                ),
                f"{sum(line.stored for line in lines) / SEGMENTS / 1e9:,.0f}",
                f"{days_of_a_segment(dense, rates):.2f}",
                f"{sum(line.euros(of) for line in lines) / SEGMENTS:,.2f}",
            ]
        )
    heads = ["a segment", "pairs", "URLs asked", "images", "kept", "GB", "days", "€"]
    return markdown(heads, rows)


def dial_table(of: Assumptions, rates: Rates) -> str:
    """Write what the dials that move most of the money do to a crawl."""
    dials = {
        "as above": of,
        "JPEG quality 85": replace(of, quality=0.54),
        "JPEG quality 75": replace(of, quality=0.41),
        "images and embeddings kept for a year": replace(of, months=12),
        "the same at JPEG quality 85": replace(of, months=12, quality=0.54),
        "a tenth of the WAT files": replace(of, wat_files=of.wat_files / 10),
        "spot prices, a third": replace(of, core_hour=of.core_hour / 3, gpu_hour=of.gpu_hour / 3),
    }
    rows = []
    for name, turned in dials.items():
        lines = estimate(turned, rates)
        stored = sum(line.stored for line in lines)
        rows.append(
            [
                name,
                f"{sum(line.euros(turned) for line in lines) - _room(turned, stored):,.0f}",
                f"{_room(turned, stored):,.0f}",
                f"{sum(line.euros(turned) for line in lines):,.0f}",
            ]
        )
    return markdown(["a crawl", "€ computing", "€ room", "€"], rows)


def _room(of: Assumptions, stored: float) -> float:
    return stored / 1e9 * of.gb_month * of.months


def _count(n: float) -> str:
    if n >= 1e9:
        return f"{n / 1e9:,.2f} billion"
    if n < 1e6:
        return f"{n / 1e3:,.0f} thousand"
    return f"{n / 1e6:,.1f} million" if n < 1e7 else f"{n / 1e6:,.0f} million"


TABLES: Final = {"sizes": size_table, "cost": cost_table, "dials": dial_table}
"""Name of a table in the document -> what writes it."""


def main(argv: Sequence[str] | None = None, document: Path = OPERATIONS) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Assumptions):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=float, default=field.default, dest=field.name
        )
    parser.add_argument(
        "--print", action="store_true", help="print only, do not write the document"
    )
    args = vars(parser.parse_args(argv))
    only_print = args.pop("print")
    of, rates = Assumptions(**args), measured()
    made = {name: make(of, rates) for name, make in TABLES.items()}
    print("\n\n".join(made.values()))
    if not only_print:
        page = document.read_text(encoding="utf-8")
        for name, text in made.items():
            head, _, rest = page.partition(f"<!-- begin {name} -->")
            _, _, tail = rest.partition(f"<!-- end {name} -->")
            page = f"{head}<!-- begin {name} -->\n{text}\n<!-- end {name} -->{tail}"
        document.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
