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
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
    fraction: float = Field(
        1.0, gt=0, le=1, description="Only this share of each crawl's segments, always the same"
    )
    first: Literal["newest", "oldest"] = Field(
        "newest", description="Which crawl's segments go before the others'"
    )
    attempts: int = Field(
        3, ge=1, description="Failed runs after which a segment is left alone for a while"
    )
    at_most: int = Field(
        100, ge=1, description="Runs that wait or run at once; more are asked for as these end"
    )
    interval_s: int = Field(3600, ge=1, description="Seconds between two looks at the crawl list")
    longest_back_off_s: int = Field(
        86_400,
        ge=1,
        description="After a failed look, or a segment's last attempt, the wait is interval_s and "
        "twice as long each further time, at most this long",
    )


class Notify(_Section):
    """Whom failed runs are told to. Secrets are in the environment; these name their variables."""

    to: tuple[Literal["log", "webhook", "slack"], ...] = ("log",)
    retried: bool = Field(True, description="Tell of runs that Dagster makes again by itself, too")
    ui: str = Field("http://127.0.0.1:3000", description="Address of Dagster's UI, for links")
    webhook_url_variable: str = "LAION_ASSETS_WEBHOOK_URL"
    webhook_token_variable: str = Field("", description="Its token is sent as a bearer's, if named")
    slack_token_variable: str = "SLACK_BOT_TOKEN"  # noqa: S105 - the variable's name
    slack_channel: str = ""
    slack_api: str = "https://slack.com/api/"

    @model_validator(mode="after")
    def _complete(self) -> Notify:
        if "slack" in self.to and not self.slack_channel:
            raise ValueError("slack_channel is needed to tell Slack")
        return self


_Followed = Literal[
    "pair_parquet",
    "unique_pairs",
    "image_shards",
    "embeddings",
    "scored_pairs",
    "filtered_subset",
    "subsets",
    "knn_index",
    "segment_stats",
]


class Automation(_Section):
    """What is made again by itself; all else is stale until a person makes it again."""

    inputs: tuple[_Followed, ...] = Field(
        ("scored_pairs", "filtered_subset", "subsets", "knn_index", "segment_stats"),
        description="Assets made again where what they are made of has other content",
    )
    code: tuple[_Followed, ...] = Field(
        (),
        description=(
            "Assets made again in all segments when their code version changes: a revision of the "
            "code, the model (embeddings), prompts (scored_pairs), thresholds (filtered_subset)"
        ),
    )
    aggregates_at: str = Field(
        "0 4 * * *", description="When the aggregates do not wait for segments in the making (UTC)"
    )
    fresh_days: int | None = Field(
        40, ge=1, description="Days without a new segment, or aggregates of it, that are a fault"
    )


class Retry(_Section):
    times: int = Field(3, ge=0, description="Tries after the first that failed")
    delay_s: float = Field(10.0, ge=0, description="Before the second; doubled, about, each time")


class Retries(_Section):
    """For failures that may pass: what fails for good is not tried again."""

    network: Retry = Retry(times=5, delay_s=60.0)
    """Assets that ask the crawl's or the images' servers."""
    local: Retry = Retry()


class Retention(_Section):
    """How long Dagster's storage keeps what is not needed to know what was made."""

    logs_days: int = Field(30, ge=1, description="Log lines and printed output of finished runs")
    runs_days: int = Field(180, ge=1, description="Finished runs that made nothing, as failed ones")
    superseded_days: int | None = Field(
        None, ge=1, description="Runs all of whose partitions were made again since; null keeps"
    )
    at: str | None = Field("30 3 * * *", description="When it is pruned (cron, UTC); null: never")


class Work(BaseModel, frozen=True):
    """How a machine's cores are used."""

    workers: int = Field(2, ge=1, description="Processes that read WAT files in one partition")


class Settings(_Section):
    """A whole deployment."""

    lake: LakeOptions = LakeOptions()
    crawl_source: CrawlSourceOptions = CrawlSourceOptions()
    discovery: Discovery = Discovery()
    automation: Automation = Automation()
    retries: Retries = Retries()
    notify: Notify = Notify()
    retention: Retention = Retention()
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
