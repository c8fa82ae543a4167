"""``python -m benchmarks.heads.run``: heads of published shapes, in rows per second."""

from __future__ import annotations

import argparse
from typing import Final

from benchmarks.filtering.run import publish

STEPS: Final = {
    "linear": "a linear head, as LAION's aesthetic predictor folded into one layer",
    "layers": "a head of four layers, as LAION's NSFW detector for L/14",
    "score": "`scored_pairs` without heads, read and written",
    "another head": "the head of four layers for scored pairs, read and written",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--dim", type=int, default=768, help="dimensions of an embedding: ViT-L/14 has 768"
    )
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    publish("heads", STEPS, args.rows, args.dim, args.repeat)


if __name__ == "__main__":
    main()
