"""Strangers' query images: decoded in processes that can be killed, one of a client at a time.

A free process goes to the client that has taken least of them of late.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from cachetools import TTLCache
from numpy.typing import NDArray
from PIL import Image

from laion_assets.clip.shards import IMAGE_FORMATS, NOT_AN_IMAGE
from laion_assets.download.decoders import Decoders, DecodersError, LateImage, Spent
from laion_assets.download.errors import ImageRefused
from laion_assets.download.formats import lean
from laion_assets.download.priority_semaphore import PrioritySemaphore
from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.options import ServeOptions

Pixels = NDArray[np.uint8]
"""An RGB image, ``(height, width, 3)``."""

_DRAFT: Final = (1024, 1024)
_MOST_PIXELS: Final = 2**22
"""Larger images are reduced by a whole factor: no CLIP model sees over a few hundred rows."""
_NICENESS: Final = 5
"""The processes leave the cores to the queries that need no decoder."""
_MOST_WALL: Final = 4
"""Seconds that may pass for each CPU second that an image may take: others wait for its process."""
_FADES_S: Final = 60.0
"""After so long, a third of the seconds that a client has taken still count."""
_REMEMBERED_S: Final = 10 * _FADES_S
_CLIENTS: Final = 10_000
"""Clients that are remembered, so that strangers cannot fill the memory."""
_OWN_REASONS: Final = frozenset({"decode_timeout", "decoder_failed", "too_complex"})


@dataclass
class _Client:
    """Images of one client that wait or are decoded."""

    images: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class QueryImages:
    """Decodes images in ``decode_processes``; use it on one event loop.

    A client has one image decoded at a time and few waiting, and waits for those that have taken
    less of the processes, so that its images, however long they take, leave them to others.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._free = PrioritySemaphore(options.decode_processes)
        self._taken: TTLCache[str, tuple[float, float]] = TTLCache(_CLIENTS, _REMEMBERED_S)
        """Client -> CPU seconds that it has taken, as they counted at a time, and that time."""
        self._clients: dict[str, _Client] = {}
        self._running = ExitStack()

    def start(self) -> None:
        """Begin to start the processes; images wait for them."""
        scratch = tempfile.TemporaryDirectory(prefix="laion-assets-queries-")
        self._decoders = self._running.enter_context(
            Decoders(
                self._options.decode_processes,
                Path(self._running.enter_context(scratch)),
                [__name__],
                _be_nice,
            )
        )

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._running.close()

    async def decode(self, body: bytes, client: str, spent: Spent) -> Pixels:
        """Decode an image file for a client. Raises :class:`RequestRefusedError`.

        Cancelling the call ends its decoder, too. ``spent`` gets the seconds from the image's turn
        to its end.
        """
        most_s, max_pixels = self._options.decode_timeout_s, self._options.max_pixels
        async with self._turn(client):
            started, cpu_s = time.perf_counter(), None
            try:
                with self._decoders.file(body) as path:
                    made, cpu_s = await self._decoders.run_within(
                        most_s, _MOST_WALL * most_s, decode_file, path, max_pixels
                    )
            except LateImage as error:
                raise RequestRefusedError(
                    503, "busy", "the decoders had no time for the image", retry_after_s=10
                ) from error
            except ImageRefused as refused:
                made = _refusal(refused)
            except DecodersError as error:
                raise RequestRefusedError(
                    503, "decoders_down", "images cannot be decoded now", retry_after_s=10
                ) from error
            finally:
                passed = time.perf_counter() - started
                taken = min(most_s, passed) if cpu_s is None else cpu_s
                self._taken[client] = self._taken_s(client) + taken, time.monotonic()
                spent(passed)
        if isinstance(made, tuple):
            raise RequestRefusedError(*made)
        return made

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Wait for the client's turn and a process. Raises :class:`RequestRefusedError`."""
        client = self._clients.setdefault(name, _Client())
        # One share more than there are clients, or a few could take all places.
        share = max(1, self._options.encoder_waiting // (len(self._clients) + 1))
        if client.images >= min(self._options.images_waiting, share):
            raise RequestRefusedError(
                429, "images_waiting", "too many of your images are waiting", retry_after_s=1
            )
        if sum(other.images for other in self._clients.values()) >= self._options.encoder_waiting:
            if not client.images:
                del self._clients[name]
            raise RequestRefusedError(503, "busy", "too many images are waiting", retry_after_s=1)
        client.images += 1
        try:
            async with AsyncExitStack() as process, client.turn:
                await process.enter_async_context(self._process(self._urgency(name)))
                yield
        finally:
            client.images -= 1
            if not client.images:
                del self._clients[name]

    @asynccontextmanager
    async def _process(self, urgency: int) -> AsyncIterator[None]:
        """Hold a process until the block ends; then the client's next image may line up for it."""
        async with self._free.held(urgency):
            try:
                yield
            finally:
                await asyncio.sleep(0)

    def _urgency(self, client: str) -> int:
        """How urgent the client's next image is, compared with those that line up later, too.

        Who has taken less goes first. As what was taken fades for all alike while they wait, its
        logarithm and the time now decide as well as what is left of it would at any later time, and
        nobody waits for ever. A second or less counts as one, or strangers with ever new addresses
        would go before who has asked for little.
        """
        taken = math.log(max(1.0, self._taken_s(client)))
        return -int(1000 * (taken + time.monotonic() / _FADES_S))

    def _taken_s(self, client: str) -> float:
        """Seconds that a client has taken of late; older ones count less and less."""
        seconds, then = self._taken.get(client, (0.0, 0.0))
        return seconds * math.exp((then - time.monotonic()) / _FADES_S)


def _be_nice() -> None:
    os.nice(_NICENESS)


def _refusal(refused: ImageRefused) -> tuple[int, str, str]:
    if refused.reason in _OWN_REASONS:
        return 422, refused.reason, f"the image is refused: {refused.detail}"
    return 422, "undecodable", "the image is not a readable JPEG, PNG or WebP"


def decode_file(body: Path, max_pixels: int) -> Pixels | tuple[int, str, str]:
    """The image, or its refusal's status, reason and detail. Runs in a process."""
    try:
        with Image.open(BytesIO(lean(body.read_bytes())), formats=IMAGE_FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                return (
                    413,
                    "too_many_pixels",
                    f"the image has {opened.width} × {opened.height} pixels; at most "
                    f"{max_pixels:,} are allowed",
                )
            opened.draft("RGB", _DRAFT)  # a JPEG need not be decoded in full
            image = opened.convert("RGB")
    except ImageRefused as refused:
        return _refusal(refused)
    except (*NOT_AN_IMAGE, MemoryError) as error:
        return _refusal(ImageRefused("undecodable", str(error)))
    factor = math.ceil((image.width * image.height / _MOST_PIXELS) ** 0.5)
    return np.asarray(image.reduce(factor) if factor > 1 else image)
