"""open_clip's transform of a picture, in two halves: one on the picture, one on a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from PIL import Image

_LONGEST: Final = 16
"""Largest ratio of a picture's sides that is scaled; the rest of a longer picture is cut off."""


class Preprocessing:
    """A model's transform: what is done to a picture, and the arithmetic on a batch of them.

    Bytes move faster than floats, and a worker thread that called torch would bring threads of
    torch's own, so that only the second half is torch's.

    Args:
        transform: open_clip's, of a PIL image to a float32 tensor (3, height, width).
        device: the device of the second half.

    Raises:
        ValueError: if the transform does not end in ToTensor and Normalize.
    """

    def __init__(self, transform: Any, device: torch.device) -> None:
        import torch
        from torchvision.transforms import Compose, Normalize

        *on_picture, to_tensor, normalize = transform.transforms
        if not (type(to_tensor).__name__.endswith("ToTensor") and isinstance(normalize, Normalize)):
            steps = ", ".join(type(step).__name__ for step in transform.transforms)
            raise ValueError(f"open_clip's preprocessing is not supported: {steps}")
        self.transform = transform
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (normalize.mean, normalize.std)
        )
        self._shape = Compose(on_picture)
        self._crops = _fills_a_square(on_picture[0])

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Crop and resize an image for the model, (height, width, 3)."""
        return np.asarray(self._shape(_cropped(image) if self._crops else image))

    def floats(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn a batch of :meth:`pixels` on the device into the model's input, float32.

        The arithmetic is that of torchvision's ToTensor and Normalize.
        """
        import torch

        last = torch.channels_last
        floats = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=last)
        return floats.div_(255).sub_(self._mean).div_(self._std)


def _fills_a_square(first: Any) -> bool:
    """Whether a first step scales the shorter side to the model's size; the rest is cropped."""
    from torchvision.transforms import Resize

    return isinstance(first, Resize) and isinstance(first.size, int) and first.max_size is None


def _cropped(image: Image.Image) -> Image.Image:
    """Cut off the ends of a very long picture, which would be cropped after scaling anyway.

    Otherwise a picture of 1 by 60,000 pixels would be scaled to 3 billion pixels first.
    """
    width, height = image.size
    most = _LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, upper = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, upper, left + min(width, most), upper + min(height, most)))
