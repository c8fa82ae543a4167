"""Rewrites the tables of docs/formats.md from the code: `make docs`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from laion_assets.layout import OVER_ALL, PARTITIONS, Partition, Table

PAGE: Final = Path(__file__).with_name("formats.md")
BEGIN: Final = "<!-- formats: begin -->\n"
END: Final = "<!-- formats: end -->"


def tables() -> str:
    """The generated part of the page."""
    assets = ["| asset | files | columns | view |", "|---|---|---|---|"]
    meanings: dict[tuple[str, str, str], list[str]] = {}
    for partition in (*PARTITIONS.values(), *OVER_ALL.values()):
        for table in partition.tables:
            assets.append(_row(partition, table.files, _names(table), table.view))
            for column in table.columns():
                holders = meanings.setdefault(column, [])
                holders += [] if partition.asset in holders else [partition.asset]
        if partition.files:
            files = "`, `".join(partition.files)
            assets.append(_row(partition, files, "", None))
    columns = ["| column | type | what it holds | in |", "|---|---|---|---|"]
    columns += [
        f"| `{name}` | {kind} | {meaning} | {', '.join(holders)} |"
        for (name, kind, meaning), holders in meanings.items()
    ]
    return "\n".join(assets) + "\n\nThe columns:\n\n" + "\n".join(columns) + "\n"


def _names(table: Table) -> str:
    return ", ".join(f"`{name}`" for name in table.schema.names)


def _row(partition: Partition, files: str, columns: str, view: str | None) -> str:
    shown = f"`{view}`" if view else ""
    return f"| `{partition.asset}` | `{files}` | {columns} | {shown} |"


def rewritten(page: str) -> str:
    """The page with its generated part as it should be."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{tables()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
