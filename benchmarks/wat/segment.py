"""A segment with two workers, as in the asset: ``python -m benchmarks.wat.segment OUT WAT…``."""

from __future__ import annotations

import sys
from pathlib import Path

from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.segment import extract_segment


def link(wat_file: str, to: Path) -> None:
    to.unlink(missing_ok=True)
    to.symlink_to(wat_file)


if __name__ == "__main__":
    extract_segment(
        sys.argv[2:],
        link,
        Path(sys.argv[1]),
        PairRules(),
        crawl="CC-MAIN-2024-22",
        segment="00",
        workers=2,
    )
