"""One of several processes that fetch, each from hosts of its own.

A host belongs to one process, by a hash of its name, so its limits, its robots.txt and its waits
hold over all of them. Where a redirect leads to another process's host, that process finishes the
attempt. What does not belong here: starting and asking these processes (:mod:`.fetch_pool`).
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import pickle
import socket
import sys
import traceback
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from laion_assets.download.addresses import DNS_THREADS, Resolve
from laion_assets.download.calls import Calls
from laion_assets.download.decoders import ImageMakers
from laion_assets.download.fetch import Attempt, Fetcher
from laion_assets.download.options import DownloadOptions, share_of
from laion_assets.download.requester import Fetched
from laion_assets.download.rows import Row, RowMaker, Wanted
from laion_assets.download.rules import Rules
from laion_assets.download.shards import Place, gathered_in
from laion_assets.files import link_or_copy
from laion_assets.removals.active import Lists
from laion_assets.work import die_with_first_process

_SETUP: Final = "setup"
_LARGE: Final = "large.lock"


@dataclass(frozen=True)
class Begin:
    """The first call; it returns when the process is ready to fetch."""


@dataclass(frozen=True)
class ForgetFailures:
    """A call to give names and hosts that failed another chance."""


class State(NamedTuple):
    """What is known of a process: whether a slot is free, and how many answers have come."""

    free_slot: bool
    answers: int


@dataclass(frozen=True)
class Setup:
    """What all processes need; ``scratch`` is an own folder."""

    options: DownloadOptions
    lists: Lists
    resolve: Resolve
    scratch: Path

    def write(self) -> None:
        """Write the setup into the scratch folder, long lists apart, for all to map once.

        Compiled lists are linked, where the file system can. Raises what pickling raises.
        """
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(self, protocol=5, buffer_callback=buffers.append)
        files = _files_by_address(self.lists)
        for i, buffer in enumerate(buffers):
            target, held = self.scratch / f"{_SETUP}-{i}", buffer.raw()
            try:
                link_or_copy(files[_address(held)], target)
            except (KeyError, FileNotFoundError):
                # It has no file, or another version of the lists was compiled meanwhile.
                target.write_bytes(held)
        (self.scratch / _SETUP).write_bytes(pickle.dumps((pickled, len(buffers))))

    @staticmethod
    def read(scratch: Path) -> Setup:
        """The setup that :meth:`write` has written."""
        pickled, buffers = pickle.loads((scratch / _SETUP).read_bytes())  # noqa: S301 - our own
        mapped = [_mapped(scratch / f"{_SETUP}-{i}") for i in range(buffers)]
        setup: Setup = pickle.loads(pickled, buffers=mapped)  # noqa: S301 - our own
        return setup


def _files_by_address(lists: Lists) -> dict[int | None, Path]:
    """The files of compiled lists by the addresses that they are mapped to."""
    return {
        _address(words.data): path
        for _, entries in lists.each()
        for columns in entries.columns.values()
        for column in columns
        for words, path in zip((column.head, column.tail), column.files, strict=False)
        if words.size
    }


def _address(memory: memoryview) -> int | None:
    return np.frombuffer(memory, np.uint8).ctypes.data if memory.nbytes else None


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def owner_of(host: str, processes: int) -> int:
    """The number of the process that a host belongs to, the same in every run."""
    digest = hashlib.blake2b(host.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % processes


def work(number: int, sock: socket.socket, scratch: Path) -> None:
    """Work as the process of this number until the other end of ``sock`` is closed; then exit."""
    die_with_first_process(ignoring_ctrl_c=True)
    code = 0
    try:
        asyncio.run(_Work(number, sock, Setup.read(scratch)).run())
    except BaseException:  # noqa: BLE001 - the process ends with it
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python would wait for look-ups of names that nobody needs any longer


class _Work:
    def __init__(self, number: int, sock: socket.socket, setup: Setup) -> None:
        self._number, self._setup = number, setup
        self._calls = Calls(sock, self._do, self._state)
        self._entered = AsyncExitStack()
        self._ready = False
        self._options = setup.options.share(number)
        self._rules = Rules(self._options, setup.lists)
        self._fetcher = Fetcher(
            self._options,
            resolve=setup.resolve,
            listed=self._rules.listed,
            others=self,
            dns_threads=share_of(DNS_THREADS, number, self._options.fetch_processes),
        )

    async def run(self) -> None:
        async with self._entered:
            await self._calls.run()

    def have(self, host: str) -> bool:
        return owner_of(host, self._options.fetch_processes) != self._number

    async def finish(self, attempt: Attempt) -> Any:
        return await self._calls.call(attempt)

    async def _do(self, work: Begin | ForgetFailures | Wanted | Attempt) -> Row | Fetched | None:
        match work:
            case Begin():
                await self._begin()
            case ForgetFailures():
                await self._maker.forget_failures()
            case Wanted():
                return self._stored(await self._maker.make(work), work.shard)
            case Attempt():
                made = await self._maker.finish(work)
                return made if isinstance(made, Fetched) else self._stored(made, work.job.shard)
        return None

    async def _begin(self) -> None:
        scratch = self._setup.scratch / f"process-{self._number}"
        scratch.mkdir()
        decoders = self._entered.enter_context(
            ImageMakers(self._options, scratch, self._setup.scratch / _LARGE)
        )
        self._maker = RowMaker(self._rules, self._fetcher, decoders)
        await self._entered.enter_async_context(self._maker)
        self._ready = True

    def _stored(self, row: Row, shard: int) -> Row:
        """The row with the place of its image, which goes to a file."""
        if not isinstance(row.image, bytes):
            return row
        path = gathered_in(self._setup.scratch, shard, self._number + 1)
        with path.open("ab") as file:
            place = Place(path.name, file.tell(), len(row.image))
            file.write(row.image)
        return replace(row, image=place)

    def _state(self) -> State:
        if not self._ready:
            return State(free_slot=False, answers=0)
        return State(self._fetcher.has_free_slot, self._fetcher.answers)
