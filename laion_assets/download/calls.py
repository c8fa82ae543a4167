"""Calls between two processes over a socket: both ways, and any number at a time.

What is sent within a fiftieth of a second goes together, as one pickle, because each message wakes
the other process. What cannot be pickled fails alone. Nobody waits to send: two processes that
each wait until the other reads would wait for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import socket
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

from laion_assets.download.errors import Refused

_SIZE_BYTES: Final = 8
_BUFFER: Final = 1 << 20
_TOGETHER_S: Final = 0.02

_CALL: Final = 0
_RESULT: Final = 1
_ERROR: Final = 2


class Calls:
    """One end of a connected pair of sockets; the other end belongs to a process of ours.

    ``do`` does what the other end calls for; its result or error goes back. What ``state`` returns
    goes along with each message. All of it is pickled.
    """

    def __init__(
        self,
        sock: socket.socket,
        do: Callable[[Any], Awaitable[Any]],
        state: Callable[[], Any] = lambda: None,
    ) -> None:
        self._socket, self._do, self._state = sock, do, state
        self._writer: asyncio.StreamWriter | None = None
        self._outbox: list[tuple[int, int, bytes]] = []
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._at_work: set[asyncio.Task[None]] = set()
        self._failed: Exception | None = None
        self._closed = False
        self.other: Any = None
        """What the other end's ``state`` returned last; None before its first message."""

    async def run(self) -> None:
        """Take messages until the other end closes its socket or dies; then cancel its calls."""
        reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=_BUFFER)
        self._flush()
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(_SIZE_BYTES), "big")
                batch = pickle.loads(await reader.readexactly(size))  # noqa: S301 - our own process's
                self._take(*batch)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.close()
            for task in self._at_work:
                task.cancel()
            await asyncio.gather(*self._at_work, return_exceptions=True)

    async def call(self, work: Any) -> Any:
        """What the other end's ``do`` makes of the work; raises what that raises, or pickling."""
        if self._failed is not None:
            raise self._failed
        content = pickle.dumps(work)
        number = next(self._numbers)
        self._open[number] = asyncio.get_running_loop().create_future()
        self._send(_CALL, number, content)
        try:
            return await self._open[number]
        finally:
            del self._open[number]

    def close(self) -> None:
        """Close the socket, at which the other end's :meth:`run` returns."""
        self._closed = True
        if self._writer is None:
            self._socket.close()
        else:
            self._writer.transport.abort()  # nobody reads what is left

    def fail(self, error: Exception) -> None:
        """Fail all calls with this error, those to come, too."""
        self._failed = error
        for future in self._open.values():
            if not future.done():
                future.set_exception(error)

    def _take(self, state: Any, messages: list[tuple[int, int, bytes]]) -> None:
        self.other = state
        for kind, number, content in messages:
            if kind == _CALL:
                task = asyncio.create_task(self._answer(number, content))
                self._at_work.add(task)
                task.add_done_callback(self._at_work.discard)
                continue
            future = self._open.get(number)
            if future is None or future.done():
                continue  # nobody waits for it any longer
            try:
                value = pickle.loads(content)  # noqa: S301 - our own process's
            except Exception as error:  # noqa: BLE001 - who waits for it raises it
                future.set_exception(error)
                continue
            if kind == _RESULT:
                future.set_result(value)
            else:
                future.set_exception(value)

    async def _answer(self, number: int, content: bytes) -> None:
        try:
            work = pickle.loads(content)  # noqa: S301 - our own process's
            result = pickle.dumps(await self._do(work))
        except asyncio.CancelledError:
            # Whoever ended this work: the caller must not wait for ever.
            self._send(_ERROR, number, pickle.dumps(RuntimeError("the work was cancelled")))
            raise
        except Exception as error:  # noqa: BLE001 - the caller gets it
            self._send(_ERROR, number, pickle.dumps(_portable(error)))
        else:
            self._send(_RESULT, number, result)

    def _send(self, kind: int, number: int, content: bytes) -> None:
        if self._closed:
            return
        if not self._outbox:
            asyncio.get_running_loop().call_later(_TOGETHER_S, self._flush)
        self._outbox.append((kind, number, content))

    def _flush(self) -> None:
        if self._closed or self._writer is None or not self._outbox:
            return
        batch = pickle.dumps((self._state(), self._outbox))
        self._outbox = []
        self._writer.write(len(batch).to_bytes(_SIZE_BYTES, "big") + batch)


def _portable(error: Exception) -> Exception:
    """The error as another process can raise it.

    An error of ours says in a note where it was raised first; a refusal is ordinary work.
    """
    copy: Exception
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled here
    except Exception:  # noqa: BLE001 - a library's error may not bear pickling
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    # One note, or it would hold the earlier ones and grow with each process that it passes.
    if not isinstance(error, Refused) and not hasattr(error, "__notes__"):
        copy.add_note("".join(traceback.format_exception(error)))
    return copy
