"""Processes that decode and encode images and write shards, beside the process that fetches.

A stranger's bytes may crash or hang a decoder: that costs its image, and a new process replaces the
dead one (Pebble's pool). The processes are forked from a server that has imported img2dataset, so
that a new one is ready at once and the fetching process never imports it.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessPool

from laion_assets.download.errors import ImageRefused
from laion_assets.download.images import ImageMaker, LargeImage, StoredImage
from laion_assets.download.options import DownloadOptions
from laion_assets.errors import TransientError
from laion_assets.work import die_with

_PRELOADED: Final = "laion_assets.download.forkserver_preload"
_POOLS_TRIED: Final = 3

P = ParamSpec("P")
T = TypeVar("T")

_maker: ImageMaker


class DecodersError(TransientError, RuntimeError):
    """The pool's processes die again and again although they have nothing to do."""


class Decoders:
    """A pool of ``resize_processes``; use as a context. ``scratch``: an own folder.

    Bodies go to the processes as files: a pipe holds less than one body, so a process would wait
    for each while the fetching thread holds the interpreter.

    Pools start and end in a thread: that takes seconds, in which the fetching process has answers
    to read.
    """

    def __init__(self, options: DownloadOptions, scratch: Path) -> None:
        self._options = options
        self._scratch = scratch
        self._names = itertools.count()
        self._one_large = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "decoders")

    def __enter__(self) -> Decoders:
        self._pool = self._thread.submit(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.submit(lambda: _stop(self._pool.result())).result()
        self._thread.shutdown()

    async def make(self, body: bytes) -> StoredImage:
        """The image to store. Raises :class:`ImageRefused`."""
        path = self._scratch / f"{next(self._names)}.body"
        path.write_bytes(body)
        try:
            made = await self._make(path, large=False)
            if made is None:
                async with self._one_large:
                    made = await self._make(path, large=True)
        finally:
            path.unlink()
        if isinstance(made, StoredImage):
            return made
        assert made is not None
        raise ImageRefused(*made)

    async def _make(self, body: Path, large: bool) -> StoredImage | tuple[str, str] | None:
        timeout_s = self._options.decode_timeout_s
        try:
            return await self._call(_make, (body, large), {}, timeout_s)
        except TimeoutError as error:
            raise ImageRefused("decoder_failed", f"not decoded in {timeout_s:g} s") from error
        except ProcessExpired as error:
            died = f"its decoder died with exit code {error.exitcode}"
            raise ImageRefused("decoder_failed", died) from error

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a picklable function in one of the processes, without a time limit.

        It may be called more than once if all processes die.
        """
        return await self._call(function, args, kwargs, None)

    async def _call(
        self,
        function: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout_s: float | None,
    ) -> T:
        for _ in range(_POOLS_TRIED):
            started = self._pool
            # Shielded: cancelling one image must not end the start that the others wait for.
            pool = await asyncio.shield(asyncio.wrap_future(started))
            try:
                future = pool.schedule(function, args=args, kwargs=kwargs, timeout=timeout_s)
            except RuntimeError:  # it broke since the last call
                self._replace(started)
                continue
            try:
                result: T = await asyncio.wrap_future(future)
            except BrokenExecutor:  # a process died that had no task yet
                self._replace(started)
                continue
            return result
        raise DecodersError(f"{_POOLS_TRIED} pools of decoders have died, one after the other")

    def _replace(self, broken: Future[ProcessPool]) -> None:
        """Start a new pool, unless another task that found this one broken has done so."""
        if self._pool is broken:
            self._thread.submit(_stop, broken.result())
            self._pool = self._thread.submit(self._start)

    def _start(self) -> ProcessPool:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([_PRELOADED])
        pool = ProcessPool(
            self._options.resize_processes,
            context=context,
            initializer=_begin,
            initargs=(self._options,),
        )
        assert pool.active  # reading this starts the pool
        return pool


def _stop(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _begin(options: DownloadOptions) -> None:
    die_with(os.getppid())
    global _maker
    _maker = ImageMaker(options)


def _make(body: Path, large: bool) -> StoredImage | tuple[str, str] | None:
    """The image, its refusal's reason and detail, or None for a large image unless ``large``."""
    try:
        return _maker.make(body.read_bytes(), large=large)
    except ImageRefused as refused:
        return refused.reason, refused.detail
    except LargeImage:
        return None
