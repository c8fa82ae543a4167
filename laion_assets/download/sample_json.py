"""The ``.json`` of a sample in a shard's tar.

It has the row's columns under their names, each in the same type in every sample: readers such as
``datasets`` take the types from the first samples, and fail at a later one that has a text or a
list where those had null. Types follow from the columns alone, never from the values:

* what is missing in a text is ``""``;
* the numbers of :data:`~laion_assets.schemas.IMAGES` are numbers, which no stored image lacks;
* any other value (lists, structs, numbers that a list of images brings along) is JSON in a text, as
  img2dataset's ``exif`` is, and what is missing is ``""``;
* ``error_message`` and ``reason`` are null, as img2dataset has it: a stored image has none.

The parquet beside the tar has all values in their own types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import pyarrow as pa

from laion_assets.schemas import IMAGES

VERSION: Final = 1
"""Raised when a row gives another text than before: its shard is then written again."""

_OF_FAILURES: Final = ("error_message", "reason")


class SampleJson:
    """Makes the JSON text of rows of ``schema``, a shard's."""

    def __init__(self, schema: pa.Schema) -> None:
        self._forms = [(field.name, _form(field)) for field in schema]

    def __call__(self, row: Mapping[str, Any]) -> str:
        """The text for a row that has the schema's columns; strict JSON, as RFC 8259 defines it."""
        about = {name: form(row[name]) for name, form in self._forms}
        return json.dumps(about, indent=4, allow_nan=False)


def _form(field: pa.Field) -> Callable[[Any], object]:
    if field.name in _OF_FAILURES:
        return _plain
    if _is_text(field.type):
        return _text
    known = IMAGES.field(field.name).type if field.name in IMAGES.names else None
    return _plain if known and _is_number(known) and _is_number(field.type) else _json_text


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _text(value: str | None) -> str:
    return "" if value is None else value


def _json_text(value: object) -> str:
    plain = _plain(value)
    return "" if plain is None else json.dumps(plain, allow_nan=False)


def _plain(value: object) -> object:
    """The value as JSON can hold it: bytes in hexadecimal, times and decimals as text, and null for
    numbers that are none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value)
