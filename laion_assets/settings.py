"""All configuration of a deployment: one TOML file, typed and validated.

`LAION_ASSETS_CONFIG` names the file; without it, the sample world's is used. This is the one
place that reads the environment for anything but secrets.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources as package_files
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from laion_assets.clip.options import ClipOptions
from laion_assets.crawl.source import CrawlSourceOptions
from laion_assets.download.options import DownloadOptions
from laion_assets.filtering.recipe import DEFAULT, Recipe, RecipeError, load_recipe, recipe_fields
from laion_assets.generation.options import GenerationOptions
from laion_assets.knn.options import IndexOptions
from laion_assets.lake import LakeOptions
from laion_assets.pairs.rules import PairRules
from laion_assets.removals.options import RemovalOptions
from laion_assets.safety.options import SafetyOptions
from laion_assets.search.options import ServeOptions

CONFIG_VARIABLE: Final = "LAION_ASSETS_CONFIG"
_SUBSET_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class SettingsError(ValueError):
    """The settings file is absent or wrong; the message says which field and why."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Discovery(_Section):
    """Which crawls and segments the sensor takes."""

    newest: int | None = Field(None, ge=1, description="Only the N newest crawls; null takes all")
    only: tuple[str, ...] = Field((), description="Only these crawls; empty takes any")
    segments: int | None = Field(
        None, ge=1, description="Only the first N segments of each crawl; null takes all"
    )
    attempts: int = Field(3, ge=1, description="Failed runs after which a segment is given up")
    at_most: int = Field(100, ge=1, description="Runs asked for at one look")
    interval_s: int = Field(3600, ge=1, description="Seconds between two looks at the crawl list")


class Work(BaseModel, frozen=True):
    """How a machine's cores are used."""

    workers: int = Field(2, ge=1, description="Processes that read WAT files in one partition")


class Settings(_Section):
    """A whole deployment."""

    lake: LakeOptions = LakeOptions()
    crawl_source: CrawlSourceOptions = CrawlSourceOptions()
    discovery: Discovery = Discovery()
    work: Work = Work()
    pairs: PairRules = PairRules()
    download: DownloadOptions = DownloadOptions()
    clip: ClipOptions = ClipOptions()
    safety: SafetyOptions = SafetyOptions()
    subset: Recipe = Field(default_factory=lambda: load_recipe(DEFAULT))
    """Of `filtered_subset`, the one that is indexed and searched."""
    subsets: Mapping[str, Recipe] = Field(default_factory=dict)
    """By name, those taken beside it from the same scores; each is an asset of its own."""
    index: IndexOptions = IndexOptions()
    generation: GenerationOptions = Field(default_factory=GenerationOptions)
    removals: RemovalOptions = RemovalOptions()
    serve: ServeOptions = ServeOptions()

    @field_validator("subset", mode="before")
    @classmethod
    def _main(cls, section: Any) -> Any:
        return recipe_fields(section) if isinstance(section, Mapping) else section

    @field_validator("subsets", mode="before")
    @classmethod
    def _further(cls, sections: Any) -> Any:
        recipes = {}
        for name, section in sections.items():
            if not _SUBSET_NAME.fullmatch(name):
                raise RecipeError(f"{name!r} is not a subset's name like laion5b-en")
            try:
                recipes[name] = (
                    recipe_fields(section, name) if isinstance(section, Mapping) else section
                )
            except RecipeError as error:
                raise RecipeError(f"{name}: {error}") from error
        return recipes

    def recipe(self, name: str) -> Recipe:
        """A further subset's recipe, the main one, or a shipped one, by name.

        Raises :class:`RecipeError` if there is none.
        """
        known = {self.subset.name: self.subset, **self.subsets}
        return known[name] if name in known else load_recipe(name)


def shipped_config(name: str) -> Path:
    """A settings file shipped with the package."""
    return Path(str(package_files.files("laion_assets"))) / "deployments" / f"{name}.toml"


def sample_config() -> Path:
    """The sample world's settings file."""
    return shipped_config("sample")


def load_settings(path: Path | None = None) -> Settings:
    """Read and validate a settings file. Raises :class:`SettingsError`."""
    if path is None:
        named = os.environ.get(CONFIG_VARIABLE)
        path = Path(named) if named else sample_config()
    try:
        with path.open("rb") as stream:
            values = tomllib.load(stream)
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    _refuse_unknown_keys(path, values)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        )
        raise SettingsError(f"{path}: {problems}") from error


def _refuse_unknown_keys(path: Path, values: dict[str, object]) -> None:
    """A misspelt key must not silently mean the default.

    The options classes do not forbid extra fields themselves because Dagster's resources, which
    inherit from them, add their own.
    """
    for title, content, model in _tables(path, values):
        if not isinstance(content, dict):
            raise SettingsError(f"{path}: [{title}] must be a table")
        fields = [*model.model_fields, *(["recipe"] if model is Recipe else [])]
        unknown = sorted(set(content) - set(fields))
        if unknown:
            known = ", ".join(fields)
            raise SettingsError(f"{path}: [{title}] has no {', '.join(unknown)}; known: {known}")


def _tables(path: Path, values: dict[str, object]) -> Iterator[tuple[str, object, type[BaseModel]]]:
    """(title, content, model) of every table of options."""
    for section, content in values.items():
        field = Settings.model_fields.get(section)
        if field is None:
            known = ", ".join(Settings.model_fields)
            raise SettingsError(f"{path}: no section [{section}]; known: {known}")
        if section == "subsets" and isinstance(content, dict):
            for name, table in content.items():
                yield f"subsets.{name}", table, Recipe
        else:
            model = Recipe if section == "subsets" else field.annotation
            assert isinstance(model, type)
            assert issubclass(model, BaseModel)
            yield section, content, model
