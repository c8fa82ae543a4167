"""What is fuzzed, each with its seeds and with what must hold for any bytes.

A target takes bytes and raises for what must not happen; the refusals that are documented are no
failure. The first byte often chooses how the rest is used, so that mutation reaches behind
checksums.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from laion_assets.download.addresses import parse_endpoint
from laion_assets.download.bodies import Inflater, content_codings
from laion_assets.download.errors import FetchRefused, ImageRefused
from laion_assets.download.formats import lean
from laion_assets.download.heads import mended
from laion_assets.download.hosts import retry_after_s
from laion_assets.download.images import ImageMaker, LargeImage
from laion_assets.download.opt_out import opted_out
from laion_assets.download.options import DownloadOptions
from laion_assets.download.requester import as_asked
from laion_assets.funnel import StageCounts
from laion_assets.knn.samples import SampleRef
from laion_assets.lake.object_store import DamagedError
from laion_assets.lake.partition import DamagedManifestError, Manifest
from laion_assets.lake.pointer import Pointer, parse_pointer
from laion_assets.layout import SegmentKey
from laion_assets.pairs.extract import pairs_of
from laion_assets.pairs.rules import PairRules
from laion_assets.removals import compiled
from laion_assets.removals.entries import parse
from laion_assets.removals.entry import COMMENT, ListError, parse_entry
from laion_assets.search.query_images import decode_file
from laion_assets.wat import Page, read_pages
from laion_assets.wat.pages import NoPagesError
from tests.wat.making import anchor, image, payload, warc

SCRATCH: Final = Path(tempfile.mkdtemp(prefix="laion-assets-fuzz-"))
PLACE: Final = "pair_parquet/crawl=CC-MAIN-2000-05/segment=00"
_SHA: Final = "0" * 64


@dataclass(frozen=True)
class Target:
    """``modules``: prefixes of the modules whose branches guide the mutation."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    modules: Sequence[str]


# WAT files


def wat(data: bytes) -> None:
    """Any bytes are read, counted and paired; a gzipped file gives what a plain one gives."""
    mode, body = data[:1], data[1:]
    if mode == b"g":
        of_plain = _pages(body)
        of_zipped = _pages(gzip.compress(body, 1, mtime=0))
        # In one gzip member, damage costs what stands behind it, too.
        assert of_plain == of_zipped or None in (of_plain, of_zipped)
    elif mode == b"d" and len(body) > 2:
        whole = bytearray(gzip.compress(body[2:], 1, mtime=0))
        whole[int.from_bytes(body[:2], "big") % len(whole)] ^= 1 + body[0] % 255
        _pages(bytes(whole))
    else:
        _pages(body)


def _pages(content: bytes) -> list[Any] | None:
    """The pages of a file, None if it is damaged."""
    path = SCRATCH / "a.warc.wat"
    path.write_bytes(content)
    counts, of_pairs = StageCounts("wat"), StageCounts("pairs")
    seen: set[bytes] = set()
    found: list[Any] = []

    def pages() -> Iterator[Page]:
        for page in read_pages(path, counts):
            found.append(page)
            assert page.licences is not None
            yield page

    try:
        for uid, *pair in pairs_of(pages(), PairRules(), of_pairs, seen):
            json.dumps([uid.hex(), *pair]).encode()
            "".join(map(str, pair)).encode()
    except NoPagesError:
        assert not found
    assert counts.adds_up
    assert of_pairs.adds_up
    json.dumps([counts.to_json(), of_pairs.to_json()], ensure_ascii=False).encode()
    return None if counts.rejects.keys() & {"bad_record", "truncated"} else found


def _wat_seeds() -> list[bytes]:
    block = payload(
        [image("/a.jpg", "a small red house"), image("b.png", "caf\u00e9 &amp; bar"), anchor("/x")],
        base="http://other.example/d/",
        head=[{"path": "LINK@/href", "url": "https://creativecommons.org/licenses/by/4.0/"}],
    )
    old = warc(block).replace(b"2023-02-09", b"2016-02-09")
    both = warc(block) + warc(b"{}", kind="warcinfo") + old
    members = gzip.compress(warc(block)) + gzip.compress(old)
    return [b"g" + both, b"d\0\x40" + both, b"p" + both, b"p" + members, b"p\n" + both]


# Pictures

_MAKER_OPTIONS: Final = DownloadOptions(max_pixels=1_000_000, image_size=32)
_makers: list[ImageMaker] = []


def picture(data: bytes) -> None:
    """Any bytes are refused by name or become an image; what was refused lean stays refused."""
    mode, body = data[:1], data[1:]
    if mode == b"c":
        body = _with_right_crcs(body)
    if not _makers:
        others: list[dict[str, object]] = [
            {"apply_orientation": True},
            {"scaled_decoding": True, "image_size": 8},
        ]
        options = [_MAKER_OPTIONS.model_copy(update=other) for other in [{}, *others]]
        _makers.extend(map(ImageMaker, options))
    try:
        needed = lean(body)
        assert lean(needed) == needed
        sound = True
    except ImageRefused:
        sound = False
    for maker in _makers:
        try:
            made = maker.make(body)
        except (ImageRefused, LargeImage):
            continue
        assert sound
        with Image.open(io.BytesIO(made.encoded)) as opened:
            assert opened.size == (made.width, made.height)
        json.loads(made.exif or "{}")
    (SCRATCH / "body").write_bytes(body)
    decoded = decode_file(SCRATCH / "body", 1_000_000)
    assert isinstance(decoded, tuple) or (sound and decoded.ndim == 3)


def _with_right_crcs(body: bytes) -> bytes:
    out, at = body[:8], 8
    while at + 12 <= len(body):
        size = int.from_bytes(body[at : at + 4], "big") % (len(body) - at - 11)
        named = body[at + 4 : at + 8 + size]
        out += size.to_bytes(4, "big") + named + zlib.crc32(named).to_bytes(4, "big")
        at += 12 + size
    return out


def _picture_seeds() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, rgba = Image.fromarray(noise[:, :, :3]), Image.fromarray(noise)
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif.tobytes()}),
        (rgb, "JPEG", {"progressive": True, "restart_marker_rows": 1}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgba, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("L"), "PNG", {"bits": 4}),
        (rgba, "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"exif": exif.tobytes()}),
        (rgb, "GIF", {}),
    ]
    bodies = []
    for picture_, kind, options in made:
        body = io.BytesIO()
        picture_.save(body, kind, **options)
        bodies.append((b"c" if kind == "PNG" else b"p") + body.getvalue())
    return bodies


# Lists


def list_file(data: bytes) -> None:
    """A file is refused by line, or read the same line by line and compiled; entries match."""
    folder = SCRATCH / "list"
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_bytes(data)
    try:
        whole = compiled.load(folder)
    except ListError as error:
        assert "a.txt:" in str(error)
        return
    text = data.decode("utf-8-sig")
    assert parse(text.split("\n"), "a.txt").digest == whole.digest
    for line in text.split("\n"):
        entry = COMMENT.sub("", line.strip())
        if entry.startswith("url:http"):
            assert whole.matches_url(as_asked(entry.removeprefix("url:"))), entry
        elif entry.startswith("host:") and "#" not in entry:
            host = parse_entry(entry)[1]
            shown = f"[{host}]" if ":" in host else host
            assert whole.matches_url(f"http://{shown}/a.jpg"), entry
            assert whole.matches_url(f"http://www.{host}/a") or shown != host or host[-1].isdigit()


def _list_seeds() -> list[bytes]:
    lines = [
        "# a comment",
        "url:https://example.org/a.jpg?b=%20c",
        "https://b\u00fccher.example/\u00fc.png # why",
        "host:example.org",
        "host:[2001:db8::1]",
        f"sha256:{_SHA}",
        "d41d8cd98f00b204e9800998ecf8427e",
        f"url-sha256:{'A' * 64}",
        "sample-id:-42",
    ]
    return [line.encode() for line in lines] + ["\r\n".join(["\ufeff", *lines]).encode()]


# Pointers and manifests


def pointer(data: bytes) -> None:
    """A pointer is refused as damaged, or names files in its folder and objects of its place."""
    content = _json_of(data, _POINTER)
    try:
        found = parse_pointer(content, PLACE, "s3://bucket/_index/a.json")
    except DamagedError as error:
        assert "s3://bucket/_index/a.json" in str(error)
        return
    root = Path("/cache/folder")
    for name, stored in found.files.items():
        path = root / name
        assert path.is_relative_to(root)
        assert not {"..", "."} & set(name.split("/"))
        assert "\0" not in name + stored.object
        assert stored.object.startswith(PLACE + "/")
        assert ".." not in stored.object.split("/")
    for written in (found.to_bytes(), found.to_note()):
        again = parse_pointer(written, PLACE, "again")
        assert found.files_at or again.files == found.files
        # What JSON cannot say becomes null.
        assert again.manifest == found.manifest or b"N" in content or b"I" in content
    if found.manifest is not None:
        record = Manifest.from_json(found.record())
        assert Pointer(files=found.files).with_manifest(record).record().keys() >= {"files"}


def manifest(data: bytes) -> None:
    """A manifest is refused by its address, or what it says can be used and written again."""
    (SCRATCH / "_manifest.json").write_bytes(_json_of(data, _MANIFEST))
    try:
        found = Manifest.read(SCRATCH)
    except DamagedManifestError as error:
        assert "_manifest.json" in str(error)
        return
    assert found.data_version + found.fingerprint + found.code_version is not None
    assert found.bytes + found.seconds is not None
    for item in found.files:
        assert len(item["name"] + item["sha256"]) + item["bytes"] is not None
    for counts in found.counts:
        assert counts.rows()
        assert isinstance(counts.adds_up, bool)
    assert Manifest.from_json(json.loads(json.dumps(found.to_json())))


_MANIFEST: Final[dict[str, Any]] = {
    "asset": "pair_parquet",
    "crawl": "CC-MAIN-2000-05",
    "segment": "00",
    "run_id": "1",
    "code_version": "2-ab",
    "fingerprint": "0123",
    "data_version": "4567",
    "started": "2026-01-01T00:00:00+00:00",
    "seconds": 1.5,
    "bytes": 10,
    "files": [{"name": "a/part-0.parquet", "bytes": 10, "sha256": _SHA, "rows": 3}],
    "counts": [
        {"stage": "pairs", "in": 3, "kept": 2, "rejects": {"no_alt": 1}, "examples": {"url": ["x"]}}
    ],
    "metadata": {"a": 1},
}
_POINTER: Final[dict[str, Any]] = {
    "id": "abc",
    "files": {"a/b.parquet": {"object": f"{PLACE}/abc/b", "bytes": 1, "sha256": _SHA, "about": {}}},
    "files_at": None,
    "manifest": {key: value for key, value in _MANIFEST.items() if key != "files"},
    "held": True,
    "nonce": "x",
}
_ODD: Final[tuple[Any, ...]] = (
    *(None, True, 0, -1, 2**70, 1e400, float("nan"), "", "..", "../../x", "/etc", "a/../b", "a\0"),
    *(".hidden", "a//b", "\ud800", [], {}, [[]], {"": ""}, "\u202e", "a\n", ".units/x", "CON"),
)


def _json_of(data: bytes, seed: dict[str, Any]) -> bytes:
    """The bytes themselves, or the seed changed in places that they choose."""
    if data[:1] != b"m":
        return data[1:]
    value = json.loads(json.dumps(seed))
    for at in range(1, len(data) - 3, 4):
        _change(value, data[at : at + 4])
    return json.dumps(value).encode()


def _change(value: Any, how: bytes) -> None:
    """Replace, rename or drop one node of a JSON value."""
    chosen = random.Random(how[:2])
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = chosen.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and chosen.random() < 0.7:
            value = value[key]
            continue
        odd = copy.deepcopy(_ODD[how[2] % len(_ODD)])
        if how[3] % 4 == 0 and isinstance(value, dict):
            value[str(odd)] = value.pop(key)
        elif how[3] % 4 == 1:
            del value[key]
        else:
            value[key] = odd
        return


def _json_seeds(seed: dict[str, Any]) -> list[bytes]:
    return [b"m", b"p" + json.dumps(seed).encode(), *(b"m" + bytes([n] * 8) for n in range(0, 256))]


# HTTP, and names


def http(data: bytes) -> None:
    """Heads, header fields, codings and names: refused by name or read."""
    text = data.decode("latin-1")
    again = mended(data)
    assert mended(again) == again
    wait = retry_after_s(text)
    assert wait is None or wait >= 0
    opted_out(text.split("\n"), "laion-assets")
    as_asked(text)
    for parse_name in (SampleRef.parse, SegmentKey.parse, parse_endpoint):
        try:
            parsed = parse_name(text)
        except ValueError:
            continue
        if not isinstance(parsed, tuple):
            assert parse_name(str(parsed)) == parsed
    coding, _, body = data.partition(b"\n")
    try:
        for name in content_codings(coding.decode("latin-1")):
            body = _inflated(name, body)
    except FetchRefused:
        pass


def _inflated(coding: str, body: bytes) -> bytes:
    limit = 100_000
    whole, pieces = Inflater(coding, limit), Inflater(coding, limit)
    out = whole.add(body) + whole.end()
    assert len(out) <= limit or out == body
    in_pieces = b"".join(pieces.add(body[at : at + 3]) for at in range(0, len(body), 3))
    assert in_pieces + pieces.end() == out
    return out


def _http_seeds() -> list[bytes]:
    zipped = gzip.compress(b"some text", mtime=0)
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3, 3\r\n more\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\nTransfer-Encoding: identity, chunked\nContent-Length: 9\n\n",
        b"Wed, 21 Oct 2015 07:28:00 GMT",
        b"googlebot: noai, unavailable_after: 25 Jun 2010 15:00:00 PST\nnoindex",
        b"CC-MAIN-2021-04.07.000010002.0123456789abcdef",
        b"CC-MAIN-2021-04|07",
        b"127.0.0.1:80",
        b"http://user:pass@ex\xe4mple.org:81/a?b#c",
        b"gzip\n" + zipped + zipped,
        b"deflate,gzip\n" + gzip.compress(zlib.compress(b"some text"), mtime=0),
    ]


TARGETS: Final = {
    "wat": Target(wat, _wat_seeds, ("laion_assets.wat", "laion_assets.pairs")),
    "picture": Target(picture, _picture_seeds, ("laion_assets.download",)),
    "list": Target(list_file, _list_seeds, ("laion_assets.removals",)),
    "pointer": Target(pointer, lambda: _json_seeds(_POINTER), ("laion_assets.lake",)),
    "manifest": Target(manifest, lambda: _json_seeds(_MANIFEST), ("laion_assets.lake",)),
    "http": Target(http, _http_seeds, ("laion_assets.download", "laion_assets.knn.samples")),
}
