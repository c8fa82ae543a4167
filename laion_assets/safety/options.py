"""Options of the safety tags: the prompts and word lists that they use."""

from __future__ import annotations

from pydantic import Field

from laion_assets.options import Options


class SafetyOptions(Options):
    """Options of the safety tags; the data files that they name are versioned."""

    prompts: str = Field(
        "laion400m",
        description="Category prompts: the name of shipped ones, or a JSON file of your own",
    )
