"""The processes that decode and encode images and write shards, beside the one that fetches.

A stranger's bytes may crash or hang a decoder: that costs its image, and a new process takes the
dead one's place (Pebble's pool). They are forked from a server that has img2dataset imported, so
that a new one is there at once and the fetching process never imports it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessPool

from laion_assets.download.images import ImageMaker, StoredImage
from laion_assets.download.options import DownloadOptions
from laion_assets.download.refused import ImageRefused
from laion_assets.processes import die_with

_PRELOADED: Final = "laion_assets.download.preloaded"

P = ParamSpec("P")
T = TypeVar("T")

_maker: ImageMaker


class Decoders:
    """A pool of ``resize_processes``; use as a context. ``scratch``: an own folder."""

    def __init__(self, options: DownloadOptions, scratch: Path) -> None:
        self._timeout_s = options.decode_timeout_s
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([_PRELOADED])
        self._pool = ProcessPool(
            options.resize_processes,
            context=context,
            initializer=_begin,
            initargs=(options, scratch / "one-large.lock"),
        )

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    async def make(self, body: bytes) -> StoredImage:
        """The image to store. Raises :class:`ImageRefused`."""
        try:
            made = await asyncio.wrap_future(
                self._pool.schedule(_make, args=[body], timeout=self._timeout_s)
            )
        except TimeoutError as error:
            late = f"not decoded in {self._timeout_s:g} s"
            raise ImageRefused("undecodable", late) from error
        except ProcessExpired as error:
            died = f"its decoder died with exit code {error.exitcode}"
            raise ImageRefused("undecodable", died) from error
        if isinstance(made, StoredImage):
            return made
        raise ImageRefused(*made)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a picklable function in one of the processes, without a time limit."""
        result: T = await asyncio.wrap_future(
            self._pool.schedule(function, args=list(args), kwargs=dict(kwargs))
        )
        return result


def _begin(options: DownloadOptions, one_large: Path) -> None:
    die_with(os.getppid())
    global _maker
    _maker = ImageMaker(options, one_large)


def _make(body: bytes) -> StoredImage | tuple[str, str]:
    try:
        return _maker.make(body)
    except ImageRefused as refused:
        return refused.reason, refused.detail
