"""The stages on plain files, without Dagster, and what the command line says when it cannot."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import __version__, schemas
from laion_assets.cli import build_parser, main
from laion_assets.sample_crawl.build import Case, Manifest, build_sample_crawl
from laion_assets.settings import sample_config

SERVE = """
import sys
from pathlib import Path
from laion_assets.sample_crawl.server import serve

serve(Path(sys.argv[1]), int(sys.argv[2]))
"""
KEPT_TAKEN = 30


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """(stage, reason) -> n, of the lines that tell counts."""
        lines = re.findall(r"^(\w+) +(\w+) +([\d,]+)$", self.out, re.MULTILINE)
        return {(stage, reason): int(n.replace(",", "")) for stage, reason, n in lines}


def laion_assets(*words: object) -> Done:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGTERM)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(code, out.getvalue(), err.getvalue())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def serving(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """``command`` runs from when its port answers; it is asked to end at the end."""
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None, f"{command} ended"
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                assert time.monotonic() < deadline, f"{command} does not answer"
                time.sleep(0.05)
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
    """Of the one WAT file that was read."""
    taken: pa.Table
    """The pairs that went on to the images."""
    expected: Counter[tuple[str, str]]
    """(stage, reason) in which the taken pairs end."""
    done: dict[str, Done]

    @property
    def part(self) -> pa.Table:
        return pq.ParquetFile(self.root / "subset" / "part-00000.parquet").read()


def ends_of(cases: list[Case]) -> dict[tuple[str, str], tuple[str, str]]:
    """(url, text) -> (stage, reason), of the links that become pairs."""
    past = [case for case in cases if case.stage not in ("wat", "pairs")]
    return {(case.url, case.text): (case.stage, case.reason) for case in past}


def take(pairs: Path, cases: list[Case]) -> tuple[pa.Table, Counter[tuple[str, str]]]:
    """Every pair that is lost on the way from here, and the first of those that are kept."""
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


@pytest.fixture(scope="module")
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

        run("crawls")
        run("pairs", crawl / wat, "-o", root / "pairs.parquet")
        taken, expected = take(root / "pairs.parquet", cases)
        pq.write_table(taken, root / "few.parquet")
        run("download", root / "few.parquet", "-o", root / "shards")
        run("embed", root / "shards", "-o", root / "emb")
        run("filter", root / "emb", "-o", root / "subset")
        run("index", root / "subset", "-o", root / "idx")
        yield Stages(root, crawl, config, cases, taken, expected, done)


def test_crawls_lists_what_the_source_has(stages: Stages) -> None:
    lines = stages.done["crawls"].out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == ["CC-MAIN-2000-10", "CC-MAIN-2000-05"]
    assert "Sample crawl, March 2000" in lines[0]


def test_pairs_tells_where_each_link_of_the_file_ended(stages: Stages) -> None:
    links = [case for case in stages.cases if case.stage != "wat"]
    refused = Counter(case.reason for case in links if case.stage == "pairs")
    counts = stages.done["pairs"].counts
    found = {reason: n for (stage, reason), n in counts.items() if stage == "pairs"}
    assert found == {"in": len(links), "kept": len(links) - refused.total(), **refused}
    file = pq.ParquetFile(stages.root / "pairs.parquet")
    assert file.schema_arrow.equals(schemas.PAIRS)
    assert file.metadata.num_rows == found["kept"]
    assert stages.done["pairs"].out.splitlines()[-1] == str(stages.root / "pairs.parquet")


def test_pairs_takes_other_languages_when_asked(stages: Stages, tmp_path: Path) -> None:
    foreign = next(
        case.wat_file
        for case in Manifest.read(stages.crawl).cases
        if (case.stage, case.reason) == ("pairs", "language")
    )
    kept = {}
    for languages in ("en", "de,fr", "any"):
        done = laion_assets(
            *("pairs", "--config", stages.config, stages.crawl / foreign),
            *("--languages", languages, "-o", tmp_path / "pairs.parquet"),
        )
        assert done.code == 0, done.err
        found = pq.ParquetFile(tmp_path / "pairs.parquet").read(["language"])["language"]
        kept[languages] = Counter(found.to_pylist())
    assert set(kept["en"]) == {"en"}
    assert set(kept["de,fr"]) == {"de", "fr"}
    assert kept["any"] > kept["en"] + kept["de,fr"]


def test_download_writes_img2datasets_shards(stages: Stages) -> None:
    shards = stages.root / "shards"
    refused = {end: n for end, n in stages.expected.items() if end[0] == "images"}
    assert refused
    n_in = len(stages.taken)
    kept = n_in - sum(refused.values())
    counts = {("images", "in"): n_in, ("images", "kept"): kept, **refused}
    assert stages.done["download"].counts == counts
    names = {path.name for path in shards.iterdir() if not path.name.startswith(".")}
    assert {"00000.tar", "00000.parquet", "00000_stats.json"} <= names
    with tarfile.open(shards / "00000.tar") as tar:
        assert Counter(Path(name).suffix for name in tar.getnames())[".jpg"] == kept
    rows = pq.ParquetFile(shards / "00000.parquet").read(["url", "caption", "status"])
    assert rows["url"].to_pylist() == stages.taken["url"].to_pylist()
    assert rows["caption"].to_pylist() == stages.taken["text"].to_pylist()


def test_embed_writes_a_vector_for_each_image_and_text(stages: Stages) -> None:
    emb = stages.root / "emb"
    n = stages.done["download"].counts["images", "kept"]
    assert stages.done["embed"].counts == {("embeddings", "in"): n, ("embeddings", "kept"): n}
    for modality in ("img_emb", "text_emb"):
        vectors = np.load(emb / modality / f"{modality}_00000.npy")
        assert vectors.dtype == np.float16
        assert vectors.shape[0] == n
        assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
    assert pq.read_metadata(emb / "metadata" / "metadata_00000.parquet").num_rows == n


def test_filter_keeps_what_the_crawl_was_made_to_keep(stages: Stages) -> None:
    ends = ends_of(stages.cases)
    taken = stages.taken.select(["url", "text"]).to_pylist()
    kept = [(row["url"], row["text"]) for row in taken]
    kept = [pair for pair in kept if ends[pair] == ("subset", "kept")]
    part = stages.part
    assert part.schema.equals(schemas.SUBSET)
    assert list(zip(part["URL"].to_pylist(), part["TEXT"].to_pylist(), strict=True)) == kept
    counts = {end: n for end, n in stages.expected.items() if end[0] == "subset"}
    assert set(counts) > {("subset", "kept")}
    assert stages.done["filter"].counts == {("subset", "in"): sum(counts.values()), **counts}


def test_filter_takes_a_threshold_of_ones_own(stages: Stages, tmp_path: Path) -> None:
    low, high = sorted(stages.part["similarity"].to_pylist())[:: len(stages.part) - 1]
    between = (low + high) / 2
    done = laion_assets(
        *("filter", "--config", stages.config, stages.root / "emb", "-o", tmp_path),
        *("--threshold", between),
    )
    assert done.code == 0, done.err
    expected = [value for value in stages.part["similarity"].to_pylist() if value >= between]
    found = pq.ParquetFile(tmp_path / "part-00000.parquet").read()["similarity"].to_pylist()
    assert found == expected
    assert done.counts["subset", "kept"] == len(expected)


def test_filter_takes_a_recipe_by_name(stages: Stages, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(stages.config.read_text() + '\n[subsets.wide]\nwhere = "width > height"\n')
    words = ("filter", "--config", config, stages.root / "emb", "-o", tmp_path / "out", "--recipe")
    done = laion_assets(*words, "wide")
    assert done.code == 0, done.err
    rows = stages.part.select(["URL", "WIDTH", "HEIGHT"]).to_pylist()
    wide = [row["URL"] for row in rows if row["WIDTH"] > row["HEIGHT"]]
    assert 0 < len(wide) < len(rows)
    found = pq.ParquetFile(tmp_path / "out" / "part-00000.parquet").read()["URL"].to_pylist()
    assert found == wide
    refused(laion_assets(*words, "nobody"), "RecipeError: no recipe 'nobody'.*laion5b-en")


def test_index_holds_every_sample_twice(stages: Stages) -> None:
    import faiss

    n = len(stages.part)
    told = dict(line.split(maxsplit=1) for line in stages.done["index"].out.splitlines())
    assert int(told["n"]) == n
    for modality in ("image", "text"):
        assert faiss.read_index(str(stages.root / "idx" / f"{modality}.index")).ntotal == n
    assert pq.read_metadata(stages.root / "idx" / "ids.parquet").num_rows == n


def hits(done: Done) -> list[tuple[int, float, str, str]]:
    """(rank, score, text, url) of each hit."""
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    found = []
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        rank, score, text = first.split(maxsplit=2)
        found.append((int(rank), float(score), text, second.strip()))
    return found


@pytest.fixture(scope="module")
def search(stages: Stages) -> tuple[object, ...]:
    words = ("search", "--config", stages.config, "--subset", stages.root / "subset")
    return (*words, stages.root / "idx")


def test_search_by_a_text_is_over_the_images(stages: Stages, search: tuple[object, ...]) -> None:
    part = stages.part.to_pylist()
    found = hits(laion_assets(*search, part[3]["TEXT"], "-k", len(part)))
    assert [rank for rank, *_ in found] == list(range(1, len(part) + 1))
    scores = [score for _, score, *_ in found]
    assert scores == sorted(scores, reverse=True)
    rows = Counter((row["TEXT"], row["URL"]) for row in part)
    assert Counter((text, url) for *_, text, url in found) == rows
    assert own_score(found, part[3]) == pytest.approx(part[3]["similarity"], abs=2e-3)


def test_search_by_an_image_may_be_over_the_texts(
    stages: Stages, search: tuple[object, ...], tmp_path: Path
) -> None:
    part = stages.part.to_pylist()
    name = f"{part[5]['key']}.jpg"
    with tarfile.open(stages.root / "shards" / "00000.tar") as tar:
        tar.extract(name, tmp_path, filter="data")
    words = ("--image", tmp_path / name, "--over", "text", "-k", len(part))
    found = hits(laion_assets(*search, *words))
    assert own_score(found, part[5]) == pytest.approx(part[5]["similarity"], abs=2e-3)


def own_score(found: list[tuple[int, float, str, str]], row: dict[str, Any]) -> float:
    [score] = [score for _, score, *what in found if what == [row["TEXT"], row["URL"]]]
    return score


def refused(done: Done, says: str) -> None:
    """It failed with one line on standard error, and nothing on standard output."""
    assert done.code == 1
    assert done.out == ""
    [line] = done.err.splitlines()
    assert re.match(r"laion-assets: .*" + says, line), line


def test_search_outside_a_lake_asks_for_the_subset(stages: Stages) -> None:
    words = ("search", "--config", stages.config, stages.root / "idx", "a red apple")
    refused(laion_assets(*words), "idx is not in a lake: name the subset")


@pytest.mark.parametrize(
    "words",
    [
        ("pairs", "nowhere", "-o", "out"),
        ("download", "nowhere", "-o", "out"),
        ("embed", "nowhere", "-o", "out"),
        ("filter", "nowhere", "-o", "out"),
        ("index", "nowhere", "-o", "out"),
        ("search", "nowhere", "a red apple"),
        ("sql", "--catalog", "nowhere", "select 1"),
    ],
    ids=lambda words: str(words[0]),
)
def test_a_missing_input_is_told_in_one_line(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(laion_assets(*words), "there is no nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "lacks"),
    [("embed", "shards"), ("filter", "embeddings"), ("download", "pairs"), ("index", "samples")],
)
def test_a_folder_of_something_else_is_told_in_one_line(
    command: str, lacks: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = laion_assets(command, tmp_path / "empty", "-o", tmp_path / "out")
    refused(done, f"there are no {lacks}.* in {re.escape(str(tmp_path))}/empty")
    assert not (tmp_path / "out").exists()


def test_a_subset_is_indexed_by_its_parts(stages: Stages, tmp_path: Path) -> None:
    """As clip-retrieval's names for the metadata are not what is read."""
    subset = tmp_path / "subset"
    shutil.copytree(stages.root / "subset", subset, ignore=shutil.ignore_patterns("metadata"))
    done = laion_assets("index", "--config", stages.config, subset, "-o", tmp_path / "idx")
    assert done.code == 0, done.err
    assert done.out == stages.done["index"].out


def test_sql_names_the_catalog_that_the_settings_mean(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(f'[lake]\nroot = "{tmp_path}/lake"\n')
    refused(
        laion_assets("sql", "--config", config, "select 1"),
        f"there is no {re.escape(str(tmp_path))}/lake/catalog/catalog.duckdb",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [("[pairs]\nmin_txt_chars = 5", r"\[pairs\] has no min_txt_chars"), ("[", "is not TOML")],
)
def test_wrong_settings_are_told_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(text)
    refused(laion_assets("crawls", "--config", config), says)


def test_a_source_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    url = f"http://127.0.0.1:{free_port()}/"
    config.write_text(
        f'[crawl_source]\ncollinfo_url = "{url}collinfo.json"\ndata_url = "{url}"\nattempts = 1\n'
    )
    refused(laion_assets("crawls", "--config", config), f".*{url}collinfo.json")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("pear",),
        ("pairs",),
        ("pairs", "a.warc.wat.gz"),
        ("crawl",),
        ("search", "idx"),
        ("search", "idx", "a red apple", "--image", "apple.jpg"),
        ("search", "idx", "a red apple", "--over", "sound"),
        ("filter", "emb", "-o", "subset", "--threshold", "high"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: laion-assets" in capsys.readouterr().err


def commands(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[str, ...]]:
    """The words of every command, those of a group among them."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield words
    for action in nested:
        for name, inner in action.choices.items():
            yield from commands(inner, *words, name)


@pytest.mark.parametrize("words", list(commands(build_parser())), ids=" ".join)
def test_help_shows_an_example_that_is_right(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    _, _, example = capsys.readouterr().out.partition("example: laion-assets ")
    given = shlex.split(example)
    assert tuple(given[: len(words)]) == words
    assert callable(build_parser().parse_args(given).run)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_the_served_crawl_outlives_a_client_that_leaves(stages: Stages) -> None:
    port = free_port()
    command = [sys.executable, "-m", "laion_assets.cli", "sample-crawl", "serve"]
    command += ["--root", str(stages.crawl), "--port", str(port)]
    request = f"GET /{stages.cases[0].wat_file} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with serving(command, port) as process:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.sendall(request)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(request)
            assert client.recv(12) == b"HTTP/1.1 200"
        assert process.poll() is None
