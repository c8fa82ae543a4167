"""What a request holds, as the service reads it."""

from __future__ import annotations

import base64

import pytest

from laion_assets.search.api_models import decode_image
from laion_assets.search.errors import RequestRefusedError

BODY = bytes(range(256))
TEXT = base64.b64encode(BODY).decode()
WRAPPED = base64.encodebytes(BODY).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        WRAPPED,
        WRAPPED.replace("\n", "\r\n"),
        f"data:image/png;base64,{WRAPPED}",
        f" {TEXT}\n",
    ],
)
def test_an_image_comes_in_one_line_or_wrapped(text: str) -> None:
    assert decode_image(text, 256) == BODY


@pytest.mark.parametrize(
    ("text", "status"), [("no base64!", 422), ("no äscii", 422), (WRAPPED[:-3], 422), (TEXT, 413)]
)
def test_what_is_no_image_is_refused(text: str, status: int) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        decode_image(text, 255)
    assert refused.value.status == status
