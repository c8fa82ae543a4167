"""Which sorted runs a ledger has, and which segment has which owner number: ``ledger.json``.

Replacing that file is the one step that makes, replaces or releases claims. What does not belong
here: when that is done.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laion_assets.dedup.pages import DamagedError
from laion_assets.dedup.runs import OpenRun, SortedRun
from laion_assets.files import write_text

STATE: Final = "ledger.json"
_CHECK: Final = "blake2b"
_EARLIER: Final = {"next_number", "owners", "pending", "runs"}
"""What the file had when runs had no checksums."""


class LedgerError(RuntimeError):
    """The ledger cannot be read, or is damaged; the message says what to do. What caused it decides
    whether a retry may help."""


class Owner(NamedTuple):
    number: int
    rows: int


class Pending(NamedTuple):
    """Claims that count if the partition with this digest is published."""

    key: str
    owner: Owner
    run: SortedRun
    digest: str


class EarlierRun(NamedTuple):
    """A sorted run in three columns without checksums, as earlier versions wrote them."""

    name: str
    level: int
    rows: int


@dataclass
class State:
    """Contents of ``ledger.json``. Segments are named by their keys' ``str``."""

    owners: dict[str, Owner] = field(default_factory=dict)
    runs: list[SortedRun] = field(default_factory=list)
    pending: Pending | None = None
    next_number: int = 0
    """Owner numbers are given in the order in which claims come to count, and never again."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Another one for a ledger that was rebuilt."""
    earlier: list[EarlierRun] = field(default_factory=list)
    """The runs and, last, the pending one, if an earlier version has written them."""

    def counts(self, but: str | None = None) -> NDArray[np.bool_]:
        """(next_number,) bool: whether an owner's claims count; those of ``but`` do not."""
        counts = np.zeros(self.next_number, dtype=np.bool_)
        numbers = [owner.number for key, owner in self.owners.items() if key != but]
        counts[np.array(numbers, dtype=np.int64)] = True
        return counts

    def new_number(self) -> int:
        self.next_number += 1
        return self.next_number - 1

    @property
    def newest(self) -> int:
        """Runs with a larger :attr:`SortedRun.newest` hold claims that are not in this state."""
        return max((run.newest for run in self.runs), default=-1)

    def confirm(self, pending: Pending) -> None:
        """Make pending claims count."""
        self.owners[pending.key] = pending.owner
        self.runs.append(pending.run)
        self.pending = None

    def replace(self, merged: Sequence[SortedRun], run: SortedRun) -> None:
        """Use a run in the place of those that it was merged of."""
        self.runs = [run, *(other for other in self.runs if other not in merged)]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "next_number": self.next_number,
            "owners": self.owners,
            "runs": self.runs,
            "pending": self.pending,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> State:
        pending = None
        if value["pending"]:
            key, owner, run, digest = value["pending"]
            pending = Pending(key, Owner(*owner), SortedRun(*run), digest)
        owners = {key: Owner(*owner) for key, owner in value["owners"].items()}
        runs = [SortedRun(*run) for run in value["runs"]]
        return cls(owners, runs, pending, value["next_number"], value["id"])

    @classmethod
    def from_earlier(cls, value: dict[str, Any]) -> State:
        """What an earlier version wrote; a pending run's place is empty."""
        earlier, pending = [EarlierRun(*run) for run in value["runs"]], None
        if value["pending"]:
            (crawl, segment, *owner), run, digest = value["pending"]
            earlier.append(EarlierRun(*run))
            pending = Pending(f"{crawl}|{segment}", Owner(*owner), SortedRun(0, 0, 0, 0), digest)
        owners = {f"{crawl}|{segment}": Owner(*owner) for crawl, segment, *owner in value["owners"]}
        return cls(owners, [], pending, value["next_number"], earlier=earlier)


def load(ledger: Path) -> State:
    """Read the state; that of a ledger which does not exist is empty.

    Raises :class:`LedgerError` if it is damaged.
    """
    path = ledger / STATE
    if not path.exists():
        return State()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if set(value) == _EARLIER:
            return State.from_earlier(value)
        if value.pop(_CHECK) != _digest(value):
            raise ValueError("not what was written")
        return State.from_json(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LedgerError(damaged(ledger, f"{STATE}: {error}")) from error


def save(ledger: Path, state: State) -> None:
    value = state.to_json()
    write_text(ledger / STATE, json.dumps(value | {_CHECK: _digest(value)}) + "\n")


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def damaged(ledger: Path, what: str) -> str:
    return (
        f"the ledger is damaged ({what}): delete {ledger}, and the next run rebuilds it. If the "
        "lake is in an object store, it is fetched again; if it is damaged there, too, delete "
        f"_index/{ledger.name}.json in the store"
    )


@contextmanager
def telling(ledger: Path) -> Iterator[None]:
    """Say what to do about a damaged file."""
    try:
        yield
    except DamagedError as error:
        raise LedgerError(damaged(ledger, str(error))) from error


@contextmanager
def open_runs(ledger: Path, runs: Sequence[SortedRun]) -> Iterator[list[OpenRun]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(OpenRun(ledger, run))) for run in runs]


@contextmanager
def snapshot(ledger: Path) -> Iterator[tuple[State, list[OpenRun]]]:
    """The state as it is now, and its runs, opened: without a lock, and whatever others do.

    Raises :class:`LedgerError` if a file is missing or damaged.
    """
    with ExitStack() as stack:
        while True:
            state = load(ledger)
            try:
                runs = stack.enter_context(open_runs(ledger, state.runs))
                break
            except FileNotFoundError as error:
                # It has been merged meanwhile, or it is lost.
                if load(ledger).runs == state.runs:
                    raise LedgerError(damaged(ledger, str(error))) from error
        yield state, runs
