"""Results on standard output: tables to read, CSV or JSON."""

from __future__ import annotations

import json
import math
import sys
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from laion_assets.preflight.checks import Finding
    from laion_assets.preflight.estimate import Estimate


def print_csv(table: pa.Table) -> None:
    """Print a header and a line for each row; nested values stand there as JSON."""
    import pyarrow.csv

    pyarrow.csv.write_csv(_flat(table), sys.stdout.buffer)


def print_json(table: pa.Table) -> None:
    """Print an array with one object a line."""
    between = "["
    for batch in table.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            print(between + _json(row), end="")
            between = ",\n "
    print("[]" if between == "[" else "]")


def print_table(table: pa.Table) -> None:
    """Print aligned columns; a missing value is empty, a float has four decimals."""
    columns = table.column_names
    rows = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
    widths = [max([len(name), *(len(row[i]) for row in rows)]) for i, name in enumerate(columns)]
    for row in [columns, ["─" * width for width in widths], *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def print_finding(finding: Finding) -> None:
    """Print what a check found in a line, and its fix in another."""
    print(f"{finding.verdict:6} {finding.check:13} {finding.found}", flush=True)
    if finding.fix:
        print(f"{'':20} fix: {finding.fix}", flush=True)


def print_estimate(crawl: str, estimate: Estimate) -> None:
    """Print a run's stages as a table, and the sums that people decide by."""
    import pyarrow as pa

    extent, of = estimate.extent, estimate.of
    requests = {"WAT to pairs": estimate.crawl_requests, "download": estimate.image_requests}
    rows = [
        {
            "stage": line.stage,
            "comes out": f"{line.items:,.0f}",
            "hours": f"{line.unit_hours:,.1f} {'GPU' if line.gpu else 'core'}",
            "GB in": f"{line.comes_in / 1e9:,.1f}",
            "GB kept": f"{line.stored / 1e9:,.1f}",
            "requests": f"{requests.get(line.stage, 0):,.0f}",
        }
        for line in estimate.lines
    ]
    segments = "1 segment" if extent.segments == 1 else f"{extent.segments:,} segments"
    print(f"{crawl}: {segments}, {extent.wat_files:,} WAT files\n")
    print_table(pa.Table.from_pylist(rows))
    gpus = f"{of.gpus:.0f} GPU" if of.gpus else "no GPU"
    print(
        f"\nabout {estimate.hours:,.1f} hours on one machine with {of.machine_cores:.0f} cores and"
        f" {gpus}, the model being like ViT-B/32\n"
        f"{estimate.comes_in / 1e9:,.1f} GB from the network; {estimate.stored / 1e9:,.1f} GB stay"
        f" in the lake, and the making of a segment takes {estimate.disk / 1e9:,.1f} GB of disk\n"
        f"{estimate.crawl_requests:,.0f} requests to the crawl source and about"
        f" {estimate.image_requests:,.0f} to the hosts of images\n"
        f"assumed: {of.pairs_per_mb:.0f} pairs a MB of WAT, {of.unique:.0%} of them unique,"
        f" {of.alive:.0%} of URLs with an image, {of.kept:.0%} of images kept"
        " (docs/operations.md, sizing and cost)"
    )


def _flat(table: pa.Table) -> pa.Table:
    """Replace the columns that CSV has no cells for: nested values by JSON, bytes by hex digits."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_nested(kind) or pa.types.is_interval(kind) or pa.types.is_binary(kind):
            values = table[number].to_pylist()
            texts = [
                None if v is None else v.hex() if isinstance(v, bytes) else _json(v) for v in values
            ]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
    return table


def _json(value: object) -> str:
    return json.dumps(_json_value(value), ensure_ascii=False, allow_nan=False)


def _json_value(value: object) -> object:
    """The value as ``json.dumps`` takes it."""
    if isinstance(value, Decimal):  # DuckDB's sum of integers is one, too
        whole = value.is_finite() and value == value.to_integral_value()
        return int(value) if whole else _json_value(float(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN and no infinity
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, list) or type(value) is tuple:  # an interval is a named tuple
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("\n", " ")
