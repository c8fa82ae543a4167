"""``python -m benchmarks.service.run``: our search service and clip-retrieval's under load."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import table
from benchmarks.measure import tree_bytes
from benchmarks.peer import WORK, peer_python
from benchmarks.service.load import RESULTS
from benchmarks.service.make import make, queries

_HERE: Final = Path(__file__).parent
_CLIP_RETRIEVAL: Final = "clip-retrieval==2.45.0"
_LOADS: Final = {"1 client": (1, 0), "8 clients": (8, 0), "30 a second": (64, 30)}
"""Connections, and queries per second; 0: each client sends the next when it has its answer."""
_WARM_S: Final = 20.0
_CONTESTANTS: Final = {
    "parquet": "clip-retrieval 2.45.0, metadata in RAM (its default)",
    "hdf5": "clip-retrieval 2.45.0, metadata in HDF5",
    "ours": "ours",
}
_COLUMNS: Final = (
    "", "load", "p50 ms", "p99 ms", "queries/s", "folded: p50 ms", "p99 ms", "queries/s",
    "ready after s", "own MB",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=12, help="seconds per load")
    parser.add_argument("--only", choices=_CONTESTANTS, help="run one, and write nothing")
    args = parser.parse_args()

    folder = WORK / "service" / str(args.vectors)
    make(folder, args.vectors)
    asked = folder / "queries.npy"
    np.save(asked, queries(2_000))
    rows = []
    for who in [args.only] if args.only else list(_CONTESTANTS):
        with serving(who, folder) as (port, process, ready_s):
            _load(port, asked, (4, 0), _WARM_S, "folded")  # fill caches as in the long run
            for name, load in _LOADS.items():
                plain = _load(port, asked, load, args.seconds, "plain")
                folded = _load(port, asked, load, args.seconds, "folded")
                print(who, name, plain, folded, file=sys.stderr, flush=True)
                own = tree_bytes(process.pid)[1]
                rows.append(_row(who, name, plain, folded, ready_s, own))
    text = table.markdown(_COLUMNS, rows)
    text += (
        f"\n\n{args.vectors:,} vectors of 512 numbers, the same 1,024 cells and 8-bit codes for "
        "both, 16 cells searched; queries by embedding, "
        f"{RESULTS} results with metadata, "
        f"{args.seconds:g} s of each load after {_WARM_S:g} s of another. The load runs on the "
        "same cores."
    )
    if args.only:
        print(text)
    else:
        table.publish("service", text)


def _row(
    who: str,
    load: str,
    plain: dict[str, float],
    folded: dict[str, float],
    ready_s: float,
    own_bytes: int,
) -> list[str]:
    cells = [_CONTESTANTS[who], load]
    for result in (plain, folded):
        cells += [f"{result['p50_ms']:.1f}", f"{result['p99_ms']:.1f}", f"{result['qps']:.0f}"]
    return [*cells, f"{ready_s:.1f}", f"{own_bytes / 1e6:.0f}"]


def _load(
    port: int, asked: Path, load: tuple[int, int], seconds: float, kind: str
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.service.load", str(port), str(asked)]
    command += [str(value) for value in (*load, seconds, kind)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the load failed: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout)
    if kind == "plain" and result["results"] != RESULTS:
        raise SystemExit(f"a query has {result['results']} results instead of {RESULTS}")
    return result


@contextmanager
def serving(who: str, folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes], float]]:
    """Run a service; yield its port, its process, and the seconds until it listened."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    environment = dict(os.environ)
    if who == "ours":
        config = folder / "settings.toml"
        config.write_text(
            '[clip]\nmodel = "laion-assets-tiny"\npretrained = "laion-assets-tiny"\n'
            "[serve]\nquery_rate = 1e9\nquery_burst = 1000000000\n"
        )
        environment["LAION_ASSETS_CONFIG"] = str(config)
        index = folder / "lake" / "search_index"
        command = [sys.executable, "-m", "laion_assets.cli", "serve", str(index)]
        command += ["--port", str(port)]
    else:
        python = peer_python("clip-retrieval", _HERE / "clip-retrieval.txt")
        package = python.parent.parent / "clip-retrieval"
        if not package.exists():
            pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
            subprocess.run([*pip, str(package), _CLIP_RETRIEVAL], check=True)
        command = [str(python), str(_HERE / "theirs.py"), str(package / "clip_retrieval")]
        command += [str(folder / "theirs"), str(port), who]
    started = time.monotonic()
    with (folder / f"{who}.log").open("wb") as log:
        process: subprocess.Popen[Any] = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment
        )
    try:
        _await(port, process, folder / f"{who}.log")
        yield port, process, time.monotonic() - started
    finally:
        process.terminate()
        process.wait(60)


def _await(port: int, process: subprocess.Popen[Any], log: Path, patience_s: float = 300) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(
                f"the service ended with {process.returncode}: {log.read_text()[-2000:]}"
            )
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"the service does not listen after {patience_s:.0f} s: see {log}")


if __name__ == "__main__":
    main()
