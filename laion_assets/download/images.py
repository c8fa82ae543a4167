"""Make a stranger's bytes into an image to store; refuse before decoding what can be refused.

OpenCV decodes, as in img2dataset. Some of its versions silently fill the missing part of a cut
image with grey. So each image's end is looked for first (:mod:`.formats`); if a JPEG's end is in
doubt, Pillow reads the JPEG to its end. A JPEG that was cut and closed has an end: libjpeg's
warning, which OpenCV prints, shows that it lacks data.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laion_assets.download import img2dataset_parts
from laion_assets.download.errors import ImageRefused
from laion_assets.download.formats import Png, Scans, check_jpeg, read_png
from laion_assets.download.options import DownloadOptions
from laion_assets.download.resizer import Pixels, Resizer, Size, size_of
from laion_assets.removals.active import Lists

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_ORIENTATION: Final = 0x0112
_ON_ITS_SIDE: Final = 5
"""From this EXIF orientation on, width and height change places when a picture is turned."""
_LARGE_PIXELS: Final = 16_000_000
_STRIP_ROWS: Final = 128
_MOST_PRINTED: Final = 4_096
"""Bytes that are passed on of what a decoder prints: a hostile file may make it print on."""
_LACKS_DATA: Final = b"premature end of data segment"
"""libjpeg's words for a scan that ends before its last block (JWRN_HIT_MARKER)."""
_EXIF_BYTES: Final = 65_536
_EXIF_CHARS: Final = 65_536
"""Tags may all point at the same text, so a few KB of them can be written out as 76 MB."""


@dataclass(frozen=True)
class Checksums:
    """Digests of the bytes as downloaded, in hexadecimal."""

    sha256: str
    md5: str

    @classmethod
    def of(cls, body: bytes) -> Checksums:
        return cls(
            hashlib.sha256(body).hexdigest(), hashlib.md5(body, usedforsecurity=False).hexdigest()
        )


@dataclass(frozen=True)
class StoredImage:
    """An image to store; sizes in pixels. ``exif`` is JSON, None if the tags cannot be read."""

    encoded: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str | None


def refuse_unseen(body: bytes, min_bytes: int) -> None:
    """Raise :class:`ImageRefused` for a body that can be refused without decoding."""
    if len(body) < min_bytes:
        raise ImageRefused("too_small", f"{len(body)} bytes")


def refuse_listed(sums: Checksums, lists: Lists) -> None:
    """Raise :class:`ImageRefused` if a list names the image by its hash."""
    if lists.blocklists.matches_image(sums.sha256, sums.md5):
        raise ImageRefused("blocked", "its hash is on a blocklist")
    if lists.removals.matches_image(sums.sha256, sums.md5):
        raise ImageRefused("removed", "its hash is on a removal list")


class LargeImage(Exception):  # noqa: N818 - it is made in another way, not refused
    """The decoded image may take gigabytes of memory, so only one is decoded at a time."""


class ImageMaker:
    """Checks, decodes, resizes and encodes images.

    While OpenCV decodes, the process's standard error goes to a file: one maker at a time, in a
    process without other threads that print.
    """

    def __init__(self, options: DownloadOptions) -> None:
        self._options = options
        self._printed = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as the maker
        self._resize = Resizer(options)
        _be_quiet()

    def make(self, body: bytes, *, large: bool = True) -> StoredImage:
        """The image to store.

        Raises :class:`ImageRefused`, and :class:`LargeImage` for a large one unless ``large``.
        """
        kind = _kind(body)
        with _as_undecodable():
            png = read_png(body) if kind == "PNG" else None
            needed = body if png is None else png.lean
            # Before Pillow, which reads every segment that there is.
            scans = check_jpeg(body) if kind == "JPEG" else None
            header = self._check_header(needed, kind, png)
        if scans is not None and scans.number > 1:
            header = replace(header, several_scans=True)
        if not large and header.decoded_pixels > _LARGE_PIXELS:
            raise LargeImage
        with _as_undecodable():
            _find_end(needed, kind, scans)
        with _printing_to(self._printed), _as_undecodable():
            image = _flat(_decoded(needed, header), png)
            encoded, made = self._resize(image, header.size)
        return StoredImage(encoded, *made, *header.size, _exif(body, kind))

    def _check_header(self, body: bytes, kind: str, png: Png | None) -> _Header:
        try:
            image = Image.open(BytesIO(body), formats=(kind,))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageRefused("too_many_pixels", str(error)) from error
        with image:
            if image.width * image.height > self._options.max_pixels:
                raise ImageRefused("too_many_pixels", f"{image.width} x {image.height} declared")
            long, short = max(image.size), min(image.size)
            if long > short * self._options.max_aspect_ratio:
                raise ImageRefused("too_narrow", f"{image.width} x {image.height}")
            # A JPEG of several pictures (MPO) is a photo with its previews, not an animation.
            frames = png.frames if png else getattr(image, "n_frames", 1)
            if kind != "JPEG" and frames > 1:
                raise ImageRefused("animated", f"{frames} frames")
            return self._header(image, kind)

    def _header(self, image: Image.Image, kind: str) -> _Header:
        if kind != "JPEG":
            return _Header(image.size)
        turn = 1
        if self._options.apply_orientation:
            turn = image.getexif().get(_ORIENTATION, 1)
        return _Header(
            image.size,
            turn=turn if turn in range(1, 9) else 1,
            divisor=self._resize.divisor(image.size) if self._options.scaled_decoding else 1,
            gray=image.mode == "L",
            several_scans="progressive" in image.info,
        )


def _be_quiet() -> None:
    """Keep libraries from warning of what strangers' images hold."""
    # Declared sizes are judged here; Pillow would warn of some that are refused anyway.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    # Pillow would warn of each odd tag.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    logging.getLogger("exifread").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class _Header:
    """What a picture's header says, and how it is to be decoded."""

    declared: Size
    turn: int = 1
    """The EXIF orientation by which a JPEG is to be turned; 1 is none."""
    divisor: int = 1
    """What a JPEG's sides are divided by while it is decoded."""
    gray: bool = False
    several_scans: bool = False
    """Whether it is a JPEG that is progressive, or has a scan for each colour."""

    @property
    def size(self) -> Size:
        """The whole picture's width and height, once it is turned."""
        return self.declared[::-1] if self.turn >= _ON_ITS_SIDE else self.declared

    @property
    def decoded_size(self) -> Size:
        """The size of the picture as it comes from the decoder."""
        width, height = self.size
        return -(-width // self.divisor), -(-height // self.divisor)

    @property
    def decoded_pixels(self) -> int:
        """How many pixels the decoder holds: of several scans all, until the last has come."""
        width, height = self.size if self.several_scans else self.decoded_size
        return width * height


def _decoded(body: bytes, header: _Header) -> NDArray[Any]:
    """The picture's pixels, turned and scaled as the header says."""
    import cv2

    color, gray = cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE
    if header.divisor > 1:
        color, gray = {
            2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
            4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
            8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
        }[header.divisor]
    if header.turn > 1:
        how = color  # OpenCV obeys the orientation, unless it is asked not to
    elif header.divisor > 1:
        how = (gray if header.gray else color) | cv2.IMREAD_IGNORE_ORIENTATION
    else:
        how = cv2.IMREAD_UNCHANGED
    image = cv2.imdecode(np.frombuffer(body, np.uint8), how)
    if image is None:
        raise ImageRefused("undecodable", "OpenCV does not decode it")
    if size_of(image) != header.decoded_size:
        raise ImageRefused("undecodable", "the decoded size is not the declared one")
    return image


def _kind(body: bytes) -> str:
    """Pillow's name of an accepted type, by the first bytes. Raises :class:`ImageRefused`."""
    if body.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if body.startswith(_PNG):
        return "PNG"
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "WEBP"
    if body.startswith((b"GIF87a", b"GIF89a")):
        with _as_undecodable(), Image.open(BytesIO(body), formats=("GIF",)) as image:
            if getattr(image, "is_animated", False):
                raise ImageRefused("animated", "GIF of several frames")
        raise ImageRefused("unsupported_type", "GIF")
    raise ImageRefused("unsupported_type", f"starts with {body[:12]!r}")


@contextmanager
def _as_undecodable() -> Iterator[None]:
    """Refuse the image for any error of a decoder: a stranger's bytes may cause every kind."""
    try:
        yield
    except (ImageRefused, MemoryError):
        raise
    except Exception as error:
        raise ImageRefused("undecodable", f"{type(error).__name__}: {error}") from error


def _find_end(body: bytes, kind: str, scans: Scans | None) -> None:
    """Raise if data is missing at the end: :class:`ImageRefused`, or the decoder's own error.

    ``scans``: a JPEG's.
    """
    if kind == "WEBP":
        declared = 8 + int.from_bytes(body[4:8], "little")
        if len(body) < declared:
            raise ImageRefused("undecodable", f"{len(body)} of {declared} bytes")
        return
    if scans is None or scans.ended:
        return
    with Image.open(BytesIO(body), formats=(kind,)) as image:
        # Decoding to an eighth of the size still reads every byte, for part of the work.
        image.draft("L", (1, 1))
        image.load()


@contextmanager
def _printing_to(file: IO[bytes]) -> Iterator[None]:
    """Keep what the block prints to standard error, to raise :class:`ImageRefused` by it.

    Anything else than libjpeg's warning of missing data is passed on.
    """
    standard_error = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        printed = b""
        if file.tell():
            file.seek(0)
            printed = file.read()
            file.seek(0)
            file.truncate()
        if printed and _LACKS_DATA not in printed:
            os.write(2, printed[:_MOST_PRINTED])
    if _LACKS_DATA in printed:
        raise ImageRefused("undecodable", "cut: the JPEG lacks data before its end marker")


def _flat(image: NDArray[Any], png: Png | None) -> Pixels:
    """The image with 8 bits and no alpha, on white.

    img2dataset blends it by the same formula, but over the whole image at once, in 64 bits. It
    clips 16-bit samples at 255, so that nearly all become white.
    """
    clear = _transparent_gray(image, png) if png and image.ndim == 2 else None
    if image.dtype == np.uint16:
        image = (image // 256).astype(np.uint8)
    if image.ndim == 3 and image.shape[2] == 4:
        opaque = np.empty((*image.shape[:2], 3), np.uint8)
        for top in range(0, len(image), _STRIP_ROWS):
            strip = image[top : top + _STRIP_ROWS]
            alpha = strip[:, :, 3, np.newaxis]
            on_white = alpha / 255 * strip[:, :, :3] + 255 - alpha
            opaque[top : top + _STRIP_ROWS] = np.rint(on_white.clip(0, 255))
        image = opaque
    if clear is not None:
        image[clear] = 255
    return image


def _transparent_gray(image: NDArray[Any], png: Png) -> NDArray[np.bool_] | None:
    """Where a gray PNG has its transparent colour, which OpenCV takes for a gray like others."""
    if png.color != 0 or png.transparency is None:
        return None
    value = int.from_bytes(png.transparency[:2], "big")
    if png.depth < 8:
        value = value * 255 // ((1 << png.depth) - 1)
    where: NDArray[np.bool_] = image == value
    return where


def _exif(body: bytes, kind: str) -> str | None:
    try:
        if _exif_bytes(body, kind) > _EXIF_BYTES:
            return None
        text = img2dataset_parts.exif_json(body)
    except Exception:  # noqa: BLE001 - not essential: the shard's statistics count its loss
        return None
    return text if len(text) <= _EXIF_CHARS else None


def _exif_bytes(body: bytes, kind: str) -> int:
    """Size of a PNG's or WebP's EXIF chunks, else 0; a JPEG's have 64 KiB at most."""
    at, step, name = {"PNG": (8, 12, b"eXIf"), "WEBP": (12, 8, b"EXIF")}.get(
        kind, (len(body), 0, b"")
    )
    found = 0
    while at + 8 <= len(body):
        if kind == "PNG":
            size, chunk = int.from_bytes(body[at : at + 4], "big"), body[at + 4 : at + 8]
        else:
            size, chunk = int.from_bytes(body[at + 4 : at + 8], "little"), body[at : at + 4]
            size += size % 2
        found += size if chunk == name else 0
        at += step + size
    return found
