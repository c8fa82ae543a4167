"""The page of generated samples shows real pictures; it is served only while all may be shown."""

from __future__ import annotations

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from laion_assets.generation.shown_samples import SHOWN
from tests.search.conftest import FIRST, Serving, SmallLake, serving

PAGE = "<h1>Drawn</h1>"


def status(running: Serving) -> int:
    answer = running.http.get("/generated")
    assert running.http.get("/about").json()["generated"] is (answer.status_code == 200)
    return answer.status_code


@pytest.mark.parametrize("column", ["URL", "sha256", "SAMPLE_ID"])
def test_the_page_goes_when_a_picture_on_it_is_listed(own_lake: SmallLake, column: str) -> None:
    row = own_lake.write_samples(PAGE)
    entry = f"sample-id:{row[column]}" if column == "SAMPLE_ID" else row[column]
    removals = own_lake.root / "removals"
    removals.mkdir()
    with serving(own_lake.index, own_lake.model) as running:
        (removals / "a.txt").write_text("https://other.test/a.jpg\n")
        assert status(running) == 200
        (removals / "b.txt").write_text(f"{entry}\n")
        assert status(running) == 404
        (removals / "b.txt").unlink()
        assert status(running) == 200
        (removals / "b.txt").write_text("what is this\n")
        assert status(running) == 404


def test_the_page_goes_when_the_subset_loses_a_picture_on_it(own_lake: SmallLake) -> None:
    row = own_lake.write_samples(PAGE)
    part = own_lake.lake.folder("filtered_subset", FIRST) / "part-00000.parquet"
    with serving(own_lake.index, own_lake.model) as running:
        assert status(running) == 200
        table = pq.ParquetFile(part).read()
        pq.write_table(table.filter(pc.not_equal(table["SAMPLE_ID"], row["SAMPLE_ID"])), part)
        assert status(running) == 404


def test_a_page_that_does_not_name_its_pictures_is_not_served(
    own_lake: SmallLake,
) -> None:
    own_lake.write_samples(PAGE)
    (own_lake.root / "dalle_samples" / SHOWN).unlink()
    with serving(own_lake.index, own_lake.model) as running:
        assert status(running) == 404
