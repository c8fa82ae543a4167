"""Processes that decode strangers' pictures, beside the process that fetches or serves.

A stranger's bytes may crash or hang a decoder: that costs its picture, and a new process replaces
the dead one (Pebble's pool). The processes are forked from a server that has imported what they
need, so that a new one is ready at once and the first process never imports it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec, Self, TypeVar

from pebble import ProcessExpired, ProcessPool

from laion_assets.download.errors import ImageRefused
from laion_assets.download.images import ImageMaker, LargeImage, StoredImage
from laion_assets.download.options import DownloadOptions
from laion_assets.download.priority_semaphore import PrioritySemaphore
from laion_assets.errors import TransientError
from laion_assets.files import try_lock
from laion_assets.work import PRELOADED, die_with_first_process, forked_from_server

_LOOK_S: Final = 0.05
_MOST_WALL: Final = 10
"""Seconds that may pass for each CPU second that a picture may take: it may have to wait for a
core, and a process that waits for ever must end, too."""
_POOLS_TRIED: Final = 3
_AT_ONCE: Final = 2
"""Images of each process that the pool has: one that is made, and the next."""

P = ParamSpec("P")
T = TypeVar("T")
Spent = Callable[[float], None]
"""Called with the seconds that a picture took a decoder."""

_maker: ImageMaker


class DecodersError(TransientError, RuntimeError):
    """The pool's processes die again and again although they have nothing to do."""


class LateImage(ImageRefused):
    """The wall-clock limit of a decoder passed, but its picture has not used up its CPU time."""


class Decoders:
    """A pool of ``processes``; use as a context. ``scratch``: an own folder.

    ``preloaded``: as :func:`~laion_assets.work.forked_from_server` takes it. ``begin``: picklable;
    called first in each process.

    Bodies go to the processes as files: a pipe holds less than one body, so a process would wait
    for each while the first process's thread holds the interpreter.

    Pools start and end in a thread: that takes seconds, in which the first process has other work.
    """

    def __init__(
        self, processes: int, scratch: Path, preloaded: Sequence[str], begin: Callable[[], None]
    ) -> None:
        self._processes = processes
        self._scratch = scratch
        self._preloaded = preloaded
        self._begin = begin
        self._names = itertools.count()
        self._thread = ThreadPoolExecutor(1, "decoders")

    def __enter__(self) -> Self:
        self._pool = self._thread.submit(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.submit(lambda: _stop(self._pool.result())).result()
        self._thread.shutdown()

    @contextmanager
    def file(self, body: bytes) -> Iterator[Path]:
        """A file of these bytes, for a call in one of the processes, until the block ends."""
        path = self._scratch / f"{next(self._names)}.body"
        path.write_bytes(body)
        try:
            yield path
        finally:
            path.unlink()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a picklable function in one of the processes, without a time limit.

        It may be called more than once if all processes die.
        """
        return await self._call(function, args, kwargs, None)

    async def run_within(
        self,
        cpu_s: float,
        wall_s: float,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> tuple[T, float]:
        """Call a picklable function that decodes a picture, for at most ``cpu_s`` CPU seconds.

        Returns what it returned, and the CPU seconds that it took.

        Raises :class:`ImageRefused`: ``decode_timeout`` if it takes more, ``decoder_failed`` if its
        process dies, and :class:`LateImage` if it is not done within ``wall_s``. Cancelling the
        call ends the process, too.
        """
        limited = functools.partial(_limited, cpu_s, function)
        try:
            return await self._call(limited, args, kwargs, wall_s)
        except TimeoutError as error:
            late = f"its decoder was not done within {wall_s:g} s"
            raise LateImage("decoder_failed", late) from error
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGPROF:
                slow = f"not decoded in {cpu_s:g} s of CPU time"
                raise ImageRefused("decode_timeout", slow) from error
            died = f"its decoder died with exit code {error.exitcode}"
            raise ImageRefused("decoder_failed", died) from error

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
        context = forked_from_server(self._preloaded)
        pool = ProcessPool(
            self._processes, context=context, initializer=_begin, initargs=(self._begin,)
        )
        assert pool.active  # reading this starts the pool
        return pool


class ImageMakers(Decoders):
    """The downloader's pool of ``resize_processes``: makes images, and writes shards.

    One large image is made at a time, by all pools that have the same file ``large``.
    """

    def __init__(self, options: DownloadOptions, scratch: Path, large: Path | None = None) -> None:
        begin = functools.partial(_begin_making, options)
        super().__init__(options.resize_processes, scratch, PRELOADED, begin)
        self._timeout_s = options.decode_timeout_s
        self._one_large = OneAtATime(large)
        self._turns = PrioritySemaphore(_AT_ONCE * options.resize_processes)

    async def make(
        self, body: bytes, urgency: int = 0, spent: Spent = lambda _: None
    ) -> StoredImage:
        """The image to store; the most urgent is made first. Raises :class:`ImageRefused`."""
        with self.file(body) as path:
            made = await self._make(path, urgency, large=False, spent=spent)
            if made is None:
                async with self._one_large.turn(urgency):
                    # Before all that are not large: the next large one waits for it.
                    made = await self._make(path, sys.maxsize, large=True, spent=spent)
        if isinstance(made, StoredImage):
            return made
        assert made is not None
        raise ImageRefused(*made)

    async def _make(
        self, body: Path, urgency: int, *, large: bool, spent: Spent
    ) -> StoredImage | tuple[str, str] | None:
        try:
            async with self._turns.held(urgency):
                made, seconds = await self.run_within(
                    self._timeout_s, _MOST_WALL * self._timeout_s, _make, body, large
                )
        except ImageRefused as refused:
            if refused.reason == "decode_timeout":
                spent(self._timeout_s)
            raise
        if made is not None:
            spent(seconds)
        return made


class OneAtATime:
    """Turns that one task at a time has, of all processes that have the same file, if it is given.

    Of a process's tasks the most urgent is next. A process that dies leaves its turn.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._here = PrioritySemaphore(1)
        self._others_until = 0.0

    @asynccontextmanager
    async def turn(self, urgency: int = 0) -> AsyncIterator[None]:
        """Have a turn until the block ends."""
        async with self._here.held(urgency):
            if self._path is None:
                yield
                return
            loop = asyncio.get_running_loop()
            # The others only look now and then, and would never find the file free.
            await asyncio.sleep(self._others_until - loop.time())
            with self._path.open("ab") as file:
                while not try_lock(file):
                    await asyncio.sleep(_LOOK_S)
                try:
                    yield
                finally:
                    self._others_until = loop.time() + 2 * _LOOK_S


def _stop(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _begin(begin: Callable[[], None]) -> None:
    die_with_first_process(ignoring_ctrl_c=True)
    # Pebble's own handler runs in Python, so only after the decoder; it would wait 3 s for that.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which :func:`_limited` relies on
    begin()


def _limited(
    cpu_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> tuple[T, float]:
    """What it returns, and the CPU seconds of this process that it took.

    The kernel ends this process when that has taken it ``cpu_s``.

    A handler in Python would not run before the decoder returns.
    """
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        return function(*args, **kwargs), time.process_time() - started
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _begin_making(options: DownloadOptions) -> None:
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
