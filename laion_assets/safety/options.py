"""Options of the safety tags: the prompts and word lists that they use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from laion_assets.options import OPERATIONAL, Options


class SafetyOptions(Options):
    """Options of the safety tags; the data files that they name are versioned."""

    prompts: str = Field(
        "laion400m",
        description="Category prompts: the name of shipped ones, or a JSON file of your own",
    )
    plausible_share: Annotated[float, OPERATIONAL] = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest plausible share of pairs not tagged UNLIKELY; above it, a check warns"
        " that the prompts may not suit the model",
    )
