"""From a stranger's bytes to an image to store, refusing before decoding what can be refused.

img2dataset's resizer decodes, resizes and encodes. Some versions of OpenCV, which it decodes by,
fill what is missing of a cut image with grey and say nothing, so each image's end is looked for
first; a JPEG whose end is in doubt is read to it by Pillow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

from laion_assets.download import img2dataset_parts
from laion_assets.download.errors import ImageRefused
from laion_assets.download.options import DownloadOptions
from laion_assets.removals.entries import Entries

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT: Final = 24  # of the bit depth in the first chunk, IHDR
_JPEG_SCAN: Final = b"\xff\xda"
_JPEG_END: Final = b"\xff\xd9"
_LARGE_PIXELS: Final = 16_000_000
_STRIP_ROWS: Final = 128
_EXIF_BYTES: Final = 65_536
_EXIF_CHARS: Final = 65_536
"""Tags may all point at the same text: a few KB of them can be written out as 76 MB."""


@dataclass(frozen=True)
class Checksums:
    """Of the bytes as downloaded, in hexadecimal."""

    sha256: str
    md5: str

    @classmethod
    def of(cls, body: bytes) -> Checksums:
        return cls(
            hashlib.sha256(body).hexdigest(), hashlib.md5(body, usedforsecurity=False).hexdigest()
        )


@dataclass(frozen=True)
class StoredImage:
    """``exif`` is JSON, None where the tags cannot be read; sizes are in pixels."""

    encoded: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str | None


def refuse_unseen(body: bytes, min_bytes: int) -> None:
    """Raise :class:`ImageRefused` for what need not be decoded to be refused."""
    if len(body) < min_bytes:
        raise ImageRefused("too_small", f"{len(body)} bytes")


def refuse_listed(sums: Checksums, removals: Entries, blocklists: Entries) -> None:
    """Raise :class:`ImageRefused` if a list names the image by its hash."""
    if blocklists.matches_image(sums.sha256, sums.md5):
        raise ImageRefused("blocked", "its hash is on a blocklist")
    if removals.matches_image(sums.sha256, sums.md5):
        raise ImageRefused("removed", "its hash is on a removal list")


class LargeImage(Exception):  # noqa: N818 - it is to be made otherwise, not refused
    """Decoded, it may take gigabytes: one at a time."""


class ImageMaker:
    """Checks, resizes and encodes."""

    def __init__(self, options: DownloadOptions) -> None:
        self._options = options
        self._resize = img2dataset_parts.make_resizer(options)

    def make(self, body: bytes, *, large: bool = True) -> StoredImage:
        """Raises :class:`ImageRefused`, and :class:`LargeImage` where these are not wanted."""
        kind = _kind(body)
        with _as_undecodable():
            size, plain = self._check_header(body, kind)
        if not large and size[0] * size[1] > _LARGE_PIXELS:
            raise LargeImage
        with _as_undecodable():
            _find_end(body, kind)
            opaque = body if plain else _flatten(body)
        encoded, width, height, original_width, original_height, problem = self._resize(
            BytesIO(opaque)
        )
        if encoded is None or problem is not None:
            raise ImageRefused("undecodable", problem or "no image")
        if (original_width, original_height) != size:
            raise ImageRefused("undecodable", "the decoded size is not the declared one")
        return StoredImage(encoded, width, height, *size, _exif(body, kind))

    def _check_header(self, body: bytes, kind: str) -> tuple[tuple[int, int], bool]:
        """Declared ``(width, height)``, and whether OpenCV gives 8 bits and no alpha as it is."""
        try:
            image = Image.open(BytesIO(body), formats=(kind,))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageRefused("too_many_pixels", str(error)) from error
        with image:
            if image.width * image.height > self._options.max_pixels:
                raise ImageRefused("too_many_pixels", f"{image.width} x {image.height} declared")
            # A JPEG of several pictures (MPO) is a photo with its previews, not an animation.
            if kind != "JPEG" and getattr(image, "is_animated", False):
                raise ImageRefused("animated", f"{getattr(image, 'n_frames', '?')} frames")
            plain = not image.has_transparency_data
        if kind == "PNG" and body[_PNG_DEPTH_AT] == 16:
            plain = False
        return image.size, plain


def _kind(body: bytes) -> str:
    """Pillow's name of a type that is taken, by the first bytes. Raises :class:`ImageRefused`."""
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
    """Whatever a decoder makes of a stranger's bytes costs this image, by name."""
    try:
        yield
    except (ImageRefused, MemoryError):
        raise
    except Exception as error:
        raise ImageRefused("undecodable", f"{type(error).__name__}: {error}") from error


def _find_end(body: bytes, kind: str) -> None:
    """Raise an error of the decoder's kind where data is missing at the end."""
    if kind == "WEBP":
        declared = 8 + int.from_bytes(body[4:8], "little")
        if len(body) < declared:
            raise ImageRefused("undecodable", f"{len(body)} of {declared} bytes")
        return
    if kind == "JPEG" and body.rfind(_JPEG_END) > body.rfind(_JPEG_SCAN):
        # Inside a scan no end marker can stand: the last scan has been ended.
        return
    with Image.open(BytesIO(body), formats=(kind,)) as image:
        if kind == "PNG":
            image.verify()  # every chunk's checksum, to the last
        else:
            # An eighth of a JPEG's size still reads every byte, for a part of the work.
            image.draft("L", (1, 1))
            image.load()


def _flatten(body: bytes) -> bytes:
    """The image as BMP with 8 bits and no alpha.

    The resizer would put it on white by the same formula, but over the whole image at once, in 64
    bits; of 16-bit samples it would keep the excess over 255, which is white.
    """
    import cv2

    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ImageRefused("undecodable", "OpenCV does not decode it")
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
    return cv2.imencode(".bmp", image)[1].tobytes()


def _exif(body: bytes, kind: str) -> str | None:
    try:
        if _exif_bytes(body, kind) > _EXIF_BYTES:
            return None
        text = img2dataset_parts.exif_json(body)
    except Exception:  # noqa: BLE001 - an ornament: its loss is counted in the shard's statistics
        return None
    return text if len(text) <= _EXIF_CHARS else None


def _exif_bytes(body: bytes, kind: str) -> int:
    """Bytes of the EXIF chunks of a PNG or WebP; in a JPEG they are 64 KiB at most."""
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
