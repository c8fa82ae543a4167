"""Cost of one crawl: the tables of docs/operations.md, by :mod:`laion_assets.preflight.cost`.

``python -m deploy.cost`` prints the tables and writes them there, and the measured rates of
docs/benchmarks.md into the package. Change an assumption by its option, and read the new tables.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Final

from benchmarks.table import DOCUMENT, markdown
from laion_assets.files import write_json
from laion_assets.preflight.cost import (
    RATES,
    SEGMENTS,
    Amounts,
    Assumptions,
    Rates,
    days_of_a_segment,
    estimate,
)

OPERATIONS: Final = DOCUMENT.parent / "operations.md"
_SCORED: Final = "all of these, read and written: `scored_pairs`"
_TAKEN: Final = "a subset with its embeddings, read and written: `filtered_subset`"
_FULL: Final = 850
"""English pairs per MB of the WAT of `make bench-wat`, denser than any crawl seen."""


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
        embed_cpu_s_per_1000=_cell(text, "ours, fp32", "CPU s a 1,000"),
    )


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


def main(
    argv: Sequence[str] | None = None, document: Path = OPERATIONS, rates_file: Path = RATES
) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Assumptions):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=float, default=field.default, dest=field.name
        )
    parser.add_argument("--print", action="store_true", help="print only, write no file")
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
        write_json(rates_file, asdict(rates))


if __name__ == "__main__":
    main()
