"""The index that is being searched, and its replacement by a newer one while the service runs.

A version keeps its own files open, so it stays whole when the lake puts another folder in its
place. A request holds the version that it began with. When the last such request is done, nothing
refers to the old version, and its memory maps and files are closed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from laion_assets.files import Identity, identity
from laion_assets.knn.files import IndexSummary
from laion_assets.knn.samples import SamplePlace
from laion_assets.knn.search import Searcher
from laion_assets.knn.subset import Modality, Subsets
from laion_assets.lake import MANIFEST, Manifest

logger = logging.getLogger(__name__)

_ROW_BITS: Final = 32
_TAG_BITS: Final = 20
"""An id has 52 bits: a browser's numbers are exact up to 53."""
_OPENING_ATTEMPTS: Final = 5
_CHUNK: Final = 2**22
_NOT_WHOLE: Final = (OSError, ValueError, RuntimeError, EOFError, LookupError)
"""What opening a damaged index raises, faiss's and numpy's exceptions among it."""


class IndexUnavailableError(RuntimeError):
    """No index can be searched; the message says why."""


class IndexVersion:
    """One published index, open. Several threads may search it.

    Raises one of :data:`_NOT_WHOLE` for a folder that is not a whole index.
    """

    def __init__(self, index_dir: Path, name: str, subsets: Subsets) -> None:
        self.name = name
        self.tag = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 2**_TAG_BITS
        self._searcher = Searcher(index_dir, subsets)

    @property
    def summary(self) -> IndexSummary:
        return self._searcher.summary

    def nearest(self, vector: npt.ArrayLike, k: int, over: Modality) -> list[tuple[float, int]]:
        """``(score, row)`` of the nearest, best first.

        Raises ``ValueError`` for a vector that the index cannot be searched for.
        """
        query = np.asarray(vector, np.float32)
        scores, rows = self._searcher.nearest(query[None], k, over)
        return [(float(s), int(r)) for s, r in zip(scores[0], rows[0], strict=True) if r >= 0]

    def places(self, rows: Sequence[int]) -> list[SamplePlace]:
        """Places of rows that :meth:`nearest` returned."""
        return self._searcher.places(rows)

    def place(self, row: int) -> SamplePlace | None:
        """Place of a row; None for a row that the index does not have."""
        try:
            return self._searcher.places([row])[0]
        except IndexError:
            return None

    def id_of(self, row: int) -> int:
        """Number of a row of this version; its tag tells it from those of other versions."""
        return self.tag << _ROW_BITS | row

    def row_of(self, number: int) -> int | None:
        """Row of a number of :meth:`id_of`; None for a number of another version."""
        tag, row = number >> _ROW_BITS, number & (2**_ROW_BITS - 1)
        return row if tag == self.tag else None


class LiveIndex:
    """The newest version of an index folder.

    ``accept`` raises ``ValueError`` for a version that must not be served, such as one of another
    model; the previous version then stays. Raises :class:`IndexUnavailableError` if the folder
    holds no index to begin with.
    """

    def __init__(
        self,
        index_dir: Path,
        subsets: Subsets,
        accept: Callable[[IndexVersion], None] = lambda _: None,
    ) -> None:
        self.index_dir = index_dir
        self._subsets = subsets
        self._accept = accept
        self.swaps = 0
        self.damaged: tuple[str, ...] = ()
        """Files of the current version whose content is not what the manifest says."""
        self._verified: Identity | None = None
        self.problem: str | None = None
        """Why the folder's newest version is not the current one."""
        try:
            self._seen, self._current = self._open()
        except _NOT_WHOLE as error:
            raise IndexUnavailableError(f"{index_dir} cannot be searched: {error}") from error

    @property
    def current(self) -> IndexVersion:
        return self._current

    def refresh(self) -> bool:
        """Load what has been published since; return whether the version changed.

        Do not call it from two threads at once.
        """
        try:
            if self._identity() == self._seen:
                self.problem = None
                return False
            seen, version = self._open()
        except _NOT_WHOLE as error:
            problem = f"the new index cannot be served: {error}"
            if problem != self.problem:
                logger.warning(problem)
            self.problem = problem
            return False
        self._seen, self.problem = seen, None
        if version.name == self._current.name:
            return False
        self._current, self.damaged = version, ()
        self.swaps += 1
        logger.info(f"now serving index {version.name}: {version.summary.n:,} samples")
        return True

    def verify(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Compare the current version's files with its manifest, once.

        It takes about two seconds a gigabyte; ``stop`` is asked meanwhile whether to give up.
        """
        seen = self._seen
        if seen == self._verified or not (self.index_dir / MANIFEST).exists():
            return
        damaged = []
        for item in Manifest.read(self.index_dir).files:
            path, content = self.index_dir / item["name"], hashlib.sha256()
            with suppress(FileNotFoundError), path.open("rb") as file:  # copied in part, perhaps
                while (chunk := file.read(_CHUNK)) and not stop():
                    content.update(chunk)
                if content.hexdigest() != item["sha256"]:
                    damaged.append(item["name"])
            if stop() or self._identity() != seen:
                return
        self._verified, self.damaged = seen, tuple(damaged)
        for name in damaged:
            logger.error(f"{self.index_dir / name} is damaged: build the index again")

    def _identity(self) -> Identity:
        manifest = self.index_dir / MANIFEST
        return identity(manifest if manifest.exists() else self.index_dir / "index.json")

    def _open(self) -> tuple[Identity, IndexVersion]:
        for attempt in range(_OPENING_ATTEMPTS):
            seen = self._identity()
            try:
                version = IndexVersion(self.index_dir, self._name(seen), self._subsets)
            except FileNotFoundError:
                # The folder may have been replaced and deleted meanwhile.
                if self._identity() == seen or attempt == _OPENING_ATTEMPTS - 1:
                    raise
                continue
            if self._identity() == seen:
                self._accept(version)
                return seen, version
        raise ValueError("it was replaced each time while it was opened")

    def _name(self, seen: Identity) -> str:
        """Name a version by the published data version and by the content of `index.json`.

        Equal inputs may be indexed in another order or with other options. A folder that was not
        published is named by its files' times.
        """
        about = repr(seen).encode()
        if (self.index_dir / MANIFEST).exists():
            version = Manifest.read(self.index_dir).data_version
            about = version.encode() + (self.index_dir / "index.json").read_bytes()
        return hashlib.sha256(about).hexdigest()[:32]
