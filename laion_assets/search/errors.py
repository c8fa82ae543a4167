"""What the service does not do for a request, and says so."""

from __future__ import annotations


class RequestRefusedError(Exception):
    """``status`` is HTTP's; ``reason`` a short name that is counted; ``detail`` is for people."""

    def __init__(
        self, status: int, reason: str, detail: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
