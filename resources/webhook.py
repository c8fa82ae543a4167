"""Failed runs to any webhook.

The webhook gets one JSON object by POST, the fields of :class:`~resources.notifier.Notice`, with
the run's id as `Idempotency-Key`: whoever takes it twice, after an answer that was lost, can know.
"""

from __future__ import annotations

from typing import Final

import urllib3

from resources.notifier import Notice, NoticeError, Notifier

_PASSING: Final = (408, 429, 500, 502, 503, 504)
_TIMEOUT_S: Final = 5.0
_TRIES: Final = 3
_BACK_OFF_S: Final = 0.2


class WebhookNotifier(Notifier):
    """Anything that takes a JSON object by POST."""

    url: str
    token: str = ""

    def tell(self, notice: Notice) -> None:
        post(self.url, notice, self.token)


def post(url: str, notice: Notice, token: str = "") -> None:
    """Deliver a notice. Raises :class:`NoticeError` unless the answer is a 2xx."""
    # A secret that was read from a file ends with a line's end.
    url, token = url.strip(), token.strip()
    headers = {"Content-Type": "application/json", "Idempotency-Key": notice.run_id}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    retries = urllib3.Retry(
        total=_TRIES - 1,
        redirect=False,
        status_forcelist=_PASSING,
        allowed_methods=["POST"],
        backoff_factor=_BACK_OFF_S,
        backoff_jitter=_BACK_OFF_S,
        # A sensor's tick has no hours to wait; the next ticks try again.
        respect_retry_after_header=False,
        raise_on_status=False,
    )
    try:
        answer = urllib3.request(
            "POST",
            url,
            body=notice.model_dump_json().encode(),
            headers=headers,
            retries=retries,
            timeout=_TIMEOUT_S,
        )
    except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
        # Its own message has the URL, which is a secret with many services, or a header.
        cause = getattr(error, "reason", None) or error
        raise NoticeError(f"no answer: {type(cause).__name__}") from None
    if not 200 <= answer.status < 300:
        raise NoticeError(f"answered {answer.status}")
