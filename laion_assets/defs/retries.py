"""Which failures of an asset its retry policy tries again: those that may go away by themselves.

Our own errors say so by their base class, :mod:`laion_assets.errors`, and need no mention here. The
errors of Python and the operating system are judged here.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Final, ParamSpec, TypeVar

import dagster as dg

from laion_assets.errors import TransientError
from laion_assets.files import causes, is_permanent

P = ParamSpec("P")
R = TypeVar("R")

_TRANSIENT: Final = (TransientError, BrokenProcessPool, ConnectionError, TimeoutError)
_NETWORK: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT})
_MOUNTED_STORE: Final = frozenset({errno.EAGAIN, errno.EIO, errno.ENOLCK, errno.ESTALE})
"""What a mounted network store raises while it is out of reach."""


def is_transient(error: BaseException) -> bool:
    """Return True if the same work may succeed a little later: after trouble with the network,
    another process or a killed worker. A wrong setting, a damaged file, a full disk and a failed
    check stay until a person acts.

    A permanent error anywhere in the chain of causes decides, even under a transient one.
    """
    chain = list(causes(error))
    return any(map(_is_transient, chain)) and not any(map(is_permanent, chain))


def _is_transient(error: BaseException) -> bool:
    numbers = _NETWORK | _MOUNTED_STORE
    return isinstance(error, _TRANSIENT) or (isinstance(error, OSError) and error.errno in numbers)


def retrying_transient(asset: Callable[P, R]) -> Callable[P, R]:
    """Let the asset's retry policy apply to transient errors only.

    Any other error becomes a ``dagster.Failure`` that forbids retries, with the error as its cause.
    """

    @functools.wraps(asset)
    def judged(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return asset(*args, **kwargs)
        except (dg.Failure, dg.RetryRequested):
            raise
        except Exception as error:
            if is_transient(error):
                raise
            raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=False) from error

    return judged
