"""JPEGs and PNGs as they come: damaged where it does not matter, boundless, or cut."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from laion_assets.download import images
from laion_assets.download.errors import ImageRefused
from laion_assets.download.formats import MAX_PARTS, MAX_SCANS, check_jpeg, read_png
from laion_assets.download.images import ImageMaker, StoredImage
from laion_assets.download.options import DownloadOptions

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8)


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(image: Image.Image, more: Sequence[bytes] = (), behind: Sequence[bytes] = ()) -> bytes:
    """The image with chunks before its pixels, and behind them."""
    made = io.BytesIO()
    image.save(made, "PNG")
    body = made.getvalue()
    at = body.index(b"IDAT") - 4
    end = body.index(b"IEND") - 4
    return body[:at] + b"".join(more) + body[at:end] + b"".join(behind) + body[end:]


def jpeg(**options: object) -> bytes:
    made = io.BytesIO()
    Image.fromarray(PIXELS).save(made, "JPEG", **options)
    return made.getvalue()


def make(body: bytes, **options: object) -> StoredImage:
    return ImageMaker(DownloadOptions.model_validate(options)).make(body)


def pixels(made: StoredImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(made.encoded)).convert("L"))


HUGE = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    ("more", "behind"),
    [
        ([chunk(b"iCCP", b"profile\0\0" + HUGE)], []),
        ([chunk(b"zTXt", b"words\0\0" + HUGE)], []),
        ([chunk(b"iTXt", b"words\0\1\0\0\0" + HUGE)], []),
        ([chunk(b"pHYs", bytes(9), crc=1)], []),
        ([chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x"), crc=1)], []),
        ([chunk(b"iTXt", b"words\0\0\0\0\0text", crc=1)], []),
        ([chunk(b"gAMA", b"\0")], []),
        ([chunk(b"tRNS", bytes(6), crc=1)], []),
        ([], [chunk(b"tEXt", b"words\0x", crc=1)]),
    ],
    ids=[
        *("huge profile", "huge text", "huge iTXt", "CRC of pHYs", "CRC of iCCP", "CRC of iTXt"),
        *("short gAMA", "CRC of tRNS", "behind"),
    ],
)
def test_what_a_picture_does_not_need_may_be_damaged(
    more: list[bytes], behind: list[bytes]
) -> None:
    image = Image.fromarray(PIXELS)
    assert np.array_equal(pixels(make(png(image, more, behind))), pixels(make(png(image))))


def test_damaged_pixels_are_refused() -> None:
    body = png(Image.fromarray(PIXELS))
    at = body.index(b"IDAT")
    with pytest.raises(ImageRefused, match="wrong CRC of IDAT"):
        make(body[: at + 100] + bytes([body[at + 100] ^ 1]) + body[at + 101 :])
    with pytest.raises(ImageRefused, match="no end"):
        make(body[: body.index(b"IEND") - 4])
    with pytest.raises(ImageRefused, match="ends inside"):
        make(body[: at + 50])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_colour_of_a_gray_png_is_white(bits: int) -> None:
    """OpenCV takes it for a gray like others, and black is the usual one."""
    top = (1 << bits) - 1
    rows = [[0] * 60 + [top // 2 if bits > 1 else 1] * 60] * 90
    raw = b"".join(b"\0" + _packed(row, bits) for row in rows)
    body = SIGNATURE + b"".join(
        (
            chunk(b"IHDR", struct.pack(">IIBBBBB", 120, 90, bits, 0, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">H", 0)),
            chunk(b"IDAT", zlib.compress(raw)),
            chunk(b"IEND", b""),
        )
    )
    made = pixels(make(body, resize_mode="no", encode_format="png", encode_quality=9))
    assert (made[:, :60] == 255).all()
    assert (made[:, 60:] == (255 if bits == 1 else made[0, 60])).all()
    assert bits == 1 or 60 < made[0, 60] < 130


def _packed(row: list[int], bits: int) -> bytes:
    if bits == 16:
        return struct.pack(f">{len(row)}H", *row)
    whole = "".join(f"{value:0{bits}b}" for value in row)
    return bytes(int(whole[at : at + 8], 2) for at in range(0, len(whole), 8))


def test_a_jpeg_of_endless_scans_is_refused_unseen() -> None:
    body = jpeg(progressive=True)
    scan = body.rindex(b"\xff\xda")
    length = int.from_bytes(body[scan + 2 : scan + 4], "big")
    empty = body[scan : scan + 2 + length] + b"\0"
    assert body.count(b"\xff\xda") < 20
    with pytest.raises(ImageRefused) as refused:
        make(body[:scan] + empty * 5_000 + body[scan:])
    assert refused.value.reason == "too_complex"
    assert check_jpeg(body[:scan] + empty * (MAX_SCANS - 20) + body[scan:]).ended


@pytest.mark.parametrize(
    "flood",
    [
        jpeg()[:2] + b"\xff\xe1\0\2" * 4_000_000 + jpeg()[2:],
        png(Image.fromarray(PIXELS), [chunk(b"tEXt", b"")] * 100_000),
    ],
    ids=["APP1", "tEXt"],
)
def test_floods_of_empty_parts_are_refused_unseen(
    flood: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbounded(*_: object, **__: object) -> None:
        pytest.fail("Pillow reads every part that there is")

    monkeypatch.setattr(Image, "open", unbounded)
    with pytest.raises(ImageRefused, match=f"over {MAX_PARTS:,}") as refused:
        make(flood)
    assert refused.value.reason == "too_complex"


def test_half_a_jpeg_with_another_behind_is_cut() -> None:
    body = jpeg()
    with pytest.raises(ImageRefused, match="another JPEG begins"):
        make(body[: len(body) // 2] + jpeg(quality=20))
    preview_behind = make(body + jpeg(quality=20))
    assert np.array_equal(pixels(preview_behind), pixels(make(body)))


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("lost", [0.5, 0.02])
@pytest.mark.parametrize("options", [{}, {"apply_orientation": True}], ids=["as it is", "turned"])
def test_a_jpeg_that_was_cut_and_closed_is_refused(
    progressive: bool, lost: float, options: dict[str, bool]
) -> None:
    """OpenCV fills the rest with grey, or leaves it blurred."""
    exif = Image.Exif()
    exif[0x0112] = 3
    body = jpeg(progressive=progressive, exif=exif.tobytes())
    assert make(body, **options)
    cut = body[: -int(lost * len(body))] + b"\xff\xd9"
    assert check_jpeg(cut).ended
    with pytest.raises(ImageRefused, match="lacks data"):
        make(cut, **options)


def test_what_decoders_print_otherwise_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    body = jpeg()
    scan = body.rindex(b"\xff\xda")
    assert make(body[:scan] + b"more" + body[scan:])
    assert "Corrupt JPEG data: 4 extraneous bytes before marker" in capfd.readouterr().err


def test_a_decoder_that_prints_on_is_cut_short(capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryFile(buffering=0) as file, images._printing_to(file):
        os.write(2, b"bad" * 10_000)
    assert capfd.readouterr().err == ("bad" * 10_000)[:4_096]


def test_restart_markers_and_fillers_belong_to_the_picture() -> None:
    body = jpeg(restart_marker_rows=1)
    assert body.count(b"\xff\xd0") > 0
    assert check_jpeg(body).ended
    assert check_jpeg(body[:-2] + b"\xff\xff" + body[-2:]).ended
    assert not check_jpeg(body[:-2]).ended


@pytest.mark.parametrize(("orientation", "size"), [(1, (120, 90)), (3, (120, 90)), (6, (90, 120))])
def test_orientation_is_obeyed_if_asked(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = jpeg(exif=exif.tobytes(), quality=95)
    lying, upright = make(body), make(body, apply_orientation=True)
    assert (lying.original_width, lying.original_height) == (120, 90)
    assert (upright.original_width, upright.original_height) == size
    turns = {1: 0, 3: 2, 6: 3}[orientation]
    plain = make(body, resize_mode="no", encode_format="png", encode_quality=9)
    turned = make(
        body, resize_mode="no", encode_format="png", encode_quality=9, apply_orientation=True
    )
    difference = np.rot90(pixels(plain), turns).astype(int) - pixels(turned)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize(("size", "kept"), [((2000, 100), True), ((2001, 100), False)])
def test_lines_are_refused(size: tuple[int, int], kept: bool) -> None:
    for wide_or_tall in (size, size[::-1]):
        body = png(Image.new("RGB", wide_or_tall))
        if kept:
            assert make(body).original_width == wide_or_tall[0]
            continue
        with pytest.raises(ImageRefused) as refused:
            make(body)
        assert refused.value.reason == "too_narrow"
        assert make(body, max_aspect_ratio=30)


def test_read_png_keeps_what_a_decoder_needs() -> None:
    image = Image.fromarray(PIXELS)
    read = read_png(png(image, [chunk(b"tEXt", b"a\0b")] * 3))
    assert read.lean == png(image)
    assert (read.color, read.depth, read.frames, read.transparency) == (2, 8, 1, None)
