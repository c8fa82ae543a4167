"""What has been read of files, kept within a bound of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar, cast


class Sized(Protocol):
    """Something that knows how much memory it takes."""

    @property
    def nbytes(self) -> int: ...


V = TypeVar("V", bound=Sized)


class ByteCache:
    """The most recently used values, up to ``limit`` bytes and ``most`` of them; safe to share
    between threads.

    Two threads that miss the same key both load it: a load is a few milliseconds, and neither
    waits for a lock meanwhile.
    """

    def __init__(self, limit: int, most: int) -> None:
        self._limit = limit
        self._most = most
        self._held = 0
        self._values: OrderedDict[Hashable, Sized] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], V]) -> V:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
                return cast("V", value)  # what `load` gave for this key
        loaded = load()
        with self._lock:
            if key not in self._values:
                self._values[key] = loaded
                self._held += loaded.nbytes
            while len(self._values) > 1 and (
                self._held > self._limit or len(self._values) > self._most
            ):
                _, dropped = self._values.popitem(last=False)
                self._held -= dropped.nbytes
        return loaded
