"""``python -m benchmarks.embed.run``: samples per second, clip-retrieval's and ours."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from benchmarks import measure, table
from benchmarks.embed.make import make_shards
from benchmarks.embed.weights import MODEL, save_weights
from benchmarks.peer import WORK, peer_python
from laion_assets.clip.precision import cpu_has_bf16
from laion_assets.tables import PARTS

_HERE: Final = Path(__file__).parent
_FOLDER: Final = WORK / "embed"
_ROUNDS: Final = 2
_SHARDS: Final = 4  # so that each of the peer's readers has one
_ROWS: Final = {
    "model": "bare model, all texts at 77 tokens",
    "model_short": "bare model, texts at their own length",
    "theirs": "clip-retrieval 2.45.0",
    "embed": "ours, fp32",
    "bf16": "ours, bf16",
}


@dataclass(frozen=True)
class _Run:
    rate: float
    """Samples per second."""
    cost: float
    """CPU seconds per 1,000 samples, which a busy machine disturbs less than the rate."""
    waited: float = 0.0
    """Share of the time in which the model waited for pictures."""

    @classmethod
    def of(cls, answer: Mapping[str, float]) -> _Run:
        n, seconds = answer["n"], answer["seconds"]
        waited = answer.get("waited_seconds", 0.0) / seconds
        return cls(n / seconds, answer["cpu_seconds"] / n * 1000, waited)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="samples per forward pass, for all")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the fastest counts")
    args = parser.parse_args()

    peer = peer_python("clip_retrieval", _HERE / "clip_retrieval.txt")
    shards, weights = _shards(args.samples), _weights()
    runs: dict[str, list[_Run]] = {name: [] for name in _ROWS}
    peak: dict[str, int] = dict.fromkeys(_ROWS, 0)
    colds: list[dict[str, float]] = []
    about: dict[str, Any] = {}

    def run(name: str, precision: str, rounds: int, *ways: str) -> None:
        out = _FOLDER / "out" / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        places: list[str | Path] = [shards, weights, out, str(args.batch)]
        if name == "theirs":
            # A reader per core; its default is 4, whatever the number of cores.
            command: list[str | Path] = [peer, _HERE / "theirs.py", *places, str(args.cores)]
        else:
            module = [sys.executable, "-m", "benchmarks.embed.ours"]
            command = [*module, *places, str(rounds), precision, *ways]
        # Both libraries use as many threads as they have cores.
        measured = measure.run(["taskset", "--cpu-list", f"0-{args.cores - 1}", *command])
        answer = json.loads(measured.stdout.splitlines()[-1])
        found = answer.get("rounds") or {name: [answer]}
        for way, rounds_of in found.items():
            row = "bf16" if precision == "bf16" else way
            for one in rounds_of:
                print(f"{row:12} {one}", file=sys.stderr, flush=True)
                if one["n"] != args.samples:
                    raise SystemExit(f"{row} embedded {one['n']} of {args.samples}")
                runs[row].append(_Run.of(one))
            if len(found) == 1:  # memory is the process's
                peak[row] = max(peak[row], measured.peak_own_bytes)
        if precision == "fp32":
            colds.append(answer["cold"])
            about.update(answer)

    for _ in range(args.repeat):
        for _ in range(_ROUNDS):  # as many draws as ours, each in a process of its own
            run("theirs", "", 1)
        run("ours", "fp32", _ROUNDS, "model", "model_short", "embed")
        if cpu_has_bf16():
            run("bf16", "bf16", _ROUNDS, "embed")
    run("embed", "fp32", 1, "embed")
    runs["embed"].pop()  # it was for its memory, and would be one draw more than the peer has
    cosine = _lowest_cosine(_FOLDER / "out" / "theirs", _FOLDER / "out" / "embed")
    if cosine < 0.999:
        raise SystemExit(f"the embeddings differ: the lowest cosine of theirs and ours is {cosine}")

    columns = [
        "",
        "samples/s",
        "median",
        "times clip-retrieval",
        "of the bare model at 77 tokens",
        "of the bare model at their own length",
        "CPU s a 1,000",
        "median",
        "bare model's share of CPU s",
        "peak MB",
    ]
    rows = [_row(name, runs, peak[name]) for name in _ROWS if runs[name]]
    waited = statistics.median(run.waited for run in runs["embed"])
    start = {name: min(cold[name] for cold in colds) for name in colds[0]}
    text = table.markdown(columns, rows) + (
        f"\n\n{args.samples:,} samples in batches of {args.batch}, {args.cores} cores, "
        f"{about['device']}, {about['precision']}, the fastest of {_ROUNDS * args.repeat} "
        f"rounds and the median (memory: the largest of a process that "
        f"does nothing else). Ours waited for pictures in {waited:.1%} of its time. The lowest "
        f"cosine of their embedding and ours of the same picture or text is {cosine:.5f}. A cold "
        "start costs ours, in CPU seconds: "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in start.items())
        + "."
    )
    if runs["bf16"]:
        both = _lowest_cosine(
            _FOLDER / "out" / "embed", _FOLDER / "out" / "bf16", theirs_is_ours=True
        )
        text += f" The lowest cosine of bf16 and fp32 is {both:.5f}."
    else:
        text += " This CPU has neither AMX nor AVX512-BF16, so that bf16 is not offered here."
    table.publish("embed", text)


def _row(name: str, runs: Mapping[str, list[_Run]], peak: int) -> list[str]:
    mine = _rate(runs[name])
    return [
        _ROWS[name],
        f"{mine:.1f}",
        f"{statistics.median(run.rate for run in runs[name]):.1f}",
        f"{mine / _rate(runs['theirs']):.2f}",
        f"{mine / _rate(runs['model']):.0%}",
        f"{mine / _rate(runs['model_short']):.0%}",
        f"{_cost(runs[name]):.0f}",
        f"{statistics.median(run.cost for run in runs[name]):.0f}",
        f"{_cost(runs['model_short']) / _cost(runs[name]):.0%}",
        f"{peak / 1e6:,.0f}" if peak else "",
    ]


def _rate(runs: list[_Run]) -> float:
    return max(run.rate for run in runs)


def _cost(runs: list[_Run]) -> float:
    return min(run.cost for run in runs)


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


def _lowest_cosine(theirs: Path, ours: Path, *, theirs_is_ours: bool = False) -> float:
    """Lowest cosine over all pictures and texts, joined by the samples' keys."""
    lowest = 1.0
    of_ours = (PARTS, "_{}", "key")
    layouts = (of_ours if theirs_is_ours else ("metadata/*", "{}", "image_path"), of_ours)
    for kind in ("img_emb", "text_emb"):
        rows = []
        for folder, (metadata, vectors_in, column) in zip((theirs, ours), layouts, strict=True):
            keys = [
                key
                for path in sorted(folder.glob(metadata))
                for key in pq.ParquetFile(path).read([column])[column].to_pylist()
            ]
            embedded = folder / vectors_in.format(kind)
            vectors = np.concatenate([np.load(path) for path in sorted(embedded.iterdir())])
            rows.append(vectors[np.argsort(keys)].astype(np.float32))
        lowest = min(lowest, float((rows[0] * rows[1]).sum(axis=1).min()))
    return lowest


if __name__ == "__main__":
    main()
