"""The CLIP model behind the queries: one thread with a bounded queue.

The model is loaded while the service already answers requests that do not need it. Texts that wait
together are embedded together. Images are decoded elsewhere (:mod:`.query_images`), so that no
image delays the texts. Work whose call is cancelled is dropped.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.options import ClipOptions
from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.options import ServeOptions
from laion_assets.search.query_images import Pixels, QueryImages

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

Vector = npt.NDArray[np.float32]
Observe = Callable[[str, float], None]
"""Called with what was done (decode, text, image) and the seconds that it took."""

_REMEMBERED: Final = 4_096


class Encoder:
    """Encode queries into vectors, ``(d,)`` float32 of unit length. Use it on one event loop.

    :meth:`start` loads the model; ``load`` is called in the encoder's thread. The most recent
    vectors are remembered.
    """

    def __init__(
        self,
        clip: ClipOptions,
        options: ServeOptions,
        load: Callable[[ClipOptions], ClipModel] | None = None,
        observe: Observe = lambda *_: None,
    ) -> None:
        self.identity: ModelIdentity | None = None
        """The model's; None until it is loaded."""
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.problem = ""
        self._clip = clip
        self._options = options
        self._load = load
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clip")
        self._images = QueryImages(options)
        self._waiting = 0
        self._texts: list[tuple[str, asyncio.Future[Vector]]] = []
        self._lock = threading.Lock()
        self._known: LRUCache[tuple[str, str], Vector] = LRUCache(_REMEMBERED)

    def start(self) -> asyncio.Future[None]:
        """Begin to load the model; the future is done when it is ready or has failed."""
        self._images.start()
        return asyncio.get_running_loop().run_in_executor(self._thread, self._begin)

    def close(self) -> None:
        """End the decoders' processes, and the thread after the batch that it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._images.close()

    def _begin(self) -> None:
        from laion_assets.clip.model import load_clip

        try:
            self._model = (self._load or load_clip)(self._clip)
            identity = self._model.identity
            self._model.encode_texts(["a first text, which takes longest"])
        except Exception as error:  # noqa: BLE001 - shown at /healthz and in each refusal
            self.state, self.problem = "failed", str(error) or type(error).__name__
        else:
            self.identity, self.state = identity, "ready"

    async def text(self, text: str) -> Vector:
        """Encode a text. Raises :class:`RequestRefusedError`."""
        known = self._known.get(("text", text))
        if known is not None:
            return known
        with self._queued():
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Vector] = loop.create_future()
            with self._lock:
                self._texts.append((text, future))
            try:
                await loop.run_in_executor(self._thread, self._encode_texts, loop)
                vector = self._known["text", text] = await future
            finally:
                future.cancel()
            return vector

    async def image(self, body: bytes, client: str) -> Vector:
        """Encode an image file for a client. Raises :class:`RequestRefusedError`."""
        digest = hashlib.sha256(body).hexdigest()
        known = self._known.get(("image", digest))
        if known is not None:
            return known
        self._refuse_if_down()
        pixels = await self._images.decode(body, client, partial(self._observe, "decode"))
        with self._queued():
            loop = asyncio.get_running_loop()
            vector = await loop.run_in_executor(self._thread, self._encode_image, pixels)
            self._known["image", digest] = vector
            return vector

    def _encode_texts(self, loop: asyncio.AbstractEventLoop) -> None:
        """Encode all waiting texts; a call after that finds nothing left to do."""
        with self._lock:
            taken = [waiting for waiting in self._texts if not waiting[1].done()]
            self._texts = []
        if not taken:
            return
        started = time.perf_counter()
        try:
            self._refuse_if_down()  # loading may have failed while they waited for it
            vectors = self._model.encode_texts([text for text, _ in taken])
        except Exception as error:  # noqa: BLE001 - passed on to each that waits
            for _, future in taken:
                loop.call_soon_threadsafe(_fail, future, error)
            return
        self._observe("text", time.perf_counter() - started)
        for (_, future), vector in zip(taken, vectors, strict=True):
            loop.call_soon_threadsafe(_resolve, future, vector)

    def _encode_image(self, pixels: Pixels) -> Vector:
        from PIL import Image

        self._refuse_if_down()  # as above
        started = time.perf_counter()
        vector: Vector = self._model.encode_images([Image.fromarray(pixels)])[0]
        self._observe("image", time.perf_counter() - started)
        return vector

    def _refuse_if_down(self) -> None:
        if self.state == "failed":
            raise RequestRefusedError(
                503, "encoder_down", f"the CLIP model is not available: {self.problem}"
            )

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """Hold a place in the model's queue. Raises :class:`RequestRefusedError` if it is full."""
        self._refuse_if_down()
        if self._waiting >= self._options.encoder_waiting:
            raise RequestRefusedError(
                503, "busy", "too many queries are waiting for the CLIP model", retry_after_s=1
            )
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


def _resolve(future: asyncio.Future[Vector], vector: Vector) -> None:
    if not future.done():
        future.set_result(vector)


def _fail(future: asyncio.Future[Vector], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
