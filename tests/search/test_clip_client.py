"""clip-retrieval's own client, as released, against the service."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from laion_assets.download.options import DownloadOptions
from tests.conftest import FolderServer
from tests.search.conftest import FIRST, SmallLake, serving, stored

SCRIPT = """
url, image, image_url, vector = sys.argv[1:]
asked = {"url": url + "knn-service", "indice_name": "search_index", "num_images": 5}
answers = {}
for modality in Modality:
    client = ClipClient(**asked, modality=modality)
    answers[modality.value] = {
        "text": client.query(text="a red apple"),
        "image": client.query(image=image),
        "image_url": client.query(image=image_url),
        "embedding": client.query(embedding_input=json.loads(vector)),
    }
every = {"deduplicate": False, "use_safety_model": False, "use_violence_detector": False}
whole = ClipClient(**{**asked, "num_images": 60}, **every, aesthetic_score=3, aesthetic_weight=0.1)
answers["all"] = whole.query(text="a red apple")
answers["safe"] = ClipClient(**{**asked, "num_images": 60}).query(text="a red apple")
print(json.dumps(answers))
"""


def test_clip_client_works_unchanged(
    clip_client: Callable[..., subprocess.CompletedProcess[str]],
    small_lake: SmallLake,
    serve_folder: Callable[[Path], FolderServer],
    tmp_path: Path,
) -> None:
    pictures = small_lake.pictures
    apple = next(name for name in pictures.names() if "red-apple" in name)
    image, body = stored(pictures.read(apple), 90)
    (tmp_path / "apple.jpg").write_bytes(body)
    host = serve_folder(tmp_path)
    vector = small_lake.model.encode_images([image])[0].tolist()
    download = DownloadOptions(connect_to={"pictures.test": host.url.removeprefix("http://")})

    with serving(small_lake.index, small_lake.model, download=download) as served:
        done = clip_client(
            SCRIPT,
            served.url,
            str(tmp_path / "apple.jpg"),
            "http://pictures.test/apple.jpg",
            json.dumps(vector),
        )
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
        for modality in ("image", "text"):
            for results in answers[modality].values():
                assert len(results) == 5
                assert "apple" in results[0]["caption"]
                assert results[0]["url"].startswith("http://pictures.test/")
                scores = [result["similarity"] for result in results]
                assert scores == sorted(scores, reverse=True)
        by_image = answers["image"]["image"]
        assert by_image[0]["similarity"] > 0.99
        for way in ("image_url", "embedding"):
            others = answers["image"][way]
            assert [result["id"] for result in others] == [result["id"] for result in by_image]
            # Sums of floats depend on how many threads shared them.
            scores = [result["similarity"] for result in by_image]
            assert [result["similarity"] for result in others] == pytest.approx(scores, abs=1e-4)

        tags = {result["NSFW"] for result in answers["all"]}
        assert len(answers["all"]) == 30
        assert tags == {"UNLIKELY", "UNSURE", "NSFW"}
        assert {result["NSFW"] for result in answers["safe"]} == {"UNLIKELY"}
        captions = [result["caption"] for result in answers["safe"]]
        assert sum("apple" in caption for caption in captions) == 1  # the other one is folded

        # The answers' ids lead to metadata.
        ids = [result["id"] for result in answers["all"][:3]]
        asked = {"ids": [*ids, 7, ids[0] | 0xFFFFFFFF], "indice_name": "search_index"}
        metadata = served.http.post("/metadata", json=asked).json()
        assert [row["id"] for row in metadata] == ids, (
            "neither another index's id nor a row beyond the last names a sample"
        )
        assert metadata[0]["metadata"]["caption"] == answers["all"][0]["caption"]
        assert metadata[0]["metadata"]["crawl"] == FIRST.crawl
        assert served.http.get("/indices-list").json() == ["search_index"]
