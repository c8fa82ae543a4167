"""``python -m benchmarks.knn.run``: autofaiss and ours with the same memory, and growing.

Each step saves its result in .bench/knn. ``--steps`` runs only some steps, so that a call need not
take long; the table is written when all results are present. ``--again STEP`` discards one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure, table
from benchmarks.knn.vectors import World, blocks
from benchmarks.peer import WORK, peer_python
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.layout import SegmentKey

D: Final = 512
QUERIES: Final = 500
# Threads that wait for one another sleep; otherwise their spinning would count as work.
_ENV: Final = {"OMP_WAIT_POLICY": "passive"}
_HERE: Final = Path(__file__).parent


def _segment(number: int) -> str:
    """Name of a segment, as a key's text; a crawl has 100 of them."""
    crawl, segment = divmod(number, 100)
    return str(SegmentKey(f"CC-MAIN-{2000 + crawl}-05", f"{segment:02d}"))


class Bench:
    """The steps of one size, and their results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = WORK / "knn" / f"{args.vectors}"
        self.base = [_segment(number) for number in range(18)]
        self.more = [_segment(number) for number in range(18, 20)]
        self.grown = [_segment(100 + number) for number in range(args.partitions)]

    def step(self, name: str, work: Callable[[], Any]) -> None:
        kept = self.folder / "results" / f"{name}.json"
        if kept.exists() or name not in (self.args.steps or name).split(","):
            return
        print(f"knn: {name}", file=sys.stderr, flush=True)
        result = work()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(result))
        print(f"knn: {name}: {str(result)[:300]}", file=sys.stderr, flush=True)

    def result(self, name: str) -> Any:
        return json.loads((self.folder / "results" / f"{name}.json").read_text())

    def run(self) -> bool:
        """Run the steps; return whether all of them are done."""
        steps: dict[str, Callable[[], Any]] = {
            "data": self.make_data,
            "truth": self.truth,
            "autofaiss": lambda: self.theirs("embeddings", "base"),
            "autofaiss-query": self.theirs_query,
            "train": lambda: self.ours("train", *self.base),
            "encode": lambda: self.ours("encode", *self.base),
            "merge": lambda: self.ours("merge", "-", "base", "0", *self.base),
            "query": lambda: self.ours("query", "base", self.folder / "queries.npy"),
            "autofaiss-more": lambda: self.theirs("embeddings-more", "more"),
            "more-encode": lambda: self.ours("encode", *self.more),
            "more-merge": lambda: self.ours("merge", "base", "more", "0", *self.base, *self.more),
            "grow": lambda: self.ours("grow", *self.grown),
            "remove": lambda: self.ours("remove", 0.01, *self.base),
            "remove-encode": lambda: self.ours("encode", *self.base),
            "remove-merge": lambda: self.ours(
                "merge", "base", "removed-index", "1", *(f"{s}*" for s in self.base)
            ),
        }
        for name, work in steps.items():
            self.step(name, work)
        return all((self.folder / "results" / f"{name}.json").exists() for name in steps)

    def make_data(self) -> dict[str, Any]:
        """Make subsets for ours, and link the same files for autofaiss."""
        shutil.rmtree(self.folder, ignore_errors=True)
        world = World.make(D)
        rows = self.args.vectors // len(self.base)
        sizes = dict.fromkeys(self.base, rows)
        sizes |= dict.fromkeys(self.more, self.args.vectors // 10 // len(self.more))
        sizes |= dict.fromkeys(self.grown, self.args.rows)
        for seed, (segment, n) in enumerate(sizes.items()):
            made = [np.concatenate(kind) for kind in zip(*blocks(world, n, seed), strict=True)]
            subset = self.folder / "subsets" / segment
            for path_of, vectors in zip((image_path, text_path), made, strict=True):
                path = path_of(subset, 0)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, vectors)
            key = SegmentKey.parse(segment)
            ids = pa.table(
                {
                    "SAMPLE_ID": pa.array(np.arange(n) + (seed << 32)),
                    "crawl": pa.array([key.crawl] * n),
                    "segment": pa.array([key.segment] * n),
                }
            )
            pq.write_table(ids, subset / "part-00000.parquet")
        for name, segments in (
            ("embeddings", self.base),
            ("embeddings-more", [*self.base, *self.more]),
        ):
            (self.folder / name).mkdir()
            for segment in segments:
                source = image_path(self.folder / "subsets" / segment, 0)
                (self.folder / name / f"{segment}.npy").hardlink_to(source)
        texts, images = [], []
        for image, text in blocks(world, QUERIES, 10_000):
            texts.append(text.astype(np.float32))
            images.append(image.astype(np.float32))
        queries = np.concatenate([*texts, *images])
        np.save(self.folder / "queries.npy", queries)
        options = {
            "memory_gb": self.args.memory_mb / 1000,
            "kind": "auto",
            "vectors": self.args.vectors,
        }
        (self.folder / "options.json").write_text(json.dumps(options))
        return {"segments": len(sizes)}

    def truth(self) -> dict[str, Any]:
        import faiss

        queries = np.load(self.folder / "queries.npy")
        best = np.full((len(queries), 10), -np.inf, np.float32)
        for segment in self.base:
            found, _ = faiss.knn(queries, self.vectors(segment), 10, faiss.METRIC_INNER_PRODUCT)
            best = -np.sort(-np.concatenate([best, found], axis=1), axis=1)[:, :10]
        np.save(self.folder / "truth.npy", best)
        pair = best[:QUERIES, 0].mean(), best[QUERIES:, 0].mean()
        return {"nearest": [float(value) for value in pair]}

    def vectors(self, segment: str) -> Any:
        path = self.folder / "embeddings" / f"{segment}.npy"
        return np.load(path).astype(np.float32)

    def theirs(self, embeddings: str, name: str) -> dict[str, Any]:
        python = peer_python("autofaiss", _HERE / "autofaiss.txt")
        index = self.folder / f"autofaiss-{name}.index"
        measured = measure.run(
            [
                python,
                _HERE / "theirs.py",
                "build",
                self.folder / embeddings,
                index,
                str(self.args.memory_mb),
            ],
            env=_ENV,
        )
        result = json.loads(measured.stdout.splitlines()[-1])
        return {
            "seconds": result["seconds"],
            "peak": measured.peak_own_bytes,
            "bytes": index.stat().st_size,
            "infos": result["infos"],
        }

    def theirs_query(self) -> Any:
        python = peer_python("autofaiss", _HERE / "autofaiss.txt")
        index, queries = self.folder / "autofaiss-base.index", self.folder / "queries.npy"
        measured = measure.run([python, _HERE / "theirs.py", "query", index, queries], env=_ENV)
        rates = json.loads(measured.stdout.splitlines()[-1])
        return self.judged(rates, Path(f"{index}.found.npy"))

    def ours(self, step: str, *args: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.knn.ours", step, str(self.folder)]
        measured = measure.run(command + [str(arg) for arg in args], env=_ENV)
        result: dict[str, Any] = json.loads(measured.stdout.splitlines()[-1])
        if step == "query":
            result["rates"] = self.judged(result["rates"], self.folder / "base.found.npy")
        return result | {"peak": measured.peak_own_bytes}

    def judged(self, rates: Sequence[Any], found: Path) -> list[Any]:
        """Setting, queries per second, and recall@10 of queries by text and by image."""
        queries, truth = np.load(self.folder / "queries.npy"), np.load(self.folder / "truth.npy")
        rows = np.load(found)
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        first = 0
        for segment in self.base:
            vectors = self.vectors(segment)
            setting, query, place = np.nonzero((rows >= first) & (rows < first + len(vectors)))
            its = vectors[rows[setting, query, place] - first]
            scores[setting, query, place] = np.einsum("nd,nd->n", its, queries[query])
            first += len(vectors)
        good = (scores >= truth[None, :, -1:] - 1e-5).mean(axis=2)
        return [
            [*setting, float(line[:QUERIES].mean()), float(line[QUERIES:].mean())]
            for setting, line in zip(rates, good, strict=True)
        ]


def report(bench: Bench) -> str:
    theirs, queries = bench.result("autofaiss"), bench.result("query")
    lines = [
        ["autofaiss", name, f"{rate:,.0f}", f"{text:.3f}", f"{image:.3f}"]
        for name, rate, text, image in bench.result("autofaiss-query")
    ]
    chosen, *others = queries["rates"]
    lines.append(["ours, as it chose", *_line(chosen)])
    lines += [["ours", *_line(line)] for line in _frontier(others)]
    curve = table.markdown(
        ["", "setting", "queries a CPU second", "recall@10 of texts", "recall@10 of images"], lines
    )
    train, encode, merge = (bench.result(name) for name in ("train", "encode", "merge"))
    build = (train["train"] + encode["encode"] + merge["merge"]) / 2
    more = (bench.result("more-encode")["encode"] + bench.result("more-merge")["merge"]) / 2
    less = (bench.result("remove-encode")["encode"] + bench.result("remove-merge")["merge"]) / 2
    rebuilt = bench.result("autofaiss-more")["seconds"]
    peak = max(result["peak"] for result in (train, encode, merge))
    costs = table.markdown(
        ["CPU seconds", "autofaiss", "ours", "ratio"],
        [
            ["build", *_ratio(theirs["seconds"], build)],
            ["10 % more", *_ratio(rebuilt, more)],
            ["1 % removed, from every segment", *_ratio(theirs["seconds"], less)],
            ["peak MB while building", f"{theirs['peak'] / 1e6:,.0f}", f"{peak / 1e6:,.0f}", ""],
            ["index MB", f"{theirs['bytes'] / 1e6:.0f}", f"{queries['bytes'] / 1e6:.0f}", ""],
        ],
    )
    growth = _growth(bench)
    return (
        f"{bench.args.vectors:,} image vectors of {D} dimensions; a budget of "
        f"{bench.args.memory_mb} MB for the index. autofaiss 2.18.0 chose "
        f"`{theirs['infos']['index_key']}`, ours `{train['factory']}`. {QUERIES} texts and "
        f"{QUERIES} images that are not indexed, each query alone on one thread, everything in the "
        f"page cache.\n\n{curve}\n\nWith nothing of index and vectors in the page cache, ours "
        f"takes {queries['cold_ms']:.1f} ms a query (median, as it chose).\n\n{costs}\n\n{growth}"
    )


def _line(line: Any) -> list[str]:
    setting, rate, text, image = line
    name = f"nprobe {setting['nprobe']}"
    name += f", {setting['rerank']} scored exactly" if setting["rerank"] else ", codes alone"
    return [name, f"{rate:,.0f}", f"{text:.3f}", f"{image:.3f}"]


def _frontier(lines: Sequence[Any]) -> list[Any]:
    """Settings that no other one beats in both speed and recall of texts."""
    return sorted(
        (
            line
            for line in lines
            if not any(other[1] >= line[1] and other[2] > line[2] for other in lines)
        ),
        key=lambda line: float(line[2]),
    )


def _ratio(theirs: float, ours: float) -> list[str]:
    return [f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.1f}"]


def _growth(bench: Bench) -> str:
    costs = bench.result("grow")["costs"]
    rows, first, last = [], 0, 5
    while first < len(costs):
        some = np.array(costs[first:last], dtype=np.float64)
        rows.append(
            [
                f"{first + 1}-{min(last, len(costs))}",
                f"{some[:, 0].mean():.2f}",
                f"{some[:, 1].mean():.2f}",
                f"{some[:, 1].max():.2f}",
                f"{some[:, 2].mean() / 1e6:.1f}",
                f"{some[:, 3].max():.0f}",
            ]
        )
        first, last = last, last * 2
    columns = ["segment", "encode: CPU s", "merge: CPU s", "at most", "MB written", "most runs"]
    text = table.markdown(columns, rows)
    return (
        f"Growing, a segment of {bench.args.rows:,} samples (image and text) at a time:\n\n{text}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=900_000)
    parser.add_argument("--memory-mb", type=int, default=100)
    parser.add_argument(
        "--partitions", type=int, default=100, help="segments that the growing index takes"
    )
    parser.add_argument("--rows", type=int, default=5_000, help="samples in each of them")
    parser.add_argument("--steps", help="steps to run, comma-separated (default: all)")
    parser.add_argument("--again", help="steps whose results to discard, comma-separated")
    args = parser.parse_args()
    bench = Bench(args)
    for name in (args.again or "").split(","):
        (bench.folder / "results" / f"{name}.json").unlink(missing_ok=True)
    if bench.run():
        table.publish("knn", report(bench))


if __name__ == "__main__":
    main()
