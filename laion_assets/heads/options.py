"""Options of the heads: which files they are."""

from __future__ import annotations

from pydantic import Field

from laion_assets.options import Options


class HeadOptions(Options):
    """One head, whose scores are a column of the scored pairs."""

    file: str = Field(description="A shipped head's name, or the path of a head's JSON file")
