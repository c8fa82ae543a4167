"""A way to run a command, and every stage's command run once on one WAT file."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.cli import main
from laion_assets.sample_crawl.build import Case, build_sample_crawl
from laion_assets.settings import CONFIG_VARIABLE, sample_config
from tests.processes import free_port, served, until

SERVE = """
import sys
from pathlib import Path
from laion_assets.sample_crawl.server import serve

serve(Path(sys.argv[1]), int(sys.argv[2]))
"""
KEPT_TAKEN = 30
NO_SETTINGS = "/nonexistent.toml"


@pytest.fixture(autouse=True)
def _only_config_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every command fail that reads settings other than those of its ``--config``."""
    monkeypatch.setenv(CONFIG_VARIABLE, NO_SETTINGS)


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """(stage, reason) -> n, from the lines that hold counts."""
        lines = re.findall(r"^(\w+) +(\w+) +([\d,]+)$", self.out, re.MULTILINE)
        return {(stage, reason): int(n.replace(",", "")) for stage, reason, n in lines}


def laion_assets(*words: object) -> Done:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Done(code, out.getvalue(), err.getvalue())


def refused(done: Done, message: str) -> None:
    """Assert that it failed with one line on standard error, and nothing on standard output."""
    assert done.code == 1
    assert done.out == ""
    [line] = done.err.splitlines()
    assert re.match(r"laion-assets: .*" + message, line), line


@contextmanager
def serving(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` once its port answers; terminate it at the end."""
    with subprocess.Popen(command) as process:
        try:
            until(lambda: served(port) or process.poll() is not None, f"an answer of {command}")
            assert process.poll() is None, f"{command} ended"
            yield process
        finally:
            process.terminate()


@dataclass(frozen=True)
class Stages:
    """Every stage's command, run once; ``done`` by the command's name."""

    root: Path
    crawl: Path
    config: Path
    cases: list[Case]
    """The cases of the one WAT file that was read."""
    taken: pa.Table
    """The pairs that were downloaded."""
    expected: Counter[tuple[str, str]]
    """(stage, reason) in which the taken pairs end."""
    done: dict[str, Done]

    @property
    def part(self) -> pa.Table:
        return pq.ParquetFile(self.root / "subset" / "part-00000.parquet").read()


def ends_of(cases: list[Case]) -> dict[tuple[str, str], tuple[str, str]]:
    """(url, text) -> (stage, reason), for the links that become pairs."""
    past = [case for case in cases if case.stage not in ("wat", "pairs")]
    return {(case.url, case.text): (case.stage, case.reason) for case in past}


def take(pairs: Path, cases: list[Case]) -> tuple[pa.Table, Counter[tuple[str, str]]]:
    """Take every pair that a later stage refuses, and the first of those that are kept."""
    ends = ends_of(cases)
    table = pq.ParquetFile(pairs).read()
    rows: list[int] = []
    expected: Counter[tuple[str, str]] = Counter()
    for row, pair in enumerate(table.select(["url", "text"]).to_pylist()):
        end = ends[pair["url"], pair["text"]]
        if end != ("subset", "kept") or expected[end] < KEPT_TAKEN:
            rows.append(row)
            expected[end] += 1
    return table.take(pa.array(rows)), expected


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    root = tmp_path_factory.mktemp("stages")
    crawl, config, port = root / "crawl", root / "config.toml", free_port()
    manifest = build_sample_crawl(crawl)
    text = sample_config().read_text("utf-8").replace(":8799", f":{port}")
    config.write_text(text.replace(".demo/lake", str(root / "lake")))
    wat = manifest.cases[0].wat_file
    cases = [case for case in manifest.cases if case.wat_file == wat]

    # Not in this process: `main` lets SIGPIPE end it, and a server's clients may leave early.
    with serving([sys.executable, "-c", SERVE, str(crawl), str(port)], port):
        done: dict[str, Done] = {}

        def run(command: str, *words: object) -> None:
            done[command] = laion_assets(command, "--config", config, *words)
            assert done[command].code == 0, done[command].err

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(CONFIG_VARIABLE, NO_SETTINGS)
            run("crawls")
            run("pairs", crawl / wat, "-o", root / "pairs.parquet")
            taken, expected = take(root / "pairs.parquet", cases)
            pq.write_table(taken, root / "few.parquet")
            run("download", root / "few.parquet", "-o", root / "shards")
            run("embed", root / "shards", "-o", root / "emb")
            run("filter", root / "emb", "-o", root / "subset")
            run("index", root / "subset", "-o", root / "idx")
        yield Stages(root, crawl, config, cases, taken, expected, done)
