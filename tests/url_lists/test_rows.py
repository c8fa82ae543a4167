"""Files as people have them: dialects, encodings, headers, damage; and any range of their rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.url_lists.files import UrlListError, find_files
from laion_assets.url_lists.options import ReadOptions
from laion_assets.url_lists.rows import open_rows

URL = "http://a.example/{}.jpg"


def read(path: Path, **options: object) -> tuple[list[tuple[str | None, str | None]], int]:
    """(URL, caption) of each row, and the number of damaged lines.

    Asserts that it counts as many rows, and that ranges of them are the same rows.
    """
    given = ReadOptions.model_validate(options)
    (file,) = find_files([str(path)], given)
    with open_rows(file, given) as rows:
        columns = rows.columns
        table = pa.Table.from_batches(rows.batches(), rows.schema).to_pylist()
        damaged = rows.damaged
        assert rows.count() == len(table)
        for begin, end in ((0, 1), (1, len(table)), (len(table) - 1, None)):
            part = pa.Table.from_batches(rows.batches(begin, end), rows.schema)
            assert part.to_pylist() == table[begin:end]
    text = columns.text
    return [(row[columns.url], row[text] if text else None) for row in table], damaged


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = f"url,text\n{URL.format(1)},Café crème\n{URL.format(2)},Straße\n"
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    rows, damaged = read(tmp_path / "a.csv")
    assert rows == [(URL.format(1), "Café crème"), (URL.format(2), "Straße")]
    assert damaged == 0


def test_a_few_wrong_bytes_do_not_make_it_another_encoding(tmp_path: Path) -> None:
    lines = [f"{URL.format(n)},Straße {n}".encode() for n in range(9)]
    lines.insert(4, URL.format(9).encode() + b",\xff wrong")
    (tmp_path / "a.csv").write_bytes(b"\n".join([b"url,text", *lines]))
    rows, damaged = read(tmp_path / "a.csv")
    assert [text for _, text in rows] == [f"Straße {n}" for n in range(9)]
    assert damaged == 1


def test_damaged_lines_are_counted_and_the_others_read(tmp_path: Path) -> None:
    good = "".join(f"{URL.format(n)},a text\n" for n in range(30_000))
    bad = f"{URL.format(1)},too,many,columns\n{URL.format(2)}\n"
    (tmp_path / "a.csv.gz").write_bytes(
        gzip.compress(f'url,text\n{good}{bad}{URL.format(3)},"a ""last"" text"\n'.encode())
    )
    rows, damaged = read(tmp_path / "a.csv.gz")
    assert (len(rows), damaged) == (30_001, 2)
    assert rows[-1] == (URL.format(3), 'a "last" text')


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_file_without_a_header_is_known_by_its_urls(tmp_path: Path, ends: str) -> None:
    lines = [f'{n}"\t{URL.format(n)}' for n in range(3)]
    (tmp_path / "a.tsv").write_bytes((ends.join(lines) + ends).encode())
    assert read(tmp_path / "a.tsv")[0] == [(URL.format(n), f'{n}"') for n in range(3)]


def test_lines_that_begin_with_a_number_sign_are_rows(tmp_path: Path) -> None:
    lines = ["#1 of them", *(f"of {n}" for n in range(9)), "#2 of them"]
    rows = [(URL.format(n), text) for n, text in enumerate(lines)]
    text = "".join(f"{text},{url}\n" for url, text in rows)
    (tmp_path / "a.csv").write_text(f"text,url\n{text}")
    assert read(tmp_path / "a.csv") == (rows, 0)


def test_a_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "url=x"
    folder.mkdir()
    for name, text in (("a[12].csv", "right"), ("a1.csv", "wrong"), ("b?.csv", "right")):
        (folder / name).write_text(f"url,text\n{URL.format(1)},{text}\n")
    for name in ("a[12].csv", "b?.csv"):
        assert read(folder / name) == ([(URL.format(1), "right")], 0)


def test_a_header_alone_with_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"Image_URL;Alt\n{URL.format(1)};one\n")
    assert read(tmp_path / "a.csv")[0] == [(URL.format(1), "one")]


def test_several_columns_without_a_header_need_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("".join(f"{URL.format(n)},x{n},y{n}\n" for n in range(3)))
    with pytest.raises(UrlListError, match=r"no header and 3 columns .column0, column1, column2."):
        read(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", text="column2")[0][1] == (URL.format(1), "y1")


def test_json_values_stay_what_they_are(tmp_path: Path) -> None:
    captions = ["2020-01-01", "007", 'a "quoted" é', None, "  "]
    rows = [{"url": URL.format(n), "caption": text} for n, text in enumerate(captions)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{broken", '{"url": "x"}']))
    expected = [(URL.format(n), text) for n, text in enumerate(captions)]
    assert read(tmp_path / "a.jsonl")[0] == [*expected, (None, None), ("x", None)]
    late = [{"url": URL.format(n), f"key{n % 300}": n} for n in range(25_000)]
    late.append({"url": URL.format(0), "caption": "late"})
    (tmp_path / "c.jsonl").write_text("\n".join(["3", *map(json.dumps, late)]))
    assert read(tmp_path / "c.jsonl")[0][-1] == (URL.format(0), "late")
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert read(tmp_path / "b.json")[0] == expected


def test_lines_of_text_are_urls_whatever_is_in_them(tmp_path: Path) -> None:
    urls = [URL.format("a,b"), 'http://a.example/"c"', URL.format("d;e")]
    (tmp_path / "a.txt").write_text("\n".join(urls))
    assert read(tmp_path / "a.txt")[0] == [(url, None) for url in urls]


def test_ranges_of_parquet_begin_in_any_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"URL": [URL.format(n) for n in range(25_010)]})
    pq.write_table(table, path, row_group_size=12_003)
    (file,) = find_files([str(path)], ReadOptions())
    with open_rows(file, ReadOptions()) as rows:
        for begin, end in ((0, None), (12_002, 12_005), (24_006, None), (3, 3), (25_010, None)):
            part = pa.Table.from_batches(rows.batches(begin, end), rows.schema)
            assert part.equals(table.slice(begin, (end or 25_010) - begin))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"nonsense", r"a\.parquet cannot be read as parquet: "),
        ("a.csv", b"", r"a\.csv "),
        ("a.csv", b"a,b\n1,2\n", "no column .*a.csv has a known name .* columns are a, b"),
        ("a.jsonl", '{"url": "x"}'.encode("utf-16"), "JSON is read as UTF-8 only"),
        ("a.jsonl", '{"url": "x"}'.encode("utf-8-sig"), "begins with a byte order mark"),
        ("a.csv", "\ufeffurl\nx\n".encode("utf-16-be"), "high byte first, which is not read"),
        ("a.json", b"[1, 2]", r"a\.json cannot be read as json: it has no record"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UrlListError, match=message):
        read(tmp_path / name)


def test_columns_that_hold_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["x"], "text": [["a", "b"]]}), tmp_path / "a.parquet")
    with pytest.raises(UrlListError, match=r"column text of .* is list.*, not text"):
        read(tmp_path / "a.parquet")
