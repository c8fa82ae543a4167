"""Which failures of an asset may pass, and are tried again by its retry policy."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Final, ParamSpec, TypeVar

import dagster as dg

from laion_assets.crawl.source import CrawlSourceError, NoSuchSegmentError
from laion_assets.defs.publishing import InputsChangedError
from laion_assets.download.decoders import DecodersError
from laion_assets.download.segment import NoNetworkError
from laion_assets.files import LockedError, causes, lasts
from laion_assets.lake import ChangedError, PartitionBusyError, UnavailableError
from laion_assets.pairs.segment import SegmentError

P = ParamSpec("P")
R = TypeVar("R")

_PASSING: Final = (
    BrokenProcessPool,
    ChangedError,
    ConnectionError,
    CrawlSourceError,
    DecodersError,
    InputsChangedError,
    LockedError,
    NoNetworkError,
    PartitionBusyError,
    SegmentError,
    TimeoutError,
    UnavailableError,
)
_LASTING: Final = (NoSuchSegmentError,)
_PASSING_ERRNOS: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EIO,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENOLCK,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Of a mounted store that stutters."""


def may_pass(error: BaseException) -> bool:
    """Whether the same work may succeed a little later: the network, another process, a worker
    that was killed; not a wrong setting, a damaged file, a full disk or a check that failed.

    What lasts decides wherever it is in the chain: a passing kind of error may have it as cause.
    """
    chain = list(causes(error))
    return any(map(_passes, chain)) and not any(map(_lasts, chain))


def _lasts(error: BaseException) -> bool:
    lasting = isinstance(error, SegmentError) and error.lasting
    return lasting or isinstance(error, _LASTING) or lasts(error)


def _passes(error: BaseException) -> bool:
    return isinstance(error, _PASSING) or (
        isinstance(error, OSError) and error.errno in _PASSING_ERRNOS
    )


def tried_again(asset: Callable[P, R]) -> Callable[P, R]:
    """Have the asset's retry policy try only what may pass: all else becomes a
    ``dagster.Failure`` that forbids it, with the error as its cause."""

    @functools.wraps(asset)
    def judged(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return asset(*args, **kwargs)
        except (dg.Failure, dg.RetryRequested):
            raise
        except Exception as error:
            if may_pass(error):
                raise
            raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=False) from error

    return judged
