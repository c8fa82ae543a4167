"""Cost of one crawl in bytes, hours and euros, from measured rates and stated prices.

``python -m deploy.cost`` prints the table of docs/operations.md and writes it there. It only
multiplies: change an assumption by its option, and read the new table.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from benchmarks.table import DOCUMENT, markdown

OPERATIONS: Final = DOCUMENT.parent / "operations.md"
_HOUR: Final = 3600.0
_SCORED: Final = "all of these, read and written: `scored_pairs`"
_TAKEN: Final = "a subset with its embeddings, read and written: `filtered_subset`"
_BEGIN: Final = "<!-- begin cost -->"
_END: Final = "<!-- end cost -->"


@dataclass(frozen=True)
class Assumptions:
    """Values that are not measured here. Each is an option of the command."""

    wat_files: float = 90_000
    """WAT files of one crawl; Common Crawl's `wat.paths.gz` lists them."""
    wat_mb: float = 230
    """Compressed size of a WAT file in MB."""
    pairs_per_mb: float = 850
    """English pairs per MB of WAT after the text rules: 340,298 from 400 MB in `make bench-wat`."""
    unique: float = 0.3
    """Share of the pairs that no other WAT of the crawl has. A guess: see your own funnel."""
    alive: float = 0.6
    """Share of the URLs that give an image (CC12M after some years: 62 %)."""
    image_kb: float = 25
    """Size of a stored image of 256 pixels in KB, with its share of tar and parquet."""
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
    """Amounts of one stage; ``unit_hours`` are core hours, or GPU hours if ``gpu``."""

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


def estimate(of: Assumptions, rates: Rates) -> list[Line]:
    """Estimate each stage of one crawl."""
    wat_bytes = of.wat_files * of.wat_mb * 1e6
    pairs = of.wat_files * of.wat_mb * of.pairs_per_mb
    unique = pairs * of.unique
    images = unique * of.alive
    kept = images * of.kept
    vectors = 2 * 2 * of.dimensions
    return [
        Line(
            "WAT to pairs",
            pairs,
            wat_bytes / 1e6 / rates.wat_mb_per_core_s / _HOUR,
            wat_bytes,
            pairs * of.pair_bytes,
        ),
        Line(
            "unique pairs",
            unique,
            pairs / 1e6 * rates.claim_s_per_million / _HOUR,
            0,
            unique * (of.pair_bytes + of.claim_bytes),
        ),
        Line(
            "download",
            images,
            unique / 1000 * rates.download_cpu_s_per_1000 / _HOUR,
            images * of.fetched_kb * 1e3,
            images * of.image_kb * 1e3,
        ),
        Line("embed", images, images / of.gpu_images_per_s / _HOUR, 0, images * vectors, gpu=True),
        Line(
            "score and tag",
            images,
            images / rates.scored_rows_per_s / _HOUR,
            0,
            images * of.pair_bytes,
        ),
        Line(
            "subset",
            kept,
            images / rates.subset_rows_per_s / _HOUR,
            0,
            kept * (vectors + of.pair_bytes),
        ),
        Line(
            "index",
            kept,
            2 * kept / of.indexed_per_core_s / _HOUR,
            0,
            2 * kept * of.index_bytes,
        ),
    ]


def table(of: Assumptions, rates: Rates, segments: int = 100) -> str:
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
            f"{line.euros(of) / segments:,.2f}",
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
            f"{total / segments:,.2f}",
        ]
    )
    heads = ["stage", "comes out", "hours", "TB in", "TB kept", "€ a crawl", "€ a segment"]
    return markdown(heads, rows)


def _count(n: float) -> str:
    return f"{n / 1e9:,.2f} billion" if n >= 1e9 else f"{n / 1e6:,.0f} million"


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
    text = table(Assumptions(**args), measured())
    print(text)
    if not only_print:
        page = document.read_text(encoding="utf-8")
        head, _, rest = page.partition(_BEGIN)
        _, _, tail = rest.partition(_END)
        document.write_text(f"{head}{_BEGIN}\n{text}\n{_END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
