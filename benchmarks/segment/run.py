"""``python -m benchmarks.segment.run``: one segment from WAT files to its index, ours and theirs.

The web is a loopback server on port 80, as the names of the sample web have no port; that needs
root, or ``net.ipv4.ip_unprivileged_port_start`` at 80 or below.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import measure, table
from benchmarks.download.run import SHARD, TIMEOUT_S, their_command
from benchmarks.download.web import GOOD_HOSTS
from benchmarks.peer import WORK, peer_python
from benchmarks.segment.make import CRAWL, build_crawl, wat_files
from laion_assets.clip.identity import WEIGHTS
from laion_assets.clip.model import CONFIGS
from laion_assets.clip.thresholds import threshold_for
from laion_assets.lake import LocalLake
from laion_assets.layout import FILTERED_SUBSET, PARTITIONS, SegmentKey
from laion_assets.settings import DAGSTER_CONFIG
from laion_assets.tables import read_parquet

_HERE: Final = Path(__file__).parent
_PEERS: Final = _HERE.parent
_FOLDER: Final = WORK / "segment"
_MODEL: Final = "laion-assets-tiny"
_PORT: Final = 80
_AT_ONCE: Final = 64
# Ours by step, theirs by tool.
_STAGES: Final = {
    "WAT to pairs": (("wat_manifest", "pair_parquet", "unique_pairs"), ("cc2dataset", "glue")),
    "images": (("image_shards",), ("img2dataset",)),
    "embed and filter, near-duplicates": (
        ("embeddings", "near_duplicates", "scored_pairs", "filtered_subset"),
        ("open_clip",),
    ),
    "index": (("knn_index",), ("autofaiss",)),
    "statistics": (("segment_stats",), ()),
}

Kept = frozenset[tuple[str, str]]


@dataclass
class _Run:
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    kept: Kept = frozenset()
    unsafe: int = 0
    """Pairs that our safety rules drop."""
    bytes: int = 0

    def add(self, stage: str, measured: measure.Measured) -> None:
        self.seconds += measured.seconds
        self.cpu_seconds += measured.cpu_seconds
        self.peak_bytes = max(self.peak_bytes, measured.peak_own_bytes)
        self.stages[stage] = measured.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the fastest counts")
    args = parser.parse_args()
    # Change the number when the crawl is made differently.
    crawl = _FOLDER / f"crawl-2-{args.pairs}"
    build_crawl(crawl, args.pairs)
    runs: dict[str, list[_Run]] = {"theirs": [], "ours": []}
    for turn in range(args.repeat):
        for who in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            root = _FOLDER / who
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            with _web(crawl):
                run = _ours(root) if who == "ours" else _theirs(root, crawl)
            run.bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
            print(f"{who} {run.seconds:.1f} s {run.stages}", file=sys.stderr, flush=True)
            runs[who].append(run)
    table.publish("segment", _report(args.pairs, args.repeat, runs))


def _report(pairs: int, repeat: int, runs: dict[str, list[_Run]]) -> str:
    names = {"theirs": "cc2dataset, img2dataset, open_clip, autofaiss, and glue", "ours": "ours"}
    best = {who: min(found, key=lambda run: run.seconds) for who, found in runs.items()}
    cost = {who: min(run.cpu_seconds for run in found) for who, found in runs.items()}
    rows = [
        [
            names[who],
            f"{best[who].seconds:.1f}",
            f"{statistics.median(run.seconds for run in found):.1f}",
            f"{best['theirs'].seconds / best[who].seconds:.2f}",
            f"{cost[who]:.1f}",
            f"{cost['theirs'] / cost[who]:.2f}",
            f"{max(run.peak_bytes for run in found) / 1e6:,.0f}",
            f"{best[who].bytes / 1e6:,.0f}",
            f"{len(best[who].kept):,}",
        ]
        for who, found in runs.items()
    ]
    columns = [
        "",
        "s",
        "median",
        "times as fast",
        "CPU s",
        "times less CPU",
        "peak MB",
        "MB on disk",
        "kept",
    ]
    sides = ("theirs", "ours")
    stages = [
        [stage, *(f"{sum(best[who].stages.get(one, 0.0) for one in parts):.1f}"
                  for who, parts in zip(sides, (tools, steps), strict=True))]
        for stage, (steps, tools) in _STAGES.items()
    ]  # fmt: skip
    rest = (best[who].seconds - sum(best[who].stages.values()) for who in sides)
    stages.append(["start, end, between", *(f"{seconds:.1f}" for seconds in rest)])
    mine, others = best["ours"].kept, best["theirs"].kept
    return (
        f"{table.markdown(columns, rows)}\n\n"
        f"{table.markdown(['seconds by stage', names['theirs'], 'ours'], stages)}\n\n"
        f"A segment of {pairs:,} pictures with captions on {GOOD_HOSTS} hosts in 4 WAT "
        f"files, the shipped model, {len(os.sched_getaffinity(0))} cores, the fastest of {repeat} "
        f"rounds and the median. Of the pairs that either keeps, both keep {len(mine & others):,}, "
        f"ours alone {len(mine - others):,}, the peers alone {len(others - mine):,}; our safety "
        f"rules drop {best['ours'].unsafe:,}."
    )


@contextmanager
def _web(crawl: Path) -> Iterator[None]:
    """Serve the crawl by a process of its own, whose time is not counted."""
    program = (
        "import sys; from pathlib import Path; from laion_assets.sample_crawl.server import "
        "SampleServer\nwith SampleServer(Path(sys.argv[1]), int(sys.argv[2])):\n"
        "    print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(crawl), str(_PORT)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"no server can be started on port {_PORT}")
        yield
        # Leaving the block closes the server's standard input, which ends it.


def _ours(root: Path) -> _Run:
    home, config = root / "home", root / "config.toml"
    home.mkdir()
    shutil.copyfile(DAGSTER_CONFIG, home / "dagster.yaml")
    config.write_text(_settings(root), encoding="utf-8")
    measured = measure.run(
        [sys.executable, "-m", "benchmarks.segment.ours", config, home],
        env={"DAGSTER_HOME": str(home)},
    )
    run = _Run(measured.seconds, measured.cpu_seconds, measured.peak_own_bytes)
    run.stages = json.loads(measured.stdout.splitlines()[-1])
    lake, key = LocalLake.at(root / "lake"), SegmentKey(CRAWL, "00")
    subset = lake.folder(FILTERED_SUBSET, key)
    rejects = lake.manifest(FILTERED_SUBSET, key).stage("subset").rejects
    run.unsafe = sum(n for reason, n in rejects.items() if reason.startswith("unsafe_"))
    for part in PARTITIONS[FILTERED_SUBSET].rows.paths(subset):
        rows = read_parquet(part, ["URL", "TEXT"])
        run.kept |= set(zip(rows["URL"].to_pylist(), rows["TEXT"].to_pylist(), strict=True))
    return run


def _settings(root: Path) -> str:
    """Settings with the peers' numbers; everything else has its default, also the guards."""
    data = f"http://127.0.0.1:{_PORT}/"
    return f"""
[lake]
root = "{root / "lake"}"
[crawl_source]
collinfo_url = "{data}collinfo.json"
data_url = "{data}"
segments_per_crawl = 1
[work]
workers = {len(os.sched_getaffinity(0))}
[download]
connect_to = {{ "*.sample.test" = "127.0.0.1:{_PORT}" }}
concurrency = {_AT_ONCE}
total_timeout_s = {TIMEOUT_S}
retries = 0
samples_per_shard = {SHARD}
[clip]
model = "{_MODEL}"
pretrained = "{_MODEL}"
[safety]
prompts = "sample"
"""


def _theirs(root: Path, crawl: Path) -> _Run:
    run = _Run()
    raw, pairs, shards, kept = (root / name for name in ("raw", "pairs.parquet", "shards", "kept"))
    names = {
        "PYTHONPATH": str(_PEERS / "download" / "theirs_names"),
        "BENCH_NAMES": json.dumps({"*.sample.test": "127.0.0.1"}),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
    }
    glue: list[str | Path] = [sys.executable, _HERE / "glue.py"]
    threshold = str(threshold_for(f"{_MODEL}/{_MODEL}"))
    weights = WEIGHTS / f"{_MODEL}.safetensors"
    cc2dataset = peer_python("cc2dataset", _PEERS / "wat" / "cc2dataset.txt")
    img2dataset = peer_python("img2dataset", _PEERS / "download" / "img2dataset.txt")
    autofaiss = peer_python("autofaiss", _PEERS / "knn" / "autofaiss.txt")
    stages: dict[str, Sequence[str | Path]] = {
        "cc2dataset": [cc2dataset, _HERE / "wats.py", raw, *wat_files(crawl)],
        "glue": [*glue, "pairs", raw, pairs],
        "img2dataset": their_command(img2dataset, pairs, shards, _AT_ONCE),
        "open_clip": [*glue, "embed", shards, CONFIGS, _MODEL, weights, threshold, kept],
        "autofaiss": [autofaiss, _HERE / "index.py", kept / "img_emb", root / "image.index"],
        "autofaiss texts": [autofaiss, _HERE / "index.py", kept / "text_emb", root / "text.index"],
    }
    for stage, command in stages.items():
        run.add(stage, measure.run(command, env=names if stage == "img2dataset" else None))
    run.stages["autofaiss"] += run.stages.pop("autofaiss texts")
    rows = read_parquet(kept / "subset.parquet", ["url", "text"])
    run.kept = frozenset(zip(rows["url"].to_pylist(), rows["text"].to_pylist(), strict=True))
    return run


if __name__ == "__main__":
    main()
