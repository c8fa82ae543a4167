"""Several processes that fetch, as one: each URL goes to the process that its host belongs to.

What does not belong here: what such a process does (:mod:`.fetch_process`).
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

from laion_assets.download.addresses import Resolve
from laion_assets.download.calls import Calls
from laion_assets.download.fetch import Attempt
from laion_assets.download.fetch_process import (
    Begin,
    ForgetFailures,
    Setup,
    State,
    owner_of,
    work,
)
from laion_assets.download.requester import host_in
from laion_assets.download.rows import Row, Wanted
from laion_assets.download.rules import Rules
from laion_assets.errors import TransientError
from laion_assets.work import PRELOADED, forked_from_server

_END_S: Final = 10.0
"""Time for the processes to end by themselves."""


class FetchProcessError(TransientError, RuntimeError):
    """A process that fetches has died."""


@dataclass
class _Process:
    number: int
    process: ForkServerProcess
    calls: Calls


class FetchPool:
    """``fetch_processes`` processes; makes rows, as :class:`.rows.Rows` says.

    ``scratch``: an own folder, in which the images lie. ``resolve``: picklable.
    """

    def __init__(self, rules: Rules, scratch: Path, resolve: Resolve) -> None:
        self._setup = Setup(rules.options, rules.lists, resolve, scratch)
        self._processes: list[_Process] = []
        self._attending: list[asyncio.Task[None]] = []

    @property
    def answers(self) -> int:
        return sum(state.answers for state in self._states())

    @property
    def has_free_slot(self) -> bool:
        """Whether a process has one, as far as is known."""
        return any(state.free_slot for state in self._states())

    async def __aenter__(self) -> FetchPool:
        try:
            self._setup.write()
            for number in range(self._setup.options.fetch_processes):
                self._processes.append(self._start(number))
            self._attending = [asyncio.create_task(self._attend(each)) for each in self._processes]
            await asyncio.gather(*(each.calls.call(Begin()) for each in self._processes))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._attending:
            task.cancel()
        await asyncio.gather(*self._attending, return_exceptions=True)
        for each in self._processes:
            each.calls.close()  # at which the process ends
        deadline = time.monotonic() + _END_S
        for each in self._processes:
            left = max(0.0, deadline - time.monotonic())
            await asyncio.to_thread(each.process.join, left)
        for each in self._processes:
            each.process.kill()
        for each in self._processes:
            each.process.join()

    async def make(self, wanted: Wanted) -> Row:
        row: Row = await self._of(wanted.url).call(wanted)
        return row

    async def forget_failures(self) -> None:
        await asyncio.gather(*(each.calls.call(ForgetFailures()) for each in self._processes))

    def _states(self) -> list[State]:
        states = (each.calls.other for each in self._processes)
        return [state for state in states if state is not None]

    def _of(self, url: str) -> Calls:
        """The calls to the process that a URL's host belongs to."""
        return self._processes[owner_of(host_in(url), len(self._processes))].calls

    async def _finish(self, attempt: Attempt) -> Any:
        """Have the process of an attempt's host finish it."""
        return await self._of(attempt.url).call(attempt)

    def _start(self, number: int) -> _Process:
        context = forked_from_server(PRELOADED)
        ours, theirs = socket.socketpair()
        with theirs:
            process = context.Process(
                target=work, args=(number, theirs, self._setup.scratch), name=f"fetch-{number}"
            )
            try:
                process.start()
            except BaseException:
                ours.close()
                raise
        return _Process(number, process, Calls(ours, self._finish))

    async def _attend(self, each: _Process) -> None:
        """Take what a process sends; if it ends, fail what waits for it."""
        try:
            await each.calls.run()
        except Exception as error:  # noqa: BLE001 - those who wait raise it
            each.calls.fail(error)
            return
        await asyncio.to_thread(each.process.join, _END_S)
        code = each.process.exitcode
        killed = " (killed, often for lack of memory)" if code == -signal.SIGKILL else ""
        each.calls.fail(
            FetchProcessError(
                f"fetching process {each.number + 1} of {len(self._processes)} has died with exit "
                f"code {code}{killed}. Nothing is published; finished shards are kept, and the "
                "next run makes the others"
            )
        )
