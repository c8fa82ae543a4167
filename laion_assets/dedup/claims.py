"""Claims of any keys: a ledger like that of the uids, for what is held in memory.

Sorted runs, their merging, settling and rebuilding are those of the uids' ledger. Here a segment
looks up what others have claimed under the lock, and decides itself which keys to claim, each with
64 bits of its own. What does not belong here: the claims of (URL, TEXT) (:mod:`.ledger`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laion_assets.dedup.filter import marks
from laion_assets.dedup.runs import Columns, OpenRun, SortedRunWriter
from laion_assets.dedup.state import Owner, Pending, State, open_runs, save, telling
from laion_assets.dedup.upkeep import CLAIMS, HeldBy, merge_due, opened, published_digest
from laion_assets.files import write_json
from laion_assets.layout import SegmentKey

logger = logging.getLogger(__name__)


class KeyClaims:
    """One segment's access to a ledger of keys; :func:`claiming_keys` yields it.

    The ledger is locked from the first :meth:`find` or :meth:`write` on until the block of
    :func:`claiming_keys` ends.
    """

    def __init__(
        self, ledger: Path, partitions: Path, key: SegmentKey, held_by: HeldBy, lock: ExitStack
    ) -> None:
        self._ledger, self._partitions, self._key = ledger, partitions, str(key)
        self._held_by, self._lock = held_by, lock
        self.state: State | None = None
        self._runs: list[OpenRun] = []
        self._segments: dict[int, str] = {}

    def _opened(self) -> State:
        if self.state is None:
            self.state = self._lock.enter_context(
                opened(self._ledger, self._partitions, self._held_by)
            )
            self._runs = self._lock.enter_context(open_runs(self._ledger, self.state.runs))
        return self.state

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], Columns]:
        """The claims of other segments: index of the key that each is of, and the claims.

        ``keys``: (n,) sorted. Raises :class:`~laion_assets.dedup.state.LedgerError`.
        """
        state, marked = self._opened(), marks(keys)
        counts = state.counts(but=self._key)
        indices, found = [np.zeros(0, np.int64)], [_NO_CLAIMS]
        with telling(self._ledger):
            for run in self._runs:
                index, claims = run.find(keys, marked)
                counting = np.flatnonzero(counts[claims.owner])
                indices.append(index[counting])
                found.append(claims.take(counting))
        joined = Columns(*(np.concatenate(column) for column in zip(*found, strict=True)))
        return np.concatenate(indices), joined

    @property
    def number(self) -> int | None:
        """The segment's own owner number, of its claims that count; None if it has none."""
        owner = self._opened().owners.get(self._key)
        return owner.number if owner else None

    def segment_of(self, owner: int) -> SegmentKey:
        """The segment that has an owner number of :meth:`find`."""
        if not self._segments:
            self._segments = {of.number: key for key, of in self._opened().owners.items()}
        return SegmentKey.parse(self._segments[owner])

    def write(self, out: Path, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> None:
        """Note the segment's claims as pending, and their digest in ``out``.

        ``high``, ``low``: (n,) each, keys and what goes with them, sorted by key. They replace all
        that the segment had claimed. If that is the same, nothing is pending.
        """
        state = self._opened()
        claims = np.stack([high, low], axis=1).astype(">u8").tobytes()
        digest = hashlib.blake2b(claims, digest_size=16).hexdigest()
        write_json(out / CLAIMS, {"digest": digest, "claims": len(high)})
        published = self._partitions / SegmentKey.parse(self._key).hive
        if self._key in state.owners and published_digest(published) == digest:
            return  # The claims that count are the same: a second copy would only make void ones.
        number = state.new_number()
        with SortedRunWriter(self._ledger, number, 0, len(high)) as writer:
            writer.write(Columns(high, low, np.full(len(high), number, np.uint32)))
        run = writer.run()
        state.pending = Pending(self._key, Owner(number, run.rows), run, digest)
        save(self._ledger, state)


@contextmanager
def claiming_keys(
    ledger: Path, partitions: Path, key: SegmentKey, held_by: HeldBy
) -> Iterator[KeyClaims]:
    """Claim keys for a segment, and have them count if its partition is published.

    As :func:`laion_assets.dedup.ledger.claiming` does, but void claims do not stay: they are made
    of images' content, which may have been removed. ``held_by``: reads a partition's claims, if the
    ledger is lost.
    """
    with ExitStack() as lock:
        claims = KeyClaims(ledger, partitions, key, held_by, lock)
        yield claims
        state = claims.state
        if state is not None and state.pending is not None:
            state.confirm(state.pending)
            save(ledger, state)
    merge_due(ledger, keep_void=False)


_NONE: NDArray[Any] = np.zeros(0, np.uint64)
_NO_CLAIMS = Columns(_NONE, _NONE, np.zeros(0, np.uint32))
