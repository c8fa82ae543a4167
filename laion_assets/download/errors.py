"""An image that is not taken, with its reason from the funnel's vocabulary."""

from __future__ import annotations

from laion_assets.funnel import REASONS

_DETAIL_CHARS = 300

ON_A_LIST = "the URL or its host is on a list"


class Refused(Exception):  # noqa: N818 - an outcome of ordinary work, not an error of ours
    """``reason`` is one of ``funnel.REASONS["images"]``; ``detail`` says more, for people."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS["images"]:
            raise KeyError(f"{reason!r} is not a reason of the stage images")
        self.reason = reason
        # A header may hold bytes that are no text, which aiohttp keeps as surrogates.
        text = detail.encode("utf-8", "replace").decode("utf-8")
        self.detail = " ".join(text.split())[:_DETAIL_CHARS]
        super().__init__(f"{reason}: {self.detail}")


class FetchRefused(Refused):
    """No body came, or none was asked for."""

    asked = True
    """Whether a request was made, or tried."""
    redirects: tuple[str, ...] = ()
    """Those that led to the URL that was refused, where that is known; it is the last."""


class HostBusy(FetchRefused):
    """The host answered 429 or 503; ``wait_s`` is its Retry-After, None if it names none."""

    def __init__(self, detail: str, wait_s: float | None) -> None:
        self.wait_s = wait_s
        super().__init__("busy", detail)


class ImageRefused(Refused):
    """A body came, but it is not an image to store."""
