"""The exception by which the service refuses a request."""

from __future__ import annotations


class RequestRefusedError(Exception):
    """A request is refused.

    ``status`` is the HTTP status, ``reason`` a short name that the metrics count, and ``detail`` a
    message for people.
    """

    def __init__(
        self, status: int, reason: str, detail: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
