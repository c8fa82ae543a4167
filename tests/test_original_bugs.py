"""What the original pipeline got wrong: each time its result with the bug rebuilt, then ours.

Sources: the LAION-400M workers (rvencu/crawlingathome-gpu-hcloud and its first versions), the
release itself, and cc2dataset 1.5.0 for a WAT lost to one bad record. Each package's own tests go
deeper; this file is for who wants to see that nothing of it is left.
"""

from __future__ import annotations

import csv
import gzip
import http.client
import io
import json
import posixpath
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme
import warcio

from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.shards import read_rows
from laion_assets.download.errors import FetchRefused
from laion_assets.download.images import ImageMaker
from laion_assets.download.options import DownloadOptions
from laion_assets.pairs.extract import extract_wat
from laion_assets.pairs.rules import PairRules
from laion_assets.safety.minors import load_words, names_minors
from laion_assets.safety.prompts import Categories, Ranked, load_prompts
from laion_assets.safety.tags import tag
from laion_assets.tables import read_parquet, write_table
from tests.download.conftest import PUBLIC, Listener, answer, encoded, get, listening, picture
from tests.wat.making import image, member, page, payload, write

PAGE = "http://shop.example/shop/items/page.html"
TEXT = "a photo of the old house"

Pairs = Callable[..., list[tuple[str, str]]]


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    """WAT members in, (url, text) of the pairs out, by our rules."""

    def extract(*members: bytes) -> list[tuple[str, str]]:
        wat, out = write(tmp_path / "a.warc.wat.gz", *members), tmp_path / "a.parquet"
        place = {"crawl": "CC-MAIN-2021-04", "segment": "00", "wat_file": wat.name}
        extract_wat(wat, out, PairRules(), **place)
        rows = pq.read_table(out, columns=["url", "text"]).to_pylist()
        return [(row["url"], row["text"]) for row in rows]

    return extract


def links_of(record: bytes) -> list[dict[str, str]]:
    """A page's links, as a worker in Python reads them."""
    block = gzip.decompress(record).split(b"\r\n\r\n", 1)[1]
    metadata = json.loads(block)["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]
    links: list[dict[str, str]] = metadata["HTML-Metadata"]["Links"]
    return links


# From a page's links to pairs


def test_relative_links_were_resolved_one_directory_too_high(pairs: Pairs) -> None:
    record = page([image("photo.jpg", TEXT)], PAGE)

    def theirs(src: str) -> str:
        parts = urlsplit(PAGE)
        folder = posixpath.dirname(posixpath.dirname(parts.path))
        return f"{parts.scheme}://{parts.netloc}{posixpath.join(folder, src)}"

    assert theirs(links_of(record)[0]["url"]) == "http://shop.example/shop/photo.jpg"
    assert pairs(record) == [("http://shop.example/shop/items/photo.jpg", TEXT)]


def test_base_href_was_ignored(pairs: Pairs) -> None:
    record = page([image("photo.jpg", TEXT)], PAGE, base="//cdn.example/x/")
    theirs = urljoin(PAGE, links_of(record)[0]["url"])
    assert theirs == "http://shop.example/shop/items/photo.jpg"
    assert pairs(record) == [("http://cdn.example/x/photo.jpg", TEXT)]


def test_relative_links_were_dropped(pairs: Pairs) -> None:
    record = page([image("a.jpg", TEXT), image("//h.example/b.jpg", TEXT)], PAGE)
    assert [link for link in links_of(record) if link["url"].startswith("http")] == []
    assert [url for url, _ in pairs(record)] == [
        "http://shop.example/shop/items/a.jpg",
        "http://h.example/b.jpg",
    ]


def test_links_that_are_no_images_passed_if_they_had_an_alt(pairs: Pairs) -> None:
    area = {"path": "AREA@/href", "url": "http://shop.example/next.html", "alt": TEXT}
    record = page([area, image("a.jpg", TEXT)], PAGE)
    theirs = [link["url"] for link in links_of(record) if "alt" in link]
    assert theirs == ["http://shop.example/next.html", "a.jpg"]
    assert pairs(record) == [("http://shop.example/shop/items/a.jpg", TEXT)]


def test_entities_were_left_in_the_text_and_counted(pairs: Pairs) -> None:
    record = page([image("a.jpg", "&lt;3"), image("b.jpg", "Tom &amp; Jerry on a sofa")], PAGE)
    theirs = [link["alt"] for link in links_of(record) if len(link["alt"]) >= 5]
    assert theirs == ["&lt;3", "Tom &amp; Jerry on a sofa"]
    assert [text for _, text in pairs(record)] == ["Tom & Jerry on a sofa"]


def test_one_bad_record_lost_the_whole_wat(pairs: Pairs, tmp_path: Path) -> None:
    good = [page([image("a.jpg", TEXT)], f"http://h{n}.example/") for n in range(4)]
    bad = member(payload([image("a.jpg", TEXT)])[:-9])
    records = [*good[:2], bad, *good[2:]]

    def theirs(wat: Path) -> list[str]:
        found = []
        try:
            with wat.open("rb") as stream:
                for record in warcio.ArchiveIterator(stream):
                    envelope = json.loads(record.content_stream().read())["Envelope"]
                    found.append(str(envelope["Format"]))
        except ValueError:
            return []
        return found

    assert len(theirs(write(tmp_path / "good.gz", *good))) == 4
    assert theirs(write(tmp_path / "bad.gz", *records)) == []
    assert [url for url, _ in pairs(*records)] == [f"http://h{n}.example/a.jpg" for n in range(4)]


# Fetching


@pytest.fixture
def bad_certificate() -> Iterator[Listener]:
    """A server whose certificate nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("elsewhere.test").configure_cert(context)
    with listening(PUBLIC, tls=context) as web:
        web.routes["/a.jpg"] = answer(b"anything at all")
        yield web


def test_tls_was_not_verified(bad_certificate: Listener) -> None:
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(PUBLIC, bad_certificate.port, context=trusting)
    connection.request("GET", "/a.jpg", headers={"Host": "img.test"})
    assert connection.getresponse().read() == b"anything at all"
    connection.close()
    assert len(bad_certificate.requests) == 1

    with pytest.raises(FetchRefused) as refused:
        get(f"https://img.test:{bad_certificate.port}/a.jpg")
    assert refused.value.reason == "tls"
    assert len(bad_certificate.requests) == 1


def test_it_pretended_to_be_a_browser() -> None:
    browser = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/89.0 Safari/537"
    contact = "https://contact.example/bot"
    with listening(PUBLIC) as web:
        web.routes["/a.jpg"] = answer(b"body")
        connection = http.client.HTTPConnection(PUBLIC, web.port)
        connection.request("GET", "/a.jpg", headers={"Host": "a.test", "User-Agent": browser})
        connection.getresponse().read()
        connection.close()
        get(f"http://a.test:{web.port}/a.jpg", DownloadOptions(contact=contact))
    theirs, ours = (
        next(line for line in head.split("\r\n") if line.startswith("User-Agent: "))
        for head in web.heads
    )
    assert theirs == f"User-Agent: {browser}"
    assert ours.startswith("User-Agent: laion-assets/")
    assert "Mozilla" not in ours
    assert contact in ours


# Embedding and tagging


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    name = "laion-assets-tiny"
    return load_clip(ClipOptions(model=name, pretrained=name, device="cpu"))


def test_texts_were_cut_at_77_characters_instead_of_tokens(clip: ClipModel) -> None:
    start = "for sale by the owner, hardly used, with its original box and all papers: "
    texts = [f"{start} a red guitar", f"{start} a glass of milk"]
    assert len(start) < 77

    theirs = clip.encode_texts([text[: len(start)] for text in texts])
    assert float(theirs[0] @ theirs[1]) == pytest.approx(1, abs=1e-5)
    ours = clip.encode_texts(texts)
    assert float(ours[0] @ ours[1]) < 0.9


def one_hot(texts: list[str], flags: list[bool], first: int, dim: int) -> Ranked:
    return Ranked(
        tuple(texts), np.array(flags), np.eye(dim, dtype=np.float32)[first : first + len(texts)]
    )


def test_a_missing_comma_made_the_first_pornographic_prompt_safe() -> None:
    prompts = load_prompts("laion400m").categories
    ours = [row.text for row in prompts]
    porn = [row.nsfw for row in prompts].index(True)
    at = ours.index("fashion, clothes")
    # Two strings without a comma between them are one in Python.
    theirs = [*ours[: at - 1], ours[at - 1] + ours[at], *ours[at + 1 :]]

    def their_tag(best_two: list[str]) -> str:
        """The first 19 places were those of safe prompts."""
        unsafe = sum(theirs.index(text) >= 19 for text in best_two)
        return ("UNLIKELY", "UNSURE", "NSFW")[unsafe]

    best_two = [ours[porn], ours[porn + 1]]
    assert their_tag(best_two) == "UNSURE"

    dim = len(ours) + 4
    embedding = np.zeros((1, dim), dtype=np.float16)
    embedding[0, porn], embedding[0, porn + 1] = 0.9, 0.8
    others = one_hot(["a", "b"], [False, False], len(ours), dim)
    categories = Categories(
        one_hot(ours, [row.nsfw for row in prompts], 0, dim), others, others, load_words()
    )
    tags = tag(embedding, categories)
    assert [tags.nsfw_category_1[0].as_py(), tags.nsfw_category_2[0].as_py()] == best_two
    assert tags.nsfw.to_pylist() == ["NSFW"]


def test_words_for_minors_were_found_in_lower_case_only_and_inside_other_words() -> None:
    def theirs(text: str) -> bool:
        return any(word in text for word in ("teen", "kid", "child", "baby"))

    named, others = ["Teen portrait", "KIDS at play", "Little Girl"], ["nineteen", "kidney beans"]
    assert not any(theirs(text) for text in named)
    assert all(theirs(text) for text in others)
    assert names_minors(named).all()
    assert not names_minors(others).any()


# The files


def test_width_and_height_were_swapped(tmp_path: Path) -> None:
    body = encoded(picture(1, width=640, height=200))
    stored = ImageMaker(DownloadOptions()).make(body)
    made = {"original_width": stored.original_width, "original_height": stored.original_height}
    release = {"WIDTH": made["original_height"], "HEIGHT": made["original_width"]}
    assert release == {"WIDTH": 200, "HEIGHT": 640}

    row = {"key": "0", "url": "http://a.test/", "caption": TEXT, "status": "success", **made}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "00000.parquet")
    (ours,) = read_rows(tmp_path / "00000.tar").to_pylist()
    assert (ours["width"], ours["height"]) == (640, 200)


def test_columns_were_shifted_by_the_separator_in_a_text(tmp_path: Path) -> None:
    row = {"url": "http://a.test/1.jpg", "text": "cats | dogs 1|6016", "similarity": 0.31}
    file = io.StringIO("|".join(row) + "\n" + "|".join(map(str, row.values())) + "\n")
    (theirs,) = csv.DictReader(file, delimiter="|")
    assert theirs["similarity"] == " dogs 1"
    assert theirs[None] == ["6016", "0.31"]  # type: ignore[index]

    write_table(tmp_path / "part-00000.parquet", pa.Table.from_pylist([row]))
    assert read_parquet(tmp_path / "part-00000.parquet").to_pylist() == [row]
