"""Parts of a batch on the cores of a CPU, each computed by one core alone.

torch's own way is to divide each operation among all cores, which then wait for the slowest of
them, some hundred times a batch: twice as long if another process takes a core for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Cores:
    """Threads that a network's parts of a batch are computed in, one for each of torch's."""

    def __init__(self) -> None:
        import torch

        self.n = torch.get_num_threads()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.n, thread_name_prefix="core")

    def each(
        self,
        compute: Callable[[torch.Tensor], torch.Tensor],
        parts: Sequence[torch.Tensor],
    ) -> list[torch.Tensor]:
        """What ``compute`` gives for each part; a single one has all cores, as torch divides it.

        Modes of the calling thread, such as inference mode, are not those of the others.
        """
        import torch

        if len(parts) == 1 or self.n == 1:
            return [compute(part) for part in parts]
        # A thread takes over the number at its first operation; MKL asks for it at each.
        torch.set_num_threads(1)
        try:
            return list(self._pool.map(compute, parts))
        finally:
            torch.set_num_threads(self.n)
