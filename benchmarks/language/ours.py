"""CLD2's answers: ``python -m benchmarks.language.ours NAME LABELLED``; prints a JSON line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pycld2

from laion_assets.pairs.language import detect


def best_effort(text: str) -> str:
    """Make CLD2 guess, and take its first guess, as the LAION workers of 2021 did."""
    code: str = pycld2.detect(text, isPlainText=True, bestEffort=True)[2][0][1]
    return "unknown" if code == "un" else code


if __name__ == "__main__":
    lines = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
    texts = [line.partition("\t")[2] for line in lines]
    way = {"ours": lambda text: detect(text)[0], "best_effort": best_effort}[sys.argv[1]]
    started = time.perf_counter()
    codes = [way(text) for text in texts]
    print(json.dumps({"seconds": time.perf_counter() - started, "codes": codes}))
