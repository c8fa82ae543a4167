"""Refusals before and during decoding, with real encoders and decoders."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from laion_assets.download.errors import ImageRefused
from laion_assets.download.images import (
    Checksums,
    ImageMaker,
    StoredImage,
    refuse_listed,
    refuse_unseen,
)
from laion_assets.download.options import DownloadOptions
from laion_assets.removals.active import Lists
from laion_assets.removals.entries import Entries, parse
from tests.download.conftest import encoded, picture

NONE = Entries()

pytestmark = pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")


@pytest.fixture(scope="module")
def maker() -> ImageMaker:
    return ImageMaker(DownloadOptions())


def make(
    maker: ImageMaker, body: bytes, removals: Entries = NONE, blocklists: Entries = NONE
) -> StoredImage:
    refuse_listed(Checksums.of(body), Lists(removals, blocklists))
    refuse_unseen(body, 5000)
    return maker.make(body)


def reason(
    maker: ImageMaker, body: bytes, removals: Entries = NONE, blocklists: Entries = NONE
) -> str:
    with pytest.raises(ImageRefused) as caught:
        make(maker, body, removals, blocklists)
    return caught.value.reason


def pixels(stored: StoredImage) -> np.ndarray:
    with Image.open(io.BytesIO(stored.encoded)) as image:
        return np.asarray(image.convert("RGB"))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def bomb_png(width: int, height: int) -> bytes:
    """A PNG that declares a picture of that size and holds none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    filler = png_chunk(b"tEXt", b"Comment\0" + b"x" * 6000)
    parts = (png_chunk(b"IHDR", header), filler, png_chunk(b"IDAT", rows), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb_jpeg(width: int, height: int) -> bytes:
    """A real JPEG whose frame header declares another size."""
    body = bytearray(encoded(picture(1)))
    at = body.index(b"\xff\xc0") + 5
    body[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(320, 240), (200, 500), (160, 160), (1000, 400)])
def test_sizes_are_the_original_ones_and_the_border_is_white(
    maker: ImageMaker, kind: str, size: tuple[int, int]
) -> None:
    stored = make(maker, encoded(picture(1, *size), kind))
    assert (stored.original_width, stored.original_height) == size
    assert (stored.width, stored.height) == (256, 256)
    got = pixels(stored)
    assert got.shape == (256, 256, 3)
    if size[0] > size[1]:
        assert got[:8].min() > 240  # above
        assert got[120:136, :8].mean() < 200  # the picture reaches the sides
    if size[0] < size[1]:
        assert got[:, :8].min() > 240
        assert got[:8, 120:136].mean() < 200


def test_sixteen_bits_keep_their_shades(maker: ImageMaker) -> None:
    noise = np.random.default_rng(4).integers(0, 500, 256 * 256)
    shades = (np.linspace(0, 65035, 256 * 256) + noise).reshape(256, 256).astype(np.uint16)
    got = pixels(make(maker, encoded(Image.fromarray(shades), "PNG")))
    assert np.abs(got[:, :, 0].astype(int) - shades // 256).max() < 8


def test_other_sizes_modes_and_formats() -> None:
    options = DownloadOptions(
        image_size=100, resize_mode="keep_ratio", encode_format="png", encode_quality=6
    )
    stored = make(ImageMaker(options), encoded(picture(1, 400, 200)))
    assert (stored.width, stored.height) == (200, 100)
    assert stored.encoded.startswith(b"\x89PNG")


def test_the_smallest_size_is_allowed(maker: ImageMaker) -> None:
    body = encoded(picture(1))
    padded = body + bytes(5000)
    assert reason(maker, body[:4999]) == "too_small"
    assert reason(maker, b"") == "too_small"
    exact = encoded(Image.new("RGB", (64, 64)))
    exact += bytes(5000 - len(exact))
    assert make(maker, exact).width == 256
    assert make(maker, padded).original_width == 320


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_lists_are_matched_before_anything_is_decoded(maker: ImageMaker, kind: str) -> None:
    body = b"known-bad and no image at all" * 1000
    entries = parse([f"{kind}:{hashlib.new(kind, body).hexdigest()}"], "list")
    assert reason(maker, body, removals=entries) == "removed"
    assert reason(maker, body, blocklists=entries) == "blocked"
    assert reason(maker, body, entries, entries) == "blocked"


@pytest.mark.parametrize(
    "body",
    [
        b"<!doctype html>" + b"x" * 6000,
        b"<svg xmlns='http://www.w3.org/2000/svg'>" + b" " * 6000,
        encoded(picture(1), "BMP"),
        encoded(picture(1), "TIFF"),
        encoded(picture(1), "ICO"),
        encoded(picture(1), "JPEG2000"),
        encoded(picture(1), "GIF"),
        encoded(picture(1), "PPM"),
        b"%PDF-1.7" + bytes(6000),
        b"RIFF" + bytes(4) + b"WAVE" + bytes(6000),
        bytes(6000),
    ],
)
def test_other_types_are_refused(maker: ImageMaker, body: bytes) -> None:
    assert reason(maker, body) == "unsupported_type"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_are_refused(maker: ImageMaker, kind: str) -> None:
    frames = [picture(seed) for seed in range(3)]
    body = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert reason(maker, body) == "animated"


def test_a_photo_with_its_preview_is_not_an_animation(maker: ImageMaker) -> None:
    body = encoded(picture(1), "MPO", save_all=True, append_images=[picture(2, 64, 48)])
    assert make(maker, body).original_width == 320


@pytest.mark.parametrize(
    "body",
    [
        bomb_png(50_000, 50_000),
        bomb_png(9_500, 9_500),
        bomb_jpeg(60_000, 60_000),
        bomb_png(89478486, 1),
    ],
    ids=["png", "png_just_over", "jpeg", "thin"],
)
def test_bombs_are_refused_by_their_header(maker: ImageMaker, body: bytes) -> None:
    assert len(body) < 100_000
    assert reason(maker, body) == "too_many_pixels"


def test_the_limit_of_pixels_is_an_option() -> None:
    body = encoded(picture(1, 320, 240))
    assert make(ImageMaker(DownloadOptions(max_pixels=320 * 240)), body)
    maker = ImageMaker(DownloadOptions(max_pixels=320 * 240 - 1))
    assert reason(maker, body) == "too_many_pixels"


@pytest.mark.parametrize("settings", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
def test_a_cut_jpeg_is_not_filled_with_grey(
    maker: ImageMaker, settings: dict[str, bool], share: float
) -> None:
    body = encoded(picture(1, 640, 480), **settings)
    assert reason(maker, body[: int(len(body) * share)]) == "undecodable"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_cut_images(maker: ImageMaker, kind: str) -> None:
    body = encoded(picture(1), kind)
    assert reason(maker, body[: len(body) // 2 + 5000]) == "undecodable"


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xd8\xff" + bytes(6000),
        b"\xff\xd8\xff\xe0" + b"\xff" * 6000,
        b"\x89PNG\r\n\x1a\n" + bytes(6000),
        b"RIFF" + struct.pack("<I", 6000) + b"WEBPVP8 " + bytes(6000),
        bomb_png(100, 100)[:-40] + bytes(40),
    ],
)
def test_garbage_behind_a_good_start(maker: ImageMaker, body: bytes) -> None:
    assert reason(maker, body) in ("undecodable", "too_small")


def test_random_damage_never_escapes(maker: ImageMaker) -> None:
    """Each image is stored or refused with a reason; any other error fails the test."""
    chance = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP"):
        body = np.frombuffer(encoded(picture(3), kind), np.uint8)
        for _ in range(15):
            hurt = body.copy()
            hurt[chance.integers(12, len(hurt), 20)] = chance.integers(0, 256, 20)
            with contextlib.suppress(ImageRefused):
                assert make(maker, hurt.tobytes()).width == 256


def test_exif_is_kept_as_img2dataset_writes_it(maker: ImageMaker) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera maker"
    exif[0x0112] = 6  # rotated: the sizes are still those of the stored pixels
    stored = make(maker, encoded(picture(1), exif=exif))
    assert stored.exif is not None
    assert json.loads(stored.exif)["Image Make"] == "A camera maker"
    assert (stored.original_width, stored.original_height) == (320, 240)
    assert make(maker, encoded(picture(1))).exif == "{}"


def _exif_of_many_tags(tags: int, chars: int) -> bytes:
    """Big-endian TIFF whose tags all point at one text."""
    at = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack(">HHLL", 0x0200 + n, 2, chars, at) for n in range(tags))
    ifd = struct.pack(">H", tags) + entries + struct.pack(">L", 0)
    return b"Exif\0\0MM\0*" + struct.pack(">L", 8) + ifd + b"a" * chars


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_unfolds_is_left_out(maker: ImageMaker, kind: str) -> None:
    some = make(maker, encoded(picture(1), kind, exif=_exif_of_many_tags(3, 50)))
    assert some.exif is not None
    tags = 2000 if kind == "JPEG" else 6000  # over 64 KiB where a chunk may hold as much
    bomb = encoded(picture(1), kind, exif=_exif_of_many_tags(tags, 30_000))
    assert make(maker, bomb).exif is None
