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


_FLAGS: Final = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sha_ni")
"""What of a CPU's flags decides between versions of the same code."""


def machine() -> str:
    """Describe the machine and the date in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores ({_cpu()}), {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    )


def _cpu() -> str:
    """The CPU's name, its numbers, since names are often general, and its flags."""
    about: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        about.setdefault(name.strip(), value.strip())
    name = about.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in about:
        name += f" family {about['cpu family']} model {about['model']}"
    flags = [flag for flag in _FLAGS if flag in about.get("flags", "").split()]
    return ", ".join([name, *([" ".join(flags)] if flags else [])])


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
