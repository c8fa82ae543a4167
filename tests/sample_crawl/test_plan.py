from __future__ import annotations

import io
import warnings
import zipfile
from collections import Counter
from pathlib import PurePosixPath

import pytest
from PIL import Image, UnidentifiedImageError

from laion_assets.sample_crawl.copies import COPIES
from laion_assets.sample_crawl.plan import (
    COPIED,
    COPY,
    DATA,
    KEPT,
    Pictures,
    Plan,
    kind_of_copy,
)

MIN_BYTES = 5_000
MAX_PIXELS = 89_478_485


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures()


def opened(pictures: Pictures, name: str) -> Image.Image:
    return Image.open(io.BytesIO(pictures.read(name)))


def test_archive_is_small_stored_and_undated() -> None:
    assert (DATA / "images.zip").stat().st_size < 25_000_000
    with zipfile.ZipFile(DATA / "images.zip") as archive:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.date_time == (1980, 1, 1, 0, 0, 0)


def test_every_picture_is_used_and_described(plan: Plan, pictures: Pictures) -> None:
    used = {pair.file for pair in plan.pairs} | {foreign.file for foreign in plan.foreign}
    names = set(pictures.names())
    assert used <= names
    assert {name for name in names - used if not name.startswith("special/")} == set()
    assert len(names) >= 1_500
    for name in sorted(used):
        picture = opened(pictures, name)
        assert picture.size == plan.size(name)
        assert picture.format in ("JPEG", "PNG", "WEBP")
        assert len(pictures.read(name)) >= MIN_BYTES


def test_pictures_decode(plan: Plan, pictures: Pictures) -> None:
    for pair in plan.pairs[::40]:
        opened(pictures, pair.file).load()


def test_styles_and_their_terms(pictures: Pictures) -> None:
    folders = {name.partition("/")[0] for name in pictures.names()}
    assert len(folders - {"special", COPIED}) >= 2
    terms = (DATA / "ATTRIBUTION.md").read_text("utf-8")
    assert all(f"`{folder}/`" in terms for folder in folders)


def test_each_kind_of_copy_is_planned_with_a_text_of_its_own(
    plan: Plan, pictures: Pictures
) -> None:
    kept = {pair.file: pair for pair in plan.group("matched") if pair.reason == KEPT}
    texts = [pair.text for pair in plan.pairs]
    originals = [plan.original(pair.file) for pair in plan.group(COPY)]
    assert Counter(kind_of_copy(pair.file) for pair in plan.group(COPY)) == dict.fromkeys(COPIES, 4)
    assert len(set(originals)) == len(originals)
    for pair, original in zip(plan.group(COPY), originals, strict=True):
        assert pair.reason == KEPT
        assert original in kept
        assert PurePosixPath(original).stem == PurePosixPath(pair.file).stem
        assert texts.count(pair.text) == 1
        assert pictures.read(pair.file) != pictures.read(original)


def test_look_alikes_of_copied_pictures_are_planned(plan: Plan) -> None:
    """Another family's drawing of the same thing, which is no copy."""
    drawn = Counter(PurePosixPath(file).stem for file in {p.file for p in plan.group("matched")})
    assert all(drawn[PurePosixPath(pair.file).stem] == 2 for pair in plan.group(COPY))


def test_what_is_no_copy_is_its_own_original(plan: Plan) -> None:
    for pair in plan.group("matched"):
        assert kind_of_copy(pair.file) is None
        assert plan.original(pair.file) == pair.file
    with pytest.raises(KeyError):
        plan.original(f"{COPIED}/cropped/noto/nothing.jpg")


def test_no_pair_is_planned_twice(plan: Plan) -> None:
    pairs = [(pair.file, pair.text) for pair in plan.pairs]
    assert len(pairs) == len(set(pairs))


def test_scores_are_clear_of_the_threshold(plan: Plan) -> None:
    threshold = plan.threshold
    for pair in plan.pairs:
        assert abs(pair.similarity - threshold) >= 0.029
        assert (pair.similarity >= threshold) == (pair.reason != "below_threshold")
        assert pair.nsfw in ("UNLIKELY", "UNSURE", "NSFW")
    misses = [pair for pair in plan.group("matched") if pair.reason != KEPT]
    assert len(misses) < len(plan.group("matched")) / 10


def test_special_files_are_what_they_claim(pictures: Pictures) -> None:
    def length(name: str) -> int:
        return len(pictures.read(f"special/{name}"))

    assert (length("4999.jpg"), length("5000.jpg")) == (4_999, 5_000)
    assert length("icon.png") < MIN_BYTES
    for name in ("4999.jpg", "5000.jpg", "icon.png"):
        opened(pictures, f"special/{name}").load()
    for name in ("bomb.png", "bomb.jpg"):
        assert MIN_BYTES < length(name) < 100_000
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
            width, height = opened(pictures, f"special/{name}").size
        assert width * height > MAX_PIXELS
    for name in ("animated.gif", "animated.webp", "animated.png"):
        assert opened(pictures, f"special/{name}").n_frames > 1  # type: ignore[attr-defined]
    assert opened(pictures, "special/plain.gif").n_frames == 1  # type: ignore[attr-defined]
    for name in ("truncated.jpg", "corrupt.png"):
        with pytest.raises((OSError, SyntaxError)):
            opened(pictures, f"special/{name}").load()
    for name in ("page.html", "drawing.svg"):
        assert length(name) >= MIN_BYTES
        with pytest.raises(UnidentifiedImageError):
            opened(pictures, f"special/{name}")


def test_foreign_texts_cover_the_languages(plan: Plan) -> None:
    languages = {foreign.language for foreign in plan.foreign}
    assert languages == {"de", "fr", "es", "ru", "ja", "zh", "ar", "un"}


def test_unknown_picture(pictures: Pictures) -> None:
    with pytest.raises(KeyError):
        pictures.read("special/nothing.jpg")
