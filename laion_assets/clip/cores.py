"""Parts of a batch on the cores of a CPU, each computed by one core alone.

torch's own way is to divide each operation among all cores. They wait for the slowest of them, some
hundred times a batch, and all the longer if another process takes one of them for a while.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

Compute = Callable[["torch.Tensor"], "torch.Tensor"]
_FEWEST: Final = 4
"""Rows of a part. A core reads all weights for each part, and starting its operations takes the
interpreter, which is one for all."""


class Cores:
    """As many threads as torch has where this is made, each of which computes alone."""

    def __init__(self) -> None:
        import torch

        self.n = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    def each(self, compute: Compute, batch: torch.Tensor, most: int) -> list[torch.Tensor]:
        """What ``compute`` gives for parts of a batch, in order, each of at most ``most`` rows.

        If a batch has fewer than four rows for each core, torch divides each operation, and
        computes as many rows at once as there are cores, if these are more. Modes of the calling
        thread, such as inference mode, are not those in which ``compute`` is called.
        """
        import torch

        if self.n == 1 or len(batch) < _FEWEST * self.n:
            return [compute(part) for part in torch.split(batch, max(most, self.n))]
        rounds = -(-len(batch) // (self.n * most))
        return list(self._threads().map(compute, torch.tensor_split(batch, self.n * rounds)))

    def _threads(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._pool is None:
                self._pool = self._start()
            return self._pool

    def _start(self) -> ThreadPoolExecutor:
        import torch

        before, started = torch.get_num_threads(), threading.Barrier(self.n)

        def begin() -> None:
            torch.get_num_threads()  # else the first operation takes over what is set then
            torch.set_num_threads(1)
            started.wait()

        # No thread waits for work before all have begun, so that each call starts one.
        pool = ThreadPoolExecutor(self.n, "core", begin)
        try:
            wait([pool.submit(int) for _ in range(self.n)])
        except BaseException:
            started.abort()
            pool.shutdown()
            raise
        finally:
            torch.set_num_threads(before)
        return pool
