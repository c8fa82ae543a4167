"""The rules of the dataset as resources, so that the UI shows what a run was made with."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from laion_assets.comparison.options import ComparisonOptions
from laion_assets.filtering.recipe import Recipe
from laion_assets.generation.options import GenerationOptions
from laion_assets.knn.options import IndexOptions
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.pairs.rules import PairRules
from laion_assets.safety.options import SafetyOptions
from laion_assets.settings import Work
from resources.options import OptionsResource


class PairRulesResource(PairRules, OptionsResource[PairRules]):
    """Which links become pairs."""


class SafetyResource(SafetyOptions, OptionsResource[SafetyOptions]):
    """Which prompts and word lists the safety tags use."""


class NearDuplicatesResource(NearDuplicateOptions, OptionsResource[NearDuplicateOptions]):
    """When two images count as copies of one picture."""


class RecipeResource(Recipe, OptionsResource[Recipe]):
    """Which scored pairs the subset takes."""


class IndexResource(IndexOptions, OptionsResource[IndexOptions]):
    """How the kNN indices are built and checked."""


class GenerationResource(GenerationOptions, OptionsResource[GenerationOptions]):
    """How the generation demo is trained and sampled."""

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, values: Any) -> Any:
        # The settings have filled in the preset's values. Dagster drops what equals a default: that
        # default is meant then, and not the preset's value.
        return values


class ComparisonResource(ComparisonOptions, OptionsResource[ComparisonOptions]):
    """How recipes are compared."""


class WorkResource(Work, OptionsResource[Work]):
    """How a machine's cores are used."""
