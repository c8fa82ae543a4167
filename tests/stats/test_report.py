from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets import schemas
from laion_assets.stats.catalog import build_catalog, open_catalog
from laion_assets.stats.figures import draw, licence_name
from laion_assets.stats.plotting import percent
from laion_assets.stats.report import build_report, dataset_card
from laion_assets.stats.report_data import Facts, Statistic, gather
from tests.stats.conftest import SEGMENTS, THRESHOLD, SegmentFiles, counts


class Page(HTMLParser):
    """Tags, links of all kinds, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href"):
                self.sources.append(value or "")
            if name == "alt":
                self.alts.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def catalog(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "catalog.duckdb"
    build_catalog(lake, path)
    return path


@pytest.fixture(scope="module")
def facts(catalog: Path) -> Facts:
    with open_catalog(catalog) as connection:
        return gather(connection)


@pytest.fixture(scope="module")
def report(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    build_report(catalog, out)
    return out


def _subset(lake: Path) -> dict[str, np.ndarray]:
    parts = sorted(lake.glob("filtered_subset/*/*/part-*.parquet"))
    rows = [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_the_papers_table_is_counted_from_the_subset(lake: Path, facts: Facts) -> None:
    subset = _subset(lake)
    larger = np.maximum(subset["WIDTH"], subset["HEIGHT"])
    smaller = np.minimum(subset["WIDTH"], subset["HEIGHT"])
    assert [(row.what, row.n) for row in facts.statistics] == [
        ("Unique samples", 72),
        *(
            (f"Width {word} height ≥ {pixels:,}", (side >= pixels).sum())
            for pixels in (1024, 512, 256)
            for word, side in (("or", larger), ("and", smaller))
        ),
    ]
    assert 0 < facts.statistics[2].n < facts.statistics[1].n < 72, "the rows of the table differ"
    assert facts.statistics[1].paper_share == pytest.approx(26 / 413)


def test_facts_are_in_the_catalog(lake: Path, facts: Facts, tmp_path: Path) -> None:
    """No file of the lake is read for them; a macro that counts all rows finds the same."""
    copy = shutil.copytree(lake, tmp_path / "lake")
    build_catalog(copy, tmp_path / "catalog.duckdb")
    with open_catalog(tmp_path / "catalog.duckdb") as connection:
        rows = connection.execute("from resolution_table()").fetchall()
        licences = connection.execute("select license, samples from licences()").fetchall()
        shutil.rmtree(copy)
        assert gather(connection) == facts
    assert [Statistic(*row) for row in rows] == facts.statistics
    assert licences == facts.licenses
    assert facts.spoken == ["de", "en"]


def test_segments_in_the_making_are_not_counted(lake: Path, facts: Facts, tmp_path: Path) -> None:
    copy = shutil.copytree(lake, tmp_path / "lake")
    begun = SegmentFiles(copy, SEGMENTS[0][0], "07")
    begun.write()
    shutil.rmtree(begun.folder("filtered_subset"))
    build_catalog(copy, tmp_path / "catalog.duckdb")
    with open_catalog(tmp_path / "catalog.duckdb") as connection:
        found = gather(connection)
    assert found == replace(facts, runs=found.runs)


def test_deciles_are_those_of_numpy(lake: Path, facts: Facts) -> None:
    subset = _subset(lake)
    tenths = np.arange(0.1, 0.95, 0.1)
    similarity = np.quantile(subset["similarity"], tenths)
    assert facts.similarity_deciles == pytest.approx(similarity, abs=5.1e-5)
    lengths = np.char.str_len(subset["TEXT"].astype(str))
    assert facts.text_deciles == pytest.approx(np.quantile(lengths, tenths))


def test_the_subsets_model_and_recipe_come_from_its_manifests(facts: Facts) -> None:
    assert (facts.model, facts.recipe) == ("tiny/tiny", "laion400m v1")
    assert facts.threshold == THRESHOLD
    assert (facts.segments, len(facts.crawls)) == (3, 2)
    assert [counts.stage for counts in facts.funnel] == [
        "wat",
        "pairs",
        "unique_pairs",
        "images",
        "embeddings",
        "subset",
    ]
    assert all(counts.adds_up for counts in facts.funnel)
    assert sum(item.n for item in facts.similarity) == 120


def test_the_page_has_the_numbers_and_is_self_contained(report: Path) -> None:
    html = (report / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "72 image-text samples" in page.text
    assert "3 segments of CC-MAIN-2000-05, CC-MAIN-2001-05" in page.text
    assert "below_threshold the similarity is below the model's threshold 48 40 %" in page.text
    assert page.sources
    assert all(source.startswith("data:") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "@import" not in html
    assert "url(" not in html
    assert len(page.alts) == page.tags.count("img") == 10
    assert all(page.alts)
    assert "Embedded pairs: 72 of 120 kept" in page.alts[0]
    assert "Width or height ≥ 1,024 36 50 % 26 M, 6.3 %" in page.text


def test_each_figure_has_its_numbers_as_csv_in_a_file_and_on_the_page(report: Path) -> None:
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    links = [source for source in page.sources if source.startswith("data:text/csv")]
    for path in sorted((report / "figures").glob("*.png")):
        text = path.with_suffix(".csv").read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines()))
        assert rows
        assert sum(unquote(link).endswith(text) for link in links) == 1, path.stem
    funnel = csv.DictReader((report / "figures" / "funnel.csv").open(encoding="utf-8"))
    counted = {(row["stage"], row["reason"]): int(row["n"]) for row in funnel}
    assert counted["subset", "below_threshold"] == 48
    assert counted["pairs", "in"] == 3 * 167


def test_pairs_around_the_threshold_are_shown_with_their_pictures(tmp_path: Path) -> None:
    """Pairs whose shard has another picture by now are left out; the CSV has no URL."""
    files = SegmentFiles(tmp_path / "lake", *SEGMENTS[0])
    files.write()
    files.stats()
    files.tar()
    shard = files.folder("image_shards") / "part-00000.parquet"
    rows = pq.ParquetFile(shard).read().to_pylist()
    rows[0]["url"] = "http://another.test/rebuilt.jpg"
    pq.write_table(pa.Table.from_pylist(rows), shard)
    catalog = files.lake / "catalog" / "catalog.duckdb"
    build_catalog(files.lake, catalog)
    build_report(catalog, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    shown = [source for source in page.sources if source.startswith("data:image/jpeg")]
    assert len(shown) == 11 + 9, "12 above, less one, and all harmless ones below"
    assert "0.305 " + files.pairs[1]["text"] in page.text
    assert files.pairs[0]["text"] + " " not in page.text
    for name in ("just_above", "just_below"):
        with Image.open(tmp_path / "out" / "figures" / f"{name}.jpg") as sheet:
            assert sheet.width > 500
    table = (tmp_path / "out" / "figures" / "around_threshold.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 21
    assert "http" not in table


def test_a_subset_that_drops_no_pair_has_a_report(tmp_path: Path) -> None:
    files = SegmentFiles(tmp_path / "lake", *SEGMENTS[0])
    files.write()
    files.stats()
    files.tar()
    scored = files.folder("scored_pairs") / "part-00000.parquet"
    rows = pq.ParquetFile(scored).read()
    kept = [row | {"similarity": max(row["similarity"], 0.31)} for row in rows.to_pylist()]
    pq.write_table(pa.Table.from_pylist(kept, rows.schema), scored)
    catalog = files.lake / "catalog" / "catalog.duckdb"
    build_catalog(files.lake, catalog)
    build_report(catalog, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Just kept" in page
    assert "Just refused" not in page


def test_figures_are_pictures_for_light_and_dark_pages(facts: Facts, report: Path) -> None:
    figures = {figure.name: figure for figure in draw(facts)}
    files = sorted((report / "figures").glob("*.png"))
    assert [path.stem for path in files] == sorted(figures)
    for path in files:
        figure = figures[path.stem]
        assert path.read_bytes() == figure.light, "drawing twice gives the same bytes"
        light, dark = (
            np.asarray(Image.open(io.BytesIO(data)).convert("L"))
            for data in (figure.light, figure.dark)
        )
        assert light.shape == dark.shape
        assert light.shape[1] == 920
        assert light[0, 0] > 250
        assert dark[0, 0] < 40
        assert light.std() > 10, f"{path.stem} is not blank"


def test_a_long_host_leaves_room_for_its_bar(facts: Facts) -> None:
    host = "a-company-s-product-images.s3.eu-central-1.amazonaws.com"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a layout that collapses
        figures = draw(replace(facts, hosts=[(host, 50), ("b" * 63 + ".test", 20)]))
    (figure,) = (figure for figure in figures if figure.name == "hosts")
    assert host in figure.csv
    picture = np.asarray(Image.open(io.BytesIO(figure.light)).convert("RGB")).astype(int)
    coloured = np.abs(picture - picture[..., :1]).max(axis=2) > 60
    assert np.ptp(np.flatnonzero(coloured.any(axis=0))) > 300, "pixels of the longer bar"


def test_shares_are_of_all_pairs_and_not_of_those_shown(facts: Facts) -> None:
    many = [(f"{number:02d}", 10) for number in range(18)]
    figures = draw(replace(facts, languages=many, licenses=[(f"cc {n}", 4) for n, _ in many]))
    shares = {
        figure.name: [row[2] for row in figure.rows]
        for figure in figures
        if figure.name in ("language", "licences")
    }
    assert shares == {"language": [10 / 180] * 8, "licences": [4 / 72] * 8}


def test_a_heads_scores_are_a_figure_and_a_column_of_the_card(
    segment: SegmentFiles, tmp_path: Path
) -> None:
    for asset, n in (("scored_pairs", 40), ("filtered_subset", 24)):
        path = segment.folder(asset) / "part-00000.parquet"
        scores = pa.array([row / 40 for row in range(n)], pa.float32())
        table = pq.ParquetFile(path).read().append_column("score_watermark", scores)
        pq.write_table(table, path)
        metadata = json.loads((segment.folder(asset) / "_manifest.json").read_text())["metadata"]
        stages = [counts("subset", 24, {"below_threshold": 16})] if n == 24 else []
        segment.manifest(asset, stages, **metadata)
    segment.stats()
    build_catalog(tmp_path / "lake", tmp_path / "catalog.duckdb")
    figures = build_report(tmp_path / "catalog.duckdb", tmp_path / "report")["figures"]
    assert "score_watermark" in figures
    text = (tmp_path / "report" / "figures" / "score_watermark.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["low"]) for row in rows] == [n / 20 for n in range(20)]
    assert [int(row["pairs"]) for row in rows] == [2] * 20
    assert [int(row["samples"]) for row in rows] == [2] * 12 + [0] * 8
    assert "`score_watermark`" in (tmp_path / "report" / "dataset_card.md").read_text()


def test_the_same_catalog_gives_the_same_report(
    catalog: Path, report: Path, tmp_path: Path
) -> None:
    build_report(catalog, tmp_path)
    for name in ("report.html", "dataset_card.md"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()


def test_drawn_samples_are_shown_if_there_are_any(
    catalog: Path, report: Path, tmp_path: Path
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    Image.new("RGB", (4, 4), "red").save(samples / "overview.png")
    build_report(catalog, tmp_path / "out", samples=samples)
    shown = Page((tmp_path / "out" / "report.html").read_text())
    assert "Drawn by a model" in shown.text
    assert all(source.startswith("data:") for source in shown.sources)
    assert "Drawn by a model" not in Page((report / "report.html").read_text()).text


def test_the_card_has_the_tables_and_says_how_to_remove_a_sample(report: Path) -> None:
    card = (report / "dataset_card.md").read_text(encoding="utf-8")
    assert card.startswith("# Dataset card\n\n72 image-text samples from 3 segments")
    assert "| Embedded pairs | 120 | 72 | 60 % |" in card
    assert "| Unique samples | 72 | 100 % | 413,000,000 | 100 % |" in card
    assert "kept from a similarity of 0.3" in card
    assert "| `filtered_subset` | 1-abcd | model `tiny/tiny`; model_version `0123`; recipe" in card
    assert "Ask whoever gave you this dataset" in card
    for name in schemas.SUBSET.names:
        assert f"| `{name}` |" in card
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert len(tables) == 8
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_card_names_who_to_ask(facts: Facts) -> None:
    card = dataset_card(facts, "https://example.org/contact")
    assert "Write to https://example.org/contact" in card


def test_options_that_differ_between_segments_are_marked(tmp_path: Path) -> None:
    for number, (crawl, segment) in enumerate(SEGMENTS[:2]):
        files = SegmentFiles(tmp_path / "lake", crawl, segment)
        files.write()
        options = {"languages": ["en"], "min_text_chars": 5 + number}
        files.manifest(
            "pair_parquet",
            [
                counts("wat", 20, {"not_html": 5}),
                counts("pairs", 60, {"no_alt": 100, "alt_too_short": 7}),
            ],
            options=options,
        )
        files.stats()
    build_catalog(tmp_path / "lake", tmp_path / "catalog.duckdb")
    with open_catalog(tmp_path / "catalog.duckdb") as connection:
        card = dataset_card(gather(connection))
    assert "| `pair_parquet` | 1-abcd | languages `en`; min_text_chars *differs* |" in card


def test_untrusted_text_is_shown_and_not_run(segment: SegmentFiles, tmp_path: Path) -> None:
    path = segment.folder("filtered_subset") / "part-00000.parquet"
    rows = pq.ParquetFile(path).read().to_pylist()
    for row in rows[::2]:
        row["URL"] = "http://<img src=x onerror=alert(1)>/a.jpg"
        row["LICENSE"] = "<script>alert(1)</script>"
    segment.table("filtered_subset", path.name, rows, pq.read_schema(path))
    segment.stats()
    build_catalog(segment.lake, tmp_path / "catalog.duckdb")
    build_report(tmp_path / "catalog.duckdb", tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert any("<script>alert(1)</script>: 12" in alt for alt in page.alts)
    assert any("<img src=x onerror=alert(1)>: 12" in alt for alt in page.alts)
    assert "script" not in page.tags
    assert all(source.startswith("data:") for source in page.sources)


def test_an_empty_lake_has_a_report_too(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    build_catalog(tmp_path / "lake", tmp_path / "catalog.duckdb")
    summary = build_report(tmp_path / "catalog.duckdb", tmp_path / "out")
    assert (summary["samples"], summary["figures"]) == (0, [])
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "0 image-text samples" in page.text
    assert "no sample yet" in page.text


def test_a_missing_catalog_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="materialize the asset"):
        build_report(tmp_path / "catalog.duckdb", tmp_path / "out")


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.563, "56 %"), (0.0829, "8.3 %"), (0.0004, "< 0.1 %"), (0.0, "0 %")],
)
def test_shares_are_written_as_a_person_would(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://creativecommons.org/licenses/by-sa/3.0/de/", "CC BY-SA 3.0 de"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0"),
        ("http://creativecommons.org/publicdomain/mark/1.0/", "Public domain 1.0"),
        ("?", "none named"),
        ("https://example.org/mine", "https://example.org/mine"),
    ],
)
def test_licences_have_short_names(url: str, name: str) -> None:
    assert licence_name(url) == name


def test_importing_the_packages_loads_nothing_heavy() -> None:
    code = (
        "import sys, laion_assets.stats.report, laion_assets.stats.segment, "
        "laion_assets.knn.merge, laion_assets.knn.search, laion_assets.knn.recall\n"
        "print(sorted({'faiss', 'matplotlib', 'pandas', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scores_of_several_versions_of_a_head_are_named(lake: Path, tmp_path: Path) -> None:
    shutil.copytree(lake, own := tmp_path / "lake")
    of_each = ({"same": "1", "mixed": "1", "some": "1"}, {"same": "1", "mixed": "2"}, {"same": "1"})
    for key, heads in zip(SEGMENTS, of_each, strict=True):
        for asset in ("scored_pairs", "filtered_subset"):
            path = SegmentFiles(own, *key).folder(asset) / "_manifest.json"
            manifest = json.loads(path.read_text())
            manifest["metadata"]["heads"] = heads
            path.write_text(json.dumps(manifest))
    build_catalog(own, own / "catalog.duckdb")
    with open_catalog(own / "catalog.duckdb") as connection:
        assert gather(connection).uneven_scores == ["score_mixed", "score_some"]
    build_report(own / "catalog.duckdb", tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "several versions of the head: score_mixed , score_some ." in page.text
