"""The JSON of samples is strict, and others' loaders find one type for each key."""

from __future__ import annotations

import json
import tarfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from laion_assets import schemas
from laion_assets.download.sample_json import SampleJson
from tests.download.conftest import Listener, options_for, redirect, run, urls

pytestmark = pytest.mark.filterwarnings("ignore:value is deprecated:DeprecationWarning")

WHEN = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
NAN, INF = float("nan"), float("inf")


def of(name: str, kind: pa.DataType, value: object) -> Any:
    """What the JSON of a row has for one column; fails if it is not strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = SampleJson(pa.schema([(name, kind)]))({name: value})
    return json.loads(text, parse_constant=refuse)[name]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.string(), "a", "a"),
        (pa.large_string(), "b", "b"),
        (pa.int64(), 2**60, "1152921504606846976"),
        (pa.float64(), 0.5, "0.5"),
        (pa.float64(), 1.0, "1.0"),
        (pa.bool_(), True, "true"),
        (pa.list_(pa.string()), [], "[]"),
        (pa.list_(pa.string()), ["x", None], '["x", null]'),
        (pa.list_(pa.float32()), [NAN, 1.5, -INF], "[null, 1.5, null]"),
        (pa.list_(pa.binary()), [b"\x00a"], '["0061"]'),
        (pa.list_(pa.timestamp("us", "UTC")), [WHEN], '["2020-01-02 03:04:05+00:00"]'),
        (pa.struct([("a", pa.date32())]), {"a": date(2020, 1, 2)}, '{"a": "2020-01-02"}'),
        (pa.map_(pa.string(), pa.int8()), [("k", 1)], '[["k", 1]]'),
        (pa.list_(pa.decimal128(4, 2)), [Decimal("1.50")], '["1.50"]'),
    ],
    ids=str,
)
def test_a_carried_value_is_a_text_whether_it_is_missing_or_not(
    kind: pa.DataType, value: object, text: str
) -> None:
    assert of("carried", kind, value) == text
    assert of("carried", kind, None) == ""


def test_a_number_that_is_none_is_missing() -> None:
    assert [of("score", pa.float64(), value) for value in (NAN, INF, -INF)] == [""] * 3


def test_columns_of_every_shard_keep_their_json_types() -> None:
    assert of("original_width", pa.int32(), 640) == 640
    assert of("language_score", pa.float32(), 0.5) == 0.5
    assert of("language_score", pa.float32(), NAN) is None
    assert of("language_score", pa.string(), "high") == "high"
    assert of("error_message", pa.string(), None) is None
    assert of("reason", pa.string(), None) is None
    assert of("exif", pa.string(), None) == ""
    assert of("redirects", pa.list_(pa.string()), ["http://a.test/"]) == '["http://a.test/"]'


@pytest.fixture(scope="module")
def nested() -> pa.Table:
    """Columns whose first rows lack what later ones have, and of types that JSON does not have."""
    last = [None] * 7
    return pa.table(
        {
            "url": [*urls(4), *urls(14)[10:13], "http://h0.test/moved.jpg"],
            "text": [*[f"picture {i}" for i in range(7)], "a picture that moved"],
            "note": pa.array([*last, "said late"], pa.string()),
            "year": pa.array([*last, 1999], pa.int64()),
            "punsafe": pa.array([NAN, INF, None, *[0.25] * 5], pa.float64()),
            "digests": pa.array([*last, [b"a"]], pa.list_(pa.binary())),
            "seen": pa.array([[], None, *[[WHEN]] * 6], pa.list_(pa.timestamp("us", "UTC"))),
            "born": pa.array([{"a": date(2020, 1, 2)}] * 8, pa.struct([("a", pa.date32())])),
        }
    )


def test_datasets_loads_shards_without_options(
    images: Listener, nested: pa.Table, tmp_path: Path
) -> None:
    images.routes["/moved.jpg"] = redirect("http://h0.test/20.jpg")
    pq.write_table(nested, tmp_path / "pairs.parquet")
    options = options_for(images, samples_per_shard=8)
    assert run(tmp_path / "pairs.parquet", tmp_path / "out", options).kept == 8
    tar = tmp_path / "out" / "00000.tar"
    with tarfile.open(tar) as archive:
        texts = [archive.extractfile(m).read() for m in archive if m.name.endswith(".json")]  # type: ignore[union-attr]
    abouts = [json.loads(text, parse_constant=pytest.fail) for text in texts]
    assert len({tuple((name, type(value)) for name, value in a.items()) for a in abouts}) == 1

    for streaming in (False, True):
        loaded = load_dataset(
            "webdataset",
            data_files=str(tar),
            split="train",
            streaming=streaming,
            cache_dir=str(tmp_path / "cache"),
        )
        samples = list(loaded)
        assert [sample["json"] for sample in samples] == abouts
        assert [sample["txt"] for sample in samples] == nested["text"].to_pylist()
        assert {sample["jpg"].size for sample in samples} == {(256, 256)}
    about = abouts[-1]
    assert json.loads(about["redirects"]) == ["http://h0.test/20.jpg"]
    assert (about["note"], about["year"], about["punsafe"]) == ("said late", "1999", "0.25")
    assert (about["digests"], about["born"]) == ('["61"]', '{"a": "2020-01-02"}')
    assert [a["punsafe"] for a in abouts[:4]] == ["", "", "", "0.25"]

    # The parquet beside it has the values in their types.
    rows = pq.read_table(tmp_path / "out" / "00000.parquet")
    for name in ("note", "year", "digests", "seen", "born"):
        assert rows[name].to_pylist() == nested[name].to_pylist()
    assert rows.schema.field("redirects").type == schemas.IMAGES.field("redirects").type
    assert rows["redirects"].to_pylist() == [None] * 7 + [["http://h0.test/20.jpg"]]
