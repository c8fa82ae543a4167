from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_assets.pairs.urls import image_url
from laion_assets.removals.compiled import load

SHA = "a" * 64
MD5 = "b" * 32


def test_matching(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        f"host:a.test\nurl:http://b.test/1.jpg\n{SHA}\nhost:bücher.example\nhost:[::1]\n"
    )
    entries = load(tmp_path)
    assert entries.matches_url("http://a.test/x")
    assert entries.matches_url("http://img.a.test:81/x")
    assert not entries.matches_url("http://nota.test/x")
    assert entries.matches_url("http://b.test/1.jpg")
    assert not entries.matches_url("http://b.test/2.jpg")
    for url in (
        "http://xn--bcher-kva.example/x",
        "https://i.xn--bcher-kva.example./",
        "http://[::1]/",
    ):
        assert entries.matches_url(image_url(url, None, 2048))
    assert entries.matches_image(SHA, "c" * 32)
    assert not entries.matches_image("c" * 64, "c" * 32)
    assert len(entries) == 5


def test_urls_hashes_and_samples_are_found_by_the_million_as_one_by_one(tmp_path: Path) -> None:
    url = "http://h7.test/7.jpg"
    (tmp_path / "a.txt").write_text(
        "\n".join(
            [
                f"url-md5:{hashlib.md5(b'http://h1.test/1.jpg').hexdigest()}",
                f"url-sha256:{hashlib.sha256(b'http://h2.test/2.jpg').hexdigest()}",
                *("url:http://h3.test/3.jpg", "host:h4.test", f"md5:{MD5}", f"sha256:{SHA}"),
                *("sample-id:-5", "sample-id:9"),
            ]
        )
    )
    entries = load(tmp_path)
    urls = [f"http://{sub}h{i}.test/{i}.jpg" for i in range(8) for sub in ("", "x.")]
    which = entries.which_urls(urls)
    assert [entries.matches_url(url) for url in urls] == which.tolist()
    assert [url for url, named in zip(urls, which, strict=True) if named] == [
        *(f"http://h{i}.test/{i}.jpg" for i in (1, 2, 3, 4)),
        "http://x.h4.test/4.jpg",
    ]
    assert entries.which_samples(np.array([-5, 5, 9, 0])).tolist() == [True, False, True, False]
    sha256 = pa.chunked_array([["c" * 64, SHA.upper(), None], [SHA[:-1], "z" * 64]])
    md5 = pa.array([MD5, None, None, MD5, "short"])
    assert entries.which_images(sha256, md5).tolist() == [True, True, False, True, False]
    assert not entries.matches_url(url)
