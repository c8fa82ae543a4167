from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from warcio.archiveiterator import ArchiveIterator

from laion_assets.funnel import REASONS, STAGES
from laion_assets.sample_crawl.build import Case, Manifest, build_sample_crawl
from laion_assets.sample_crawl.copies import COPIES
from laion_assets.sample_crawl.plan import COPY, Plan
from laion_assets.sample_crawl.server import ROUTES
from laion_assets.schemas import uid_of

# The keys of a real response's WAT record (CC-MAIN-2023-06), outermost first. Every leaf is a
# string but ``Compressed``, numbers included.
REAL_RESPONSE = {
    "Container": {
        "Filename": str,
        "Compressed": bool,
        "Offset": str,
        "Gzip-Metadata": {
            "Deflate-Length": str,
            "Header-Length": str,
            "Footer-Length": str,
            "Inflated-CRC": str,
            "Inflated-Length": str,
        },
    },
    "Envelope": {
        "Payload-Metadata": {
            "Actual-Content-Type": str,
            "HTTP-Response-Metadata": {
                "Response-Message": {"Status": str, "Version": str, "Reason": str},
                "Headers-Length": str,
                "Headers": dict,
                "HTML-Metadata": {
                    "Head": {"Metas": list, "Title": str, "Link": list, "Scripts": list},
                    "Links": list,
                },
                "Entity-Length": str,
                "Entity-Digest": str,
                "Entity-Trailing-Slop-Length": str,
            },
            "Actual-Content-Length": str,
            "Trailing-Slop-Length": str,
            "Block-Digest": str,
        },
        "Format": str,
        "WARC-Header-Length": str,
        "WARC-Header-Metadata": {
            "WARC-Type": str,
            "WARC-Date": str,
            "WARC-Record-ID": str,
            "Content-Length": str,
            "Content-Type": str,
            "WARC-Warcinfo-ID": str,
            "WARC-Concurrent-To": str,
            "WARC-IP-Address": str,
            "WARC-Target-URI": str,
            "WARC-Payload-Digest": str,
            "WARC-Block-Digest": str,
            "WARC-Identified-Payload-Type": str,
        },
    },
}
REAL_REQUEST_METADATA = {
    "Request-Message": {"Method": str, "Path": str, "Version": str},
    "Headers-Length": str,
    "Headers": dict,
    "Entity-Length": str,
    "Entity-Digest": str,
    "Entity-Trailing-Slop-Length": str,
}
REAL_HEADERS = {
    "metadata": [
        "WARC-Type",
        "WARC-Target-URI",
        "WARC-Date",
        "WARC-Record-ID",
        "WARC-Refers-To",
        "Content-Type",
        "Content-Length",
        "WARC-Payload-Digest",
        "WARC-Block-Digest",
    ],
    "warcinfo": [
        "WARC-Type",
        "WARC-Date",
        "WARC-Filename",
        "WARC-Record-ID",
        "Content-Type",
        "Content-Length",
        "WARC-Block-Digest",
    ],
}


def shape(value: Any, like: Any) -> Any:
    if isinstance(like, dict) and isinstance(value, dict):
        return {key: shape(content, like.get(key)) for key, content in value.items()}
    return type(value)


def records(wat: Path) -> Iterator[tuple[str, list[str], bytes]]:
    """Yield (type, header names, payload) of each record that warcio can read whole."""
    with wat.open("rb") as stream:
        for record in ArchiveIterator(stream, check_digests="raise"):
            headers = record.rec_headers
            payload = record.raw_stream.read()
            if len(payload) == int(headers.get_header("Content-Length")):
                yield record.rec_type, [name for name, _ in headers.headers], payload


def wats(built: Path) -> list[Path]:
    return sorted((built / "crawl-data").rglob("*.warc.wat.gz"))


def test_same_bytes_every_time(built: Path, tmp_path: Path) -> None:
    build_sample_crawl(tmp_path)

    def digests(root: Path) -> dict[str, str]:
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("*")
            if path.is_file()
        }

    assert digests(tmp_path) == digests(built)


def test_a_rebuild_removes_files_that_are_no_longer_part_of_it(tmp_path: Path) -> None:
    stray = tmp_path / "crawl-data" / "CC-MAIN-2000-05" / "segments" / "1" / "wat" / "old.wat.gz"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"old")
    build_sample_crawl(tmp_path)
    assert not stray.exists()
    first = wats(tmp_path)[0]
    changed = first.stat().st_mtime_ns
    build_sample_crawl(tmp_path)
    assert first.stat().st_mtime_ns == changed


def test_layout_is_common_crawls(built: Path) -> None:
    listed = json.loads((built / "collinfo.json").read_text())
    assert [crawl["id"] for crawl in listed] == ["CC-MAIN-2000-10", "CC-MAIN-2000-05"]
    for crawl in listed:
        assert list(crawl) == ["cdx-api", "from", "id", "name", "timegate", "to"]
        packed = (built / "crawl-data" / crawl["id"] / "wat.paths.gz").read_bytes()
        paths = gzip.decompress(packed).decode().splitlines()
        assert len(paths) == 4
        assert len({path.split("/")[3] for path in paths}) == 2
        assert all((built / path).is_file() for path in paths)
    assert len(wats(built)) == 8


def test_response_records_have_the_fields_of_real_ones(built: Path) -> None:
    seen = 0
    html = ("Envelope", "Payload-Metadata", "HTTP-Response-Metadata", "HTML-Metadata")
    for wat in wats(built):
        for kind, headers, payload in records(wat):
            assert headers == REAL_HEADERS[kind]
            if kind == "warcinfo" or b'"HTML-Metadata"' not in payload:
                continue
            try:
                found = json.loads(payload)
            except json.JSONDecodeError:
                continue
            inner = found
            for key in html:
                inner = inner[key]
            if "Links" not in inner or "Base" in inner["Head"]:
                continue
            assert shape(found, REAL_RESPONSE) == REAL_RESPONSE
            seen += 1
    assert seen > 150


def test_request_records_have_the_fields_of_real_ones(built: Path) -> None:
    seen = 0
    for _, _, payload in records(wats(built)[0]):
        if b'"HTTP-Request-Metadata"' in payload:
            found = json.loads(payload)["Envelope"]["Payload-Metadata"]["HTTP-Request-Metadata"]
            assert shape(found, REAL_REQUEST_METADATA) == REAL_REQUEST_METADATA
            seen += 1
    assert seen > 15


def test_every_record_is_a_gzip_member(built: Path) -> None:
    data = wats(built)[0].read_bytes()
    members = 0
    while data:
        inflate = zlib.decompressobj(zlib.MAX_WBITS + 16)
        assert inflate.decompress(data).startswith(b"WARC/1.0\r\n")
        data = inflate.unused_data
        members += 1
    assert members == sum(1 for _ in records(wats(built)[0]))


def test_one_file_ends_inside_a_record(built: Path, manifest: Manifest) -> None:
    [case] = manifest.named("record_truncated")
    whole = []
    for wat in wats(built):
        try:
            gzip.decompress(wat.read_bytes())
            whole.append(wat)
        except EOFError:
            assert str(wat.relative_to(built)) == case.wat_file
    assert len(whole) == 7


def test_one_record_is_broken_json_and_pages_follow_it(built: Path, manifest: Manifest) -> None:
    [case] = manifest.named("record_bad_json")
    broken = []
    after = 0
    for kind, _, payload in records(built / case.wat_file):
        if kind == "warcinfo":
            continue
        try:
            json.loads(payload)
            after += bool(broken)
        except json.JSONDecodeError:
            broken.append(payload)
    assert len(broken) == 1
    assert b'"IMG@/src"' in broken[0]
    assert after > 10


def test_funnel_adds_up(manifest: Manifest) -> None:
    rows = {(stage, reason): n for stage, reason, n in manifest.funnel}
    assert list(dict.fromkeys(stage for stage, _, _ in manifest.funnel)) == list(STAGES)
    for stage in STAGES:
        rejected = sum(n for (at, why), n in rows.items() if at == stage and why in REASONS[stage])
        assert rows[stage, "in"] == rows[stage, "kept"] + rejected
    for before, after in itertools.pairwise(STAGES[1:]):
        assert rows[after, "in"] == rows[before, "kept"]
    assert rows["wat", "in"] > rows["wat", "kept"] > 100
    assert rows["subset", "kept"] >= 1_500


def test_funnel_counts_the_cases(manifest: Manifest) -> None:
    links = [case for case in manifest.cases if case.stage != "wat"]
    rows = {(stage, reason): n for stage, reason, n in manifest.funnel}
    assert rows["pairs", "in"] == len(links)
    assert rows["subset", "kept"] == sum(case.kept for case in links)
    for (stage, reason), n in rows.items():
        if stage != "wat" and reason not in ("in", "kept"):
            assert n == sum((case.stage, case.reason) == (stage, reason) for case in links)


@pytest.mark.parametrize("stage", ["pairs", "images", "subset"])
def test_every_reason_is_planted(manifest: Manifest, stage: str) -> None:
    """Except reasons that need a list, an option, damage or a past: the sample world has none."""
    elsewhere = {
        "removed",
        "blocked",
        "robots",
        "host_down",
        "decode_timeout",
        "decoder_failed",
        "changed",
        "predicate",
        "scores",
        "duplicate_image",
        "bad_value",
        "too_complex",
        "too_narrow",
        "alt_few_words",
        "alt_file_name",
        "url_placeholder",
        "url_many_texts",
    }
    planted = {case.reason for case in manifest.cases if case.stage == stage}
    assert set(REASONS[stage]) - elsewhere <= planted


def test_only_planted_duplicates_are_duplicates(manifest: Manifest) -> None:
    seen: set[bytes] = set()
    for case in manifest.cases:
        if case.stage in ("wat", "pairs"):
            continue
        uid = uid_of(case.url, case.text)
        assert (uid in seen) == ((case.stage, case.reason) == ("unique_pairs", "duplicate"))
        seen.add(uid)


def test_copies_are_on_other_sites_and_in_any_segment(manifest: Manifest) -> None:
    plan = Plan()
    kept: dict[str | None, list[Case]] = {}
    for case in manifest.cases:
        if case.kept:
            kept.setdefault(case.file, []).append(case)
    copies = [case for case in manifest.cases if case.name.startswith("copy_")]
    assert {case.name for case in copies} == {f"copy_{kind}" for kind in COPIES}
    assert Counter(case.file for case in copies) == {pair.file: 1 for pair in plan.group(COPY)}
    places = Counter[str]()
    for copy in copies:
        assert copy.kept
        originals = kept[plan.original(str(copy.file))]
        for original in originals:
            assert urlsplit(original.page_url).hostname != urlsplit(copy.page_url).hostname
            assert original.url != copy.url
        first = originals[0]
        if first.crawl != copy.crawl:
            places["other crawl"] += 1
        else:
            same = first.segment == copy.segment
            places["same segment" if same else "other segment"] += 1
    assert all(places[place] > 1 for place in ("same segment", "other segment", "other crawl"))


def test_kept_pictures_have_their_size(manifest: Manifest) -> None:
    kept = [case for case in manifest.cases if case.stage == "subset"]
    assert all(case.width and case.height and case.file for case in kept)
    wide = [case for case in kept if case.width != case.height]
    assert len(wide) > 500


def test_manifest_reads_back(built: Path, tmp_path: Path) -> None:
    assert build_sample_crawl(tmp_path) == Manifest.read(built)
    with pytest.raises(FileNotFoundError):
        Manifest.read(tmp_path / "nothing")


def test_a_smaller_crawl_has_every_case_and_what_copies_are_of(built: Path, tmp_path: Path) -> None:
    small, whole = build_sample_crawl(tmp_path, ordinary=0.1), Manifest.read(built)
    fewer, all_of = (Counter(case.name for case in one.cases) for one in (small, whole))
    assert fewer.keys() == all_of.keys()
    assert {name for name in all_of if fewer[name] < all_of[name]} == {
        "ordinary",
        "mismatched_caption",
        "model_miss",
        "layout_image",
    }
    assert fewer["ordinary"] < all_of["ordinary"] / 2
    # What the filter refuses is there more than once.
    assert min(fewer["mismatched_caption"], fewer["model_miss"]) >= 8
    files = {case.file for case in small.cases if case.file}
    assert {Plan().original(file) for file in files} <= files
    routes = [json.loads((folder / ROUTES).read_bytes()) for folder in (tmp_path, built)]
    assert routes[0] == routes[1]
