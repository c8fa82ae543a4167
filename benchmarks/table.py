"""A benchmark's table, printed and written into docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table; every column but the first is aligned to the right."""
    lines = [list(columns), ["---", *("---:" for _ in columns[1:])]]
    lines += [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """Describe the machine and the date in one line."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}), {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    )


def publish(name: str, text: str, document: Path = DOCUMENT) -> None:
    """Print ``text`` and put it between the markers of ``name`` in the document.

    The prose around the markers is written by hand. Raises ``ValueError`` if the document has no
    markers of this name.
    """
    print(text)
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    page = document.read_text(encoding="utf-8")
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document} has no {begin} … {end}")
    made = f"\nMade by `make bench-{name}` on {machine()}.\n\n{text}\n"
    document.write_text(f"{head}{begin}{made}{end}{tail}", encoding="utf-8")
    print(f"written into {document}", file=sys.stderr)
