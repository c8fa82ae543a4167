"""Resized and encoded images are img2dataset's, byte for byte; scaled decoding changes little."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from laion_assets.download import img2dataset_parts
from laion_assets.download.errors import ImageRefused
from laion_assets.download.images import ImageMaker, LargeImage
from laion_assets.download.options import DownloadOptions
from laion_assets.download.resizer import Resizer
from tests.download.conftest import encoded, picture

MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
SIZES = (
    *((1, 1), (1, 7), (90, 3), (255, 256), (256, 256), (257, 256), (98, 196), (161, 107)),
    *((392, 196), (784, 300), (320, 240), (513, 512), (30, 900), (1000, 49)),
)

pytestmark = [  # of albumentations, by which img2dataset resizes, and of its imports
    pytest.mark.filterwarnings("ignore:value is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning"),
]

Theirs = Callable[[DownloadOptions, bytes], tuple[Any, ...]]


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    """img2dataset's resizer: options and a body -> the encoded image, its sizes, an error."""
    with pytest.MonkeyPatch.context() as patch:
        # It would ask the network for the newest version of albumentations.
        patch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
        resizer = img2dataset_parts.module("resizer")
    # It would mute the whole process.
    resizer.SuppressStdoutStderr = nullcontext

    def resize(options: DownloadOptions, body: bytes) -> tuple[Any, ...]:
        resize: Any = resizer.Resizer(
            options.image_size,
            options.resize_mode,
            options.resize_only_if_bigger,
            encode_quality=options.encode_quality,
            encode_format=options.encode_format,
        )
        made: tuple[Any, ...] = resize(io.BytesIO(body))
        return made

    return resize


@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_img2datasets(theirs: Theirs, mode: str, only_if_bigger: bool) -> None:
    chance = np.random.default_rng(0)
    for size, (width, height), colors in itertools.product((256, 7), SIZES, ((), (3,))):
        kind, quality = [("jpg", 95), ("jpg", 40), ("png", 3), ("webp", 80)][height % 4]
        options = DownloadOptions(
            image_size=size,
            resize_mode=mode,
            resize_only_if_bigger=only_if_bigger,
            encode_format=kind,
            encode_quality=quality,
        )
        image = chance.integers(0, 256, (height, width, *colors), dtype=np.uint8)
        made, (made_width, made_height) = Resizer(options)(image, (width, height))
        wanted = theirs(options, cv2.imencode(".bmp", image)[1].tobytes())
        assert wanted[-1] is None
        assert (made, made_width, made_height, width, height) == wanted[:-1], options


def test_the_sample_crawls_pictures_are_img2datasets(theirs: Theirs) -> None:
    maker, options = ImageMaker(DownloadOptions()), DownloadOptions()
    n = 0
    data = files("laion_assets.sample_crawl") / "data" / "images.zip"
    with data.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        special = [name for name in archive.namelist() if name.startswith("special/")]
        for name in archive.namelist()[::8] + special:
            body = archive.read(name)
            try:
                made = maker.make(body)
            except ImageRefused:
                continue
            sizes = made.width, made.height, made.original_width, made.original_height
            assert (made.encoded, *sizes, None) == theirs(options, body), name
            n += 1
    assert n > 200


def test_odd_pictures_are_img2datasets(theirs: Theirs) -> None:
    noise = np.random.default_rng(2).integers(0, 255, (300, 400, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = picture(2)
    bodies = [
        encoded(plain),
        encoded(plain, exif=exif),
        encoded(plain.convert("L")),
        encoded(plain.convert("CMYK")),
        encoded(plain, progressive=True),
        encoded(plain, "PNG"),
        encoded(plain.quantize(64), "PNG"),
        encoded(Image.fromarray(noise, "RGBA"), "PNG"),
        encoded(Image.fromarray(noise[:, :, 1:3], "LA"), "PNG"),
        encoded(Image.fromarray(noise, "RGBA"), "WEBP", lossless=True),
    ]
    for mode in ("no", "border", "center_crop"):
        options = DownloadOptions(resize_mode=mode)
        maker = ImageMaker(options)
        for body in bodies:
            assert maker.make(body).encoded == theirs(options, body)[0]


def _pixels(body: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED))


def _decibels(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit images."""
    error = ((one.astype(float) - other) ** 2).mean()
    return float(10 * np.log10(255**2 / error))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Of 2,401 x 1,603 pixels, which no divisor divides, with detail of every size."""
    chance, width, height = np.random.default_rng(3), 2401, 1603
    pixels = np.full((height, width, 3), 128, np.float32)
    for cells, weight in ((3, 60.0), (24, 25.0), (192, 10.0), (1200, 4.0)):
        noise = chance.normal(0, weight, (cells, cells, 3)).astype(np.float32)
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("border", kind) for kind in ("color", "gray", "progressive", "turned")),
        *(("keep_ratio", "color"), ("center_crop", "turned")),
    ],
)
def test_scaled_decoding_changes_little(photo: Image.Image, mode: str, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "turned" else 1
    shown = photo.convert("L") if kind == "gray" else photo
    body = encoded(shown, quality=90, progressive=kind == "progressive", exif=exif)
    options = DownloadOptions(resize_mode=mode, apply_orientation=kind == "turned")
    whole = ImageMaker(options).make(body)
    scaled = ImageMaker(options.model_copy(update={"scaled_decoding": True})).make(body)
    assert scaled.encoded != whole.encoded  # else nothing was scaled
    assert (scaled.width, scaled.height) == (whole.width, whole.height)
    original = (1603, 2401) if kind == "turned" else (2401, 1603)
    assert (scaled.original_width, scaled.original_height) == original
    one, other = _pixels(whole.encoded), _pixels(scaled.encoded)
    assert one.shape == other.shape
    assert _decibels(one, other) > 40


def test_scaled_decoding_changes_dense_texture_more() -> None:
    chance = np.random.default_rng(5)
    grains = chance.normal(128, 90, (1600, 1600)).clip(0, 255).astype(np.uint8)
    body = encoded(Image.fromarray(grains), quality=90)
    makers = [ImageMaker(DownloadOptions(scaled_decoding=scaled)) for scaled in (False, True)]
    one, other = (_pixels(maker.make(body).encoded) for maker in makers)
    assert 33 < _decibels(one, other) < 40


def test_what_is_left_is_at_least_three_times_the_image() -> None:
    resizer = Resizer(DownloadOptions(image_size=100))
    divisors = [resizer.divisor((width, 10)) for width in (599, 600, 1199, 1200, 2399, 2400)]
    assert divisors == [1, 2, 2, 4, 4, 8]
    by_short_side = Resizer(DownloadOptions(image_size=100, resize_mode="center_crop"))
    assert by_short_side.divisor((2400, 600)) == 2
    assert Resizer(DownloadOptions(resize_mode="no")).divisor((9000, 9000)) == 1


def test_only_jpegs_that_are_scaled_are_no_longer_large() -> None:
    flat = Image.new("RGB", (4800, 3600), (90, 120, 30))
    maker = ImageMaker(DownloadOptions(scaled_decoding=True))
    assert maker.make(encoded(flat), large=False).original_width == 4800
    by_color = _scan_for_each_color(encoded(flat.getchannel("G")), flat.size)
    assert maker.make(by_color).original_width == 4800
    png = encoded(flat, "PNG", compress_level=1)
    for body in (encoded(flat, progressive=True), by_color, png):
        with pytest.raises(LargeImage):
            maker.make(body, large=False)


def _scan_for_each_color(gray: bytes, size: tuple[int, int]) -> bytes:
    """A baseline JPEG of three scans, each of which is that of a gray one."""
    frame, scan = gray.index(b"\xff\xc0"), gray.index(b"\xff\xda")
    width, height = size
    parts = b"".join(bytes((color, 0x11, 0)) for color in (1, 2, 3))
    header = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + parts
    data = gray[scan + 10 : -2]
    scans = [b"\xff\xda\0\x08\1" + bytes((color, 0, 0, 63, 0)) + data for color in (1, 2, 3)]
    return gray[:frame] + header + gray[frame + 13 : scan] + b"".join(scans) + b"\xff\xd9"


def test_a_cut_jpeg_is_refused_when_scaled_too(photo: Image.Image) -> None:
    maker = ImageMaker(DownloadOptions(scaled_decoding=True))
    body = encoded(photo)
    for hurt in (body[: len(body) // 2], body[: len(body) // 2] + b"\xff\xd9"):
        with pytest.raises(ImageRefused, match="undecodable"):
            maker.make(hurt)
