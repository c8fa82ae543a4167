"""Refusals of images, with their reasons from the funnel's vocabulary."""

from __future__ import annotations

import copyreg
from typing import Any, Final

from laion_assets.funnel import REASONS

_DETAIL_CHARS: Final = 300

ON_A_LIST: Final = "the URL or its host is on a list"

TRANSIENT: Final = frozenset(
    {"dns", "connect", "timeout", "http_5xx", "busy", "host_down", "decoder_failed"}
)
"""Reasons that may no longer apply another day."""

NETWORK: Final = frozenset({"dns", "connect", "timeout", "host_down"})
"""Reasons that a machine without network gives."""


class Refused(Exception):  # noqa: N818 - an outcome of ordinary work, not an error of ours
    """An image is not taken.

    ``reason`` is one of ``funnel.REASONS["images"]``; ``detail`` says more, for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS["images"]:
            raise KeyError(f"{reason!r} is not a reason of the stage images")
        self.reason = reason
        # A header may hold bytes that are not text, which aiohttp keeps as surrogates.
        text = detail.encode("utf-8", "replace").decode("utf-8")
        self.detail = " ".join(text.split())[:_DETAIL_CHARS]
        super().__init__(f"{reason}: {self.detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        # By its text and attributes, whatever a subclass's arguments are.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class FetchRefused(Refused):
    """No body came, or the URL was not fetched."""

    asked = True
    """Whether a request was made or tried."""
    redirects: tuple[str, ...] = ()
    """The redirects to the refused URL, itself the last, if they are known."""


class HostBusy(FetchRefused):
    """The host answered 429 or 503; ``wait_s`` is its Retry-After in seconds, or None."""

    def __init__(self, detail: str, wait_s: float | None) -> None:
        self.wait_s = wait_s
        super().__init__("busy", detail)


class ImageRefused(Refused):
    """A body came that is not stored."""
