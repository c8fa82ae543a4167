"""Resize and encode a decoded image, byte for byte as img2dataset's ``Resizer`` does.

img2dataset builds objects of albumentations for each image, whose checks take longer than the
resizing itself, and whose import takes longer than a small shard. A test compares the two. What
does not belong here: decoding, and what is refused (:mod:`.images`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.download.options import DownloadOptions

Pixels = NDArray[np.uint8]
"""(height, width) gray, or (height, width, 3) in OpenCV's order of colours."""
Size = tuple[int, int]
"""Width and height in pixels."""

_BY_SHORT_SIDE: Final = ("keep_ratio", "center_crop")
_SCALED_AS: Final = (8, 4, 2)
"""What libjpeg can divide a JPEG's sides by while it decodes."""
_TIMES_TARGET: Final = 3
"""A scaled picture keeps at least this many times the pixels, along a side, of the one to make."""


class Resizer:
    """Resizes and encodes 8-bit images without alpha. Sets OpenCV to one thread."""

    def __init__(self, options: DownloadOptions) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._size, self._mode = options.image_size, options.resize_mode
        self._only_if_bigger = options.resize_only_if_bigger
        self._suffix = f".{options.encode_format}"
        quality = {
            "jpg": cv2.IMWRITE_JPEG_QUALITY,
            "png": cv2.IMWRITE_PNG_COMPRESSION,
            "webp": cv2.IMWRITE_WEBP_QUALITY,
        }[options.encode_format]
        self._params = [int(quality), options.encode_quality]

    def __call__(self, image: Pixels, original: Size) -> tuple[bytes, Size]:
        """The encoded image, and its size.

        ``original``: the size before the image was scaled while it was decoded, if it was. Raises
        ``cv2.error`` for an image that the format cannot hold.
        """
        import cv2

        resized = self._resized(image, original)
        encoded = cv2.imencode(self._suffix, resized, self._params)[1].tobytes()
        return encoded, size_of(resized)

    def divisor(self, size: Size) -> int:
        """What an image's sides may be divided by while it is decoded: 8, 4, 2 or 1."""
        if self._mode == "no":
            return 1
        left = self._side(size) // (_TIMES_TARGET * self._size)
        return next((divisor for divisor in _SCALED_AS if divisor <= left), 1)

    def _side(self, size: Size) -> int:
        """The side that decides the scale."""
        return min(size) if self._mode in _BY_SHORT_SIDE else max(size)

    def _resized(self, image: Pixels, original: Size) -> Pixels:
        import cv2

        smaller = self._side(original) > self._size
        if self._mode == "no" or (self._only_if_bigger and not smaller):
            return image
        scale = self._size / self._side(original)
        target = max(1, round(original[0] * scale)), max(1, round(original[1] * scale))
        if target != size_of(image):
            interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
            image = _pixels(cv2.resize(image, target, interpolation=interpolation))
        if self._mode == "center_crop":
            return self._cropped(image)
        return self._bordered(image) if self._mode == "border" else image

    def _bordered(self, image: Pixels) -> Pixels:
        import cv2

        width, height = size_of(image)
        left, top = (self._size - width) // 2, (self._size - height) // 2
        right, bottom = self._size - width - left, self._size - height - top
        white = (255, 255, 255)
        return _pixels(
            cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=white)
        )

    def _cropped(self, image: Pixels) -> Pixels:
        width, height = size_of(image)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        return image[top : top + self._size, left : left + self._size]


def size_of(image: NDArray[Any]) -> Size:
    """The width and height of an array of pixels."""
    return image.shape[1], image.shape[0]


def _pixels(image: Any) -> Pixels:
    return np.asarray(image, np.uint8)
