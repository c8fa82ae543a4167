"""The base of all options models, and the mark of the fields that change no result."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, model_validator

MASKED: Final[dict[str, Any]] = {"dagster__is_secret": True}
"""Marks a field whose value Dagster's UI does not show: ``json_schema_extra=MASKED``."""

_SECRET_NAME: Final = re.compile(
    "key|secret|token|passw|pwd|credential|(^|_)sas(_|$)|connection_string|authorization|bearer"
)
_NO_SECRET_NAME: Final = re.compile(r"_(file|path|uri|url|enabled|kms_key_id)$|^skip_|^anon")
_SECRET_VALUE: Final = re.compile(
    r"://[^/?#\s]*@"  # a password in a URL, or a token as its user
    r"|[?&](sig|signature|x-amz-signature|token|access_token|api_?key)="
    r"|\b(AKIA|ASIA)[A-Z0-9]{16}\b|AccountKey=|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.IGNORECASE,
)


class Options(BaseModel):
    """Frozen options; an unknown name is an error, since a misspelt one must not mean a default.

    So is a password or key: what is set here stands in Dagster's UI, run records and logs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _holds_no_secrets(self) -> Self:
        for name, value in self:
            passed_on = type(self).model_fields[name].json_schema_extra == MASKED
            for place in _secrets(name, value, passed_on):
                raise ValueError(
                    f"{place} looks like a secret, and options are shown in Dagster's UI: leave it "
                    "out, and set it in the environment (AWS_SECRET_ACCESS_KEY and the like for "
                    "the lake; FSSPEC_S3_SECRET and the like for the crawl source)"
                )
        return self


def _secrets(name: str, value: Any, passed_on: bool) -> Iterator[str]:
    """Yield the places in an option's value that look like secrets, by their content; where it is
    passed on to a library, by that library's names for them, too."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            lower = str(key).lower()
            if passed_on and _SECRET_NAME.search(lower) and not _NO_SECRET_NAME.search(lower):
                yield f"{name}.{key}"
            yield from _secrets(f"{name}.{key}", inner, passed_on)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(name, inner, passed_on)
    elif isinstance(value, str) and _SECRET_VALUE.search(value):
        yield name


class _Operational:
    def __repr__(self) -> str:
        return "OPERATIONAL"


OPERATIONAL: Final = _Operational()
"""Marks a field that says how the work is done and not what is made: ``concurrency:
Annotated[int, OPERATIONAL]``. It is no part of a code version: changing it makes nothing stale."""


class _Added:
    def __repr__(self) -> str:
        return "ADDED"


ADDED: Final = _Added()
"""Marks a field that an earlier version did not have, and whose default does what that version did:
``scaled_decoding: Annotated[bool, ADDED]``. At its default it is no part of a code version, so that
an upgrade makes nothing stale."""


@cache
def operational_fields(model: type[BaseModel]) -> frozenset[str]:
    """Names of the fields that are marked :data:`OPERATIONAL`."""
    return _marked(model, OPERATIONAL)


def _marked(model: type[BaseModel], mark: object) -> frozenset[str]:
    return frozenset(
        name
        for name, field in model.model_fields.items()
        if any(found is mark for found in field.metadata)
    )


def versioned(options: BaseModel) -> dict[str, Any]:
    """The options that change results, as JSON values."""
    model = type(options)
    as_before = {
        name
        for name in _marked(model, ADDED)
        if getattr(options, name) == model.model_fields[name].get_default(call_default_factory=True)
    }
    return options.model_dump(mode="json", exclude={*operational_fields(model), *as_before})
