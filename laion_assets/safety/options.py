"""Which prompts and word lists the safety tags use."""

from __future__ import annotations

from pydantic import Field

from laion_assets.options import Options


class SafetyOptions(Options):
    """The safety tags' rules; their data files are versioned."""

    prompts: str = Field(
        "laion400m", description="Shipped category prompts by name, or a JSON file of your own"
    )
