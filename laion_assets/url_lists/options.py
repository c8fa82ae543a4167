"""Options of this package: where a URL list is, and what its columns are."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator, model_validator

from laion_assets.layout import LIST_PREFIX
from laion_assets.options import MASKED, OPERATIONAL, Options

Format = Literal["parquet", "csv", "tsv", "json", "txt"]

_NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class ReadOptions(Options):
    """How a list's files are read."""

    url: str = Field("", description="Column of the image URLs; empty finds it by known names")
    text: str = Field("", description="Column of the captions; empty finds it by known names")
    captions: bool = Field(
        True,
        description="Whether captions are taken; false takes the images alone, which then have no"
        " text and no similarity",
    )
    format: Format | None = Field(
        None,
        description="parquet, csv, tsv, json (JSON lines, or one array) or txt (a URL a line); null"
        " goes by the files' names",
    )
    encoding: Literal["", "utf-8", "latin-1", "utf-16"] = Field(
        "", description="Encoding of text files; empty decides by the bytes"
    )
    storage_options: Annotated[dict[str, str], OPERATIONAL] = Field(
        default_factory=dict,
        description="Options for fsspec, such as endpoint_url; keys belong into the environment",
        json_schema_extra=MASKED,
    )


class UrlListOptions(ReadOptions):
    """A list that is a crawl of the graph: `LIST-<name>`."""

    name: str = Field(description="Name of the list, such as laion400m; its crawl is LIST-<name>")
    files: tuple[str, ...] = Field(
        min_length=1, description="Files, folders, patterns or fsspec URLs of the list"
    )
    rows_per_segment: int = Field(1_000_000, ge=1, description="Rows of the list in one segment")

    @field_validator("name")
    @classmethod
    def _can_be_a_crawl(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a list's name like laion400m or my-list")
        return name

    @model_validator(mode="after")
    def _has_captions_or_not(self) -> UrlListOptions:
        if self.text and not self.captions:
            raise ValueError(f"captions = false takes no captions, but text names {self.text!r}")
        return self

    @property
    def crawl(self) -> str:
        """Name of the list's crawl."""
        return f"{LIST_PREFIX}{self.name}"
