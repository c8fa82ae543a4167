"""``python -m benchmarks.embed.run``: samples per second, clip-retrieval's and ours."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from benchmarks import measure, table
from benchmarks.embed.make import make_shards
from benchmarks.embed.weights import MODEL, save_weights
from benchmarks.peer import WORK, peer_python
from laion_assets.tables import PARTS

_HERE: Final = Path(__file__).parent
_FOLDER: Final = WORK / "embed"
_SHARDS: Final = 4  # so that each of the peer's readers has one
_ROWS: Final = {
    "model": "floor: bare model, all texts at 77 tokens",
    "model_short": "floor: bare model, texts at their own length",
    "theirs": "clip-retrieval 2.45.0",
    "embed": "ours",
}


@dataclass(frozen=True)
class _Run:
    rate: float
    """Samples per second."""
    cost: float
    """CPU seconds per 1,000 samples, which a busy machine disturbs less than the rate."""
    peak_bytes: int
    answer: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="samples per forward pass, for all")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median counts")
    args = parser.parse_args()

    peer = peer_python("clip_retrieval", _HERE / "clip_retrieval.txt")
    shards, weights = _shards(args.samples), _weights()
    runs: dict[str, list[_Run]] = {name: [] for name in _ROWS}
    # In rounds, so that a busy moment of the machine does not hit one contestant alone.
    for turn in range(args.repeat):
        for name in list(_ROWS)[:: 1 if turn % 2 == 0 else -1]:
            run = _run(name, peer, shards, weights, args.batch, args.cores)
            print(f"{name:12} {run}", file=sys.stderr, flush=True)
            if run.answer["n"] != args.samples:
                raise SystemExit(f"{name} embedded {run.answer['n']} of {args.samples}")
            runs[name].append(run)
    cosine = _lowest_cosine(_FOLDER / "out" / "theirs", _FOLDER / "out" / "embed")
    if cosine < 0.999:
        raise SystemExit(f"the embeddings differ: the lowest cosine of theirs and ours is {cosine}")

    columns = [
        "",
        "samples/s",
        "times clip-retrieval",
        "of the 77-token floor",
        "of the own-length floor",
        "CPU s a 1,000",
        "floor's share of CPU s",
        "peak MB",
    ]
    rows = [_row(name, runs) for name in _ROWS]
    ran = runs["embed"][0].answer
    waited = statistics.median(
        run.answer["waited_seconds"] / run.answer["seconds"] for run in runs["embed"]
    )
    text = table.markdown(columns, rows) + (
        f"\n\n{args.samples:,} samples in batches of {args.batch}, {args.cores} cores, "
        f"{ran['device']}, {ran['precision']}, median of {args.repeat} (memory: the largest). "
        f"Ours waited for pictures in {waited:.1%} of its time. The lowest cosine of their "
        f"embedding and ours of the same picture or text is {cosine:.5f}."
    )
    table.publish("embed", text)


def _row(name: str, runs: dict[str, list[_Run]]) -> list[str]:
    mine = _rate(runs[name])
    return [
        _ROWS[name],
        f"{mine:.1f}",
        f"{mine / _rate(runs['theirs']):.2f}",
        f"{mine / _rate(runs['model']):.0%}",
        f"{mine / _rate(runs['model_short']):.0%}",
        f"{_cost(runs[name]):.0f}",
        f"{_cost(runs['model_short']) / _cost(runs[name]):.0%}",
        f"{max(run.peak_bytes for run in runs[name]) / 1e6:,.0f}",
    ]


def _rate(runs: list[_Run]) -> float:
    return statistics.median(run.rate for run in runs)


def _cost(runs: list[_Run]) -> float:
    return statistics.median(run.cost for run in runs)


def _run(name: str, peer: Path, shards: Path, weights: Path, batch: int, cores: int) -> _Run:
    out = _FOLDER / "out" / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    places: list[str | Path] = [shards, weights, out, str(batch)]
    if name == "theirs":
        # A reader per core; its default is 4, whatever the number of cores.
        command: list[str | Path] = [peer, _HERE / "theirs.py", *places, str(cores)]
    else:
        command = [sys.executable, "-m", "benchmarks.embed.ours", name, *places]
    # Both libraries use as many threads as they have cores.
    measured = measure.run(["taskset", "--cpu-list", f"0-{cores - 1}", *command])
    answer = json.loads(measured.stdout.splitlines()[-1])
    return _Run(
        rate=answer["n"] / answer["seconds"],
        cost=answer["cpu_seconds"] / answer["n"] * 1000,
        peak_bytes=measured.peak_own_bytes,
        answer=answer,
    )


def _shards(samples: int) -> Path:
    folder = _FOLDER / f"shards-{samples}"
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        print(f"making {folder}", file=sys.stderr, flush=True)
        make_shards(making, samples, -(-samples // _SHARDS))
        making.rename(folder)
    return folder


def _weights() -> Path:
    path = _FOLDER / f"{MODEL}-random.safetensors"
    if not path.exists():
        save_weights(path)
    return path


def _lowest_cosine(theirs: Path, ours: Path) -> float:
    """Lowest cosine over all pictures and texts, joined by the samples' keys."""
    lowest = 1.0
    for kind in ("img_emb", "text_emb"):
        rows = []
        for metadata, embedded, column in (
            (theirs.glob("metadata/*"), theirs / kind, "image_path"),
            (ours.glob(PARTS), ours / f"_{kind}", "key"),
        ):
            keys = [
                key
                for path in sorted(metadata)
                for key in pq.ParquetFile(path).read([column])[column].to_pylist()
            ]
            vectors = np.concatenate([np.load(path) for path in sorted(embedded.iterdir())])
            rows.append(vectors[np.argsort(keys)].astype(np.float32))
        lowest = min(lowest, float((rows[0] * rows[1]).sum(axis=1).min()))
    return lowest


if __name__ == "__main__":
    main()
