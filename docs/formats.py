"""Rewrites the tables of docs/ that are made from the code: `make docs`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from laion_assets.comparison.options import ComparisonOptions
from laion_assets.download.errors import TRANSIENT
from laion_assets.funnel import REASONS
from laion_assets.layout import OVER_ALL, PARTITIONS, Partition, Table
from laion_assets.settings import Settings

FOLDER: Final = Path(__file__).parent

SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "pairs": {
        "alt_too_short": "pairs.min_text_chars",
        "alt_too_long": "pairs.max_text_chars",
        "alt_few_words": "pairs.min_words",
        "alt_file_name": "pairs.refuse_file_name_texts",
        "url_too_long": "pairs.max_url_chars",
        "url_suffix": "pairs.refused_suffixes",
        "url_placeholder": "pairs.refuse_placeholders",
        "url_many_texts": "pairs.max_texts_per_url",
        "language": "pairs.languages",
    },
    "images": {
        "timeout": "download.total_timeout_s",
        "host_down": "download.host_failures",
        "busy": "download.busy_retries",
        "redirects": "download.max_redirects",
        "opt_out": "download.respect_opt_out",
        "robots": "download.respect_robots_txt",
        "changed": "download.take_changed",
        "too_large": "download.max_bytes",
        "too_small": "download.min_bytes",
        "too_many_pixels": "download.max_pixels",
        "too_narrow": "download.max_aspect_ratio",
        "decode_timeout": "download.decode_timeout_s",
        "decoder_failed": "download.decode_timeout_s",
    },
    "subset": {
        "below_threshold": "subset.threshold",
        "unsafe_minor_text": "subset.drop_minor_text",
        "unsafe_underage": "subset.drop_underage",
        "unsafe_animal": "subset.drop_animal",
        "predicate": "subset.where",
    },
}
"""Stage -> reason -> the setting that decides most of it, as section.name."""


def formats() -> str:
    """The tables of formats.md."""
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
    return ", ".join(f"`{name}`" for name in table.shown.names)


def _row(partition: Partition, files: str, columns: str, view: str | None) -> str:
    shown = f"`{view}`" if view else ""
    return f"| `{partition.asset}` | `{files}` | {columns} | {shown} |"


def refusals() -> str:
    """The table of refusals.md."""
    rows = ["| stage | reason | what it means | setting | later |", "|---|---|---|---|---|"]
    for stage, reasons in REASONS.items():
        settings = SETTINGS.get(stage, {})
        if unknown := settings.keys() - reasons.keys():
            raise KeyError(f"stage {stage} has no reason {', '.join(unknown)}")
        for reason, meaning in reasons.items():
            setting = _setting(settings[reason]) if reason in settings else ""
            later = "tried again" if stage == "images" and reason in TRANSIENT else ""
            rows.append(f"| `{stage}` | `{reason}` | {meaning} | {setting} | {later} |")
    return "\n".join(rows) + "\n"


def _setting(name: str) -> str:
    """The setting and its default. Raises ``AttributeError`` for one that does not exist."""
    value: Any = Settings()
    for part in name.split("."):
        value = getattr(value, part)
    section, _, option = name.partition(".")
    shown = "" if value is None else f" = {json.dumps(value)}"
    return f"`[{section}] {option}{shown}`"


def comparison() -> str:
    """The table of recipe-comparison.md."""
    rows = ["| option | default | what it sets |", "|---|---|---|"]
    rows += [
        f"| `{name}` | `{json.dumps(field.default)}` | {field.description} |"
        for name, field in ComparisonOptions.model_fields.items()
    ]
    return "\n".join(rows) + "\n"


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "formats": formats,
    "refusals": refusals,
    "recipe-comparison": comparison,
}
"""Page -> what makes its generated part."""


def rewritten(name: str) -> tuple[str, str]:
    """The page as it is, and with its generated part as it should be."""
    page = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return page, f"{before}{begin}{PAGES[name]()}{end}{after}"


if __name__ == "__main__":
    for name in PAGES:
        (FOLDER / f"{name}.md").write_text(rewritten(name)[1], encoding="utf-8")
