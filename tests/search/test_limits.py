"""Limits for strangers: requests that are refused, rates, headers, and the removal queue."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laion_assets.clip.options import ClipOptions
from laion_assets.download.options import DownloadOptions
from laion_assets.knn.samples import SampleRef
from laion_assets.search.api_models import split_text
from laion_assets.search.options import ServeOptions
from laion_assets.search.rate_limit import Rate, client_of
from laion_assets.settings import load_settings
from tests.conftest import FolderServer
from tests.processes import until
from tests.search.conftest import FIRST, FREE, Serving, SmallLake, serving


def png_header(width: int, height: int) -> str:
    """Return a PNG in base64 that declares a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"".join(
        struct.pack(">I", 0) + name + struct.pack(">I", zlib.crc32(name))
        for name in (b"IDAT", b"IEND")
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body + data).decode()


def gif() -> str:
    encoded = io.BytesIO()
    Image.new("RGB", (9, 9)).save(encoded, "GIF")
    return base64.b64encode(encoded.getvalue()).decode()


@pytest.mark.parametrize(
    ("path", "asked", "status", "reason"),
    [
        ("/search", {}, 422, "invalid"),
        ("/search", {"text": "x", "limit": 100_000}, 422, "invalid"),
        ("/search", {"text": "x", "over": "sound"}, 422, "invalid"),
        ("/search", {"text": "x" * 1_001}, 422, "text_too_long"),
        ("/search", {"image": "no base64!"}, 422, "not_base64"),
        ("/search", {"image": "AAAA"}, 422, "undecodable"),
        ("/search", {"image": gif()}, 422, "undecodable"),
        ("/search", {"image": png_header(9_000, 9_000)}, 413, "too_many_pixels"),
        ("/search", {"image": png_header(60_000, 60_000)}, 422, "undecodable"),
        ("/search", {"like": "../../etc/passwd"}, 404, "no_sample"),
        ("/search", {"like": f"{FIRST.crawl}.00.000000000.0000000000000000"}, 404, "no_sample"),
        ("/search", {"image_url": "http://127.0.0.1/a.png"}, 422, "fetch_private_address"),
        ("/search", {"image_url": "http://[::1]/a.png"}, 422, "fetch_private_address"),
        ("/search", {"image_url": "file:///etc/passwd"}, 422, "url_scheme"),
        ("/search", {"image_url": "http://nowhere.invalid/a.png"}, 422, "fetch_dns"),
        ("/knn-service", {"num_images": 3}, 422, "invalid"),
        ("/knn-service", {"text": "x", "indice_name": "laion5B"}, 404, "no_index"),
        ("/knn-service", {"embedding_input": [1.0, 2.0]}, 422, "vector"),
        ("/knn-service", {"embedding_input": []}, 422, "vector"),
        ("/metadata", {"ids": ["x"]}, 422, "invalid"),
        ("/removal-requests", {"sample": "nothing"}, 404, "no_sample"),
        ("/removal-requests", {"sample": "x", "reason": "y" * 3_000}, 422, "invalid"),
    ],
)
def test_what_is_refused_is_named(
    served: Serving, path: str, asked: dict[str, object], status: int, reason: str
) -> None:
    answer = served.http.post(path, json=asked)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.json()["detail"]
    assert (
        f'laion_assets_search_refused_total{{reason="{reason}"}}'
        in served.http.get("/metrics").text
    )


def test_an_image_that_redirects_inwards_is_not_fetched(
    small_lake: SmallLake, serve_folder: Callable[[Path], FolderServer], tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text("<p>no image</p>")
    host = serve_folder(tmp_path)
    download = DownloadOptions(connect_to={"open.test": host.url.removeprefix("http://")})
    with serving(small_lake.index, small_lake.model, download=download) as served:

        def reason(url: str) -> str:
            value: str = served.http.post("/search", json={"image_url": url}).json()["reason"]
            return value

        assert reason("http://open.test/page.html") == "undecodable"
        assert reason("http://open.test/absent.jpg") == "fetch_http_4xx"
        assert reason(f"{host.url}/page.html") == "fetch_private_address"


def test_bodies_have_a_bound(small_lake: SmallLake) -> None:
    options = FREE.model_copy(update={"max_image_bytes": 1_000})
    with serving(small_lake.index, small_lake.model, options) as served:
        image = base64.b64encode(b"x" * 1_001).decode()
        assert served.http.post("/search", json={"image": image}).json()["reason"] == "too_large"

        def endless() -> object:
            for _ in range(1_000):
                yield b" " * 1_000

        answer = served.http.post("/knn-service", content=endless())  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")


def test_a_client_has_a_rate(small_lake: SmallLake) -> None:
    options = ServeOptions(port=0, query_burst=3, query_rate=0.01)
    with serving(small_lake.index, small_lake.model, options) as served:
        asked = {"ids": []}
        statuses = [served.http.post("/metadata", json=asked).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert int(served.http.post("/search", json={}).headers["Retry-After"]) > 1
        assert served.http.get("/healthz").status_code == 200


def test_rates_refill_and_networks_count_as_one() -> None:
    now = [0.0]
    rate = Rate(2.0, 2, clock=lambda: now[0])
    assert [rate.take("a") for _ in range(3)] == [None, None, 1]
    assert rate.take("b") is None
    now[0] = 0.5
    assert [rate.take("a"), rate.take("a")] == [None, 1]
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:192.0.2.1") == "192.0.2.1"


def test_only_samples_of_the_dataset_have_a_thumbnail(served: Serving) -> None:
    results = served.results(text="a cat", limit=1)
    ref = SampleRef.parse(results[0]["sample"])
    answer = served.http.get(f"/thumbnails/{ref}")
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (256, 256)
    # Another image of the same shard, by a sample that is not stored at that key.
    other = SampleRef(ref.crawl, ref.segment, "000000099", ref.sample_id + 1)
    assert served.http.get(f"/thumbnails/{other}").status_code == 404
    assert served.http.get("/thumbnails/..%2F..%2Fetc%2Fpasswd").status_code == 404


def test_a_very_long_image_takes_no_more_memory_than_another(served: Serving) -> None:
    """A resize that keeps its shape would make 2.6 billion pixels of it."""
    body = io.BytesIO()
    Image.new("RGB", (1, 52_000), "red").save(body, "PNG")
    asked = {"image": base64.b64encode(body.getvalue()).decode(), "limit": 1}
    assert len(served.results(**asked)) == 1


def test_a_damaged_png_is_refused(served: Serving) -> None:
    """Pillow raises SyntaxError for a chunk in the wrong place."""
    body = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(body, "PNG")
    whole = body.getvalue()
    at = whole.index(b"IDAT")
    shorter = int.from_bytes(whole[at - 4 : at], "big") - 50
    damaged = whole[: at - 4] + shorter.to_bytes(4, "big") + whole[at:]
    with pytest.raises(SyntaxError):
        Image.open(io.BytesIO(damaged)).convert("RGB")
    answer = served.http.post("/search", json={"image": base64.b64encode(damaged).decode()})
    assert (answer.status_code, answer.json()["reason"]) == (422, "undecodable")


def test_security_headers_restrict_the_page(served: Serving) -> None:
    for path in ("/", "/static/page.js", "/healthz", "/absent"):
        headers = served.http.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    docs = served.http.get("/docs")
    assert "unsafe-eval" not in docs.headers["Content-Security-Policy"]
    assert served.http.get("/docs/swagger-ui-bundle.js").status_code == 200
    paths = served.http.get("/openapi.json").json()["paths"]
    assert {"/knn-service", "/metadata", "/indices-list", "/search", "/healthz"} <= set(paths)


def test_loopback_answers_to_its_own_names_only(served: Serving) -> None:
    assert served.http.get("/about", headers={"Host": "rebound.example"}).status_code == 400
    port = served.url.rstrip("/").rpartition(":")[2]
    assert served.http.get("/about", headers={"Host": f"localhost:{port}"}).status_code == 200


def test_other_sites_may_query_only_if_named(small_lake: SmallLake, served: Serving) -> None:
    other = {"Origin": "https://front.example", "Sec-Fetch-Site": "cross-site"}
    answer = served.http.post("/metadata", json={"ids": []}, headers=other)
    assert (answer.status_code, answer.json()["reason"]) == (403, "other_site")
    assert "Access-Control-Allow-Origin" not in answer.headers
    options = FREE.model_copy(update={"origins": ("https://front.example",)})
    with serving(small_lake.index, small_lake.model, options) as opened:
        answer = opened.http.post("/metadata", json={"ids": []}, headers=other)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://front.example"
        # clip-retrieval's front end sends its JSON as text.
        answer = opened.http.post(
            "/metadata", content='{"ids": []}', headers=other | {"Content-Type": "text/plain"}
        )
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/knn-service", "/metadata", "/search", "/removal-requests"])
def test_no_post_takes_what_any_page_could_send(served: Serving, path: str) -> None:
    def reason(headers: dict[str, str]) -> str:
        return str(served.http.post(path, content="{", headers=headers).json()["reason"])

    assert reason({"Content-Type": "text/plain"}) == "media_type"
    assert reason({"Content-Type": "application/x-www-form-urlencoded"}) == "media_type"
    # A blob without a type, from a page on this machine's host under another port.
    assert reason({"Sec-Fetch-Site": "same-site"}) == "other_site"
    own = served.url.rstrip("/")
    assert reason({"Origin": own}) == "media_type"
    assert reason({"Origin": own, "Content-Type": "application/json; charset=utf-8"}) == "invalid"
    assert reason({"Origin": "http://127.0.0.1:1"}) == "other_site"
    assert reason({}) == "invalid"


def test_removal_requests_wait_for_a_person(own_lake: SmallLake) -> None:
    with serving(own_lake.index, own_lake.model) as served:
        results = served.results(text="a cat", limit=1)
        sample = results[0]["sample"]
        asked = {"sample": sample, "reason": "it is\nmine", "contact": "me@example.org"}
        for _ in range(2):
            assert served.http.post("/removal-requests", json=asked).status_code == 202
        (line,) = (own_lake.root / "removals/queue/requests.jsonl").read_text().splitlines()
        entry = json.loads(line)
        assert entry["sample"] == sample
        assert entry["reason"] == "it is\nmine"
        assert entry["entries"][0] == f"url:{results[0]['url']}"
        # The queue is no list: nothing has been removed.
        assert served.captions(text="a cat", limit=1) == [results[0]["caption"]]


def test_without_a_model_what_needs_none_still_works(small_lake: SmallLake) -> None:
    down = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny", weights="/absent")
    vector = small_lake.model.encode_texts(["a cat"])[0].tolist()
    with serving(small_lake.index, None, clip=down) as served:
        until(lambda: served.service.encoder.state != "loading")
        answer = served.http.post("/search", json={"text": "a cat"})
        assert (answer.status_code, answer.json()["reason"]) == (503, "encoder_down")
        assert served.http.get("/healthz").json()["encoder"]["state"] == "failed"
        found = served.http.post("/knn-service", json={"embedding_input": vector}).json()
        like = {"like": found[0]["sample"], "limit": 1}
        assert served.http.post("/search", json=like).json()["results"]


def test_an_index_outside_a_lake_needs_its_subset(small_lake: SmallLake) -> None:
    index = small_lake.lake.folder("knn_index", FIRST)
    subset = small_lake.lake.folder("filtered_subset", FIRST)
    with serving(index, small_lake.model, subset=subset) as served:
        assert served.captions(text="a red apple", limit=1) == served.captions(
            text="a red apple", crawl=FIRST.crawl, limit=1
        )


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("a cat", ("a cat", [])),
        ("a cat -dog", ("a cat", ["dog"])),
        ('-dog a t-shirt - -"in deep snow"', ("a t-shirt -", ["dog", "in deep snow"])),
        ("-5", ("-5", [])),
    ],
)
def test_exclusions(text: str, split: tuple[str, list[str]]) -> None:
    assert split_text(text) == split


def test_a_samples_name_is_read_back() -> None:
    ref = SampleRef("CC-MAIN-2021-04", "07", "000010002", -(2**63))
    assert SampleRef.parse(str(ref)) == ref
    with pytest.raises(ValueError, match="names no sample"):
        SampleRef.parse(str(ref) + "/..")


def test_settings_have_a_section_for_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[serve]\nhosts = ["search.example.org"]\nmax_candidates = 100\n')
    assert load_settings(path).serve.max_candidates == 100
