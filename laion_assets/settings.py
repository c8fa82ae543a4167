"""All configuration of a deployment: one TOML file, typed and validated.

`LAION_ASSETS_CONFIG` names the file; without it, the sample world's is used. This is the one
place that reads the environment for anything but secrets.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Mapping
from importlib import resources as package_files
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from laion_assets.clip.options import ClipOptions
from laion_assets.clip.thresholds import UnknownThresholdError
from laion_assets.comparison.options import ComparisonOptions
from laion_assets.crawl.source import CrawlSourceOptions
from laion_assets.download.options import DownloadOptions
from laion_assets.filtering.recipe import DEFAULT, Recipe, RecipeError, load_recipe, recipe_fields
from laion_assets.generation.options import GenerationOptions
from laion_assets.heads.head import load_head
from laion_assets.heads.options import HeadOptions
from laion_assets.knn.options import IndexOptions
from laion_assets.lake import LakeOptions
from laion_assets.layout import unqueryable
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.options import Options
from laion_assets.pairs.rules import PairRules
from laion_assets.removals.options import RemovalOptions
from laion_assets.safety.options import SafetyOptions
from laion_assets.search.options import ServeOptions
from laion_assets.url_lists.options import UrlListOptions

logger = logging.getLogger(__name__)

CONFIG_VARIABLE: Final = "LAION_ASSETS_CONFIG"
_HEAD_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SUBSET_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class SettingsError(ValueError):
    """The settings file is absent or wrong; the message says which field and why."""


class Discovery(Options):
    """Which crawls and segments the sensor takes."""

    newest: int | None = Field(None, ge=1, description="Only the N newest crawls; null takes all")
    only: tuple[str, ...] = Field((), description="Only these crawls; empty takes any")
    segments: int | None = Field(
        None, ge=1, description="Only the first N segments of each crawl; null takes all"
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="Share of each crawl's segments; always the same ones"
    )
    require_check: bool = Field(
        True,
        description="Ask a crawl source, or a list's hosts, that are not on this machine only once "
        "`laion-assets check` has passed with these settings",
    )
    first: Literal["newest", "oldest"] = Field(
        "newest", description="Which crawl's segments go before the others'"
    )
    attempts: int = Field(
        3, ge=1, description="Failed runs after which a segment is left alone for a while"
    )
    at_most: int = Field(
        100,
        ge=1,
        description="Runs that wait or run at once; the sensor requests more as these end",
    )
    interval_s: int = Field(
        3600, ge=1, description="Seconds between two readings of the crawl list"
    )
    longest_back_off_s: int = Field(
        86_400,
        ge=1,
        description="Longest wait in seconds after a failed reading, or after a segment's last "
        "attempt; the wait begins at interval_s and doubles each time",
    )


class Notify(Options):
    """Who is notified of failed runs. Secrets are in variables of the environment, named here."""

    to: tuple[Literal["log", "webhook", "slack"], ...] = Field(
        ("log",), description="Where notices go; empty sends none"
    )
    retried: bool = Field(
        True, description="Also send notices of runs that Dagster retries automatically"
    )
    ui: str = Field("http://127.0.0.1:3000", description="Address of Dagster's UI, for links")
    webhook_url_variable: str = Field(
        "LAION_ASSETS_WEBHOOK_URL", description="Variable with the webhook's URL"
    )
    webhook_token_variable: str = Field(
        "", description="Variable with a bearer token for the webhook; empty sends none"
    )
    slack_token_variable: str = Field(
        "SLACK_BOT_TOKEN", description="Variable with the token of the Slack app"
    )
    slack_channel: str = Field("", description="Channel that notices are posted to")
    slack_api: str = Field("https://slack.com/api/", description="Address of Slack's API")

    @model_validator(mode="after")
    def _complete(self) -> Notify:
        if "slack" in self.to and not self.slack_channel:
            raise ValueError("notices to Slack need slack_channel")
        return self


FollowedByDefault = Literal[
    "scored_pairs",
    "near_duplicates",
    "filtered_subset",
    "subsets",
    "knn_index",
    "segment_stats",
]
Followed = Literal["pair_parquet", "unique_pairs", "image_shards", "embeddings", FollowedByDefault]


class Automation(Options):
    """What is rebuilt automatically; everything else stays stale until a person rebuilds it."""

    inputs: tuple[Followed, ...] = Field(
        get_args(FollowedByDefault),
        description="Assets rebuilt in the segments where the content of an input changed",
    )
    code: tuple[Followed, ...] = Field(
        (),
        description=(
            "Assets rebuilt in all segments when their code version changes: a revision of the "
            "code, the model (embeddings), prompts and heads (scored_pairs), thresholds "
            "(filtered_subset)"
        ),
    )
    aggregates_at: str = Field(
        "0 4 * * *",
        description="When aggregates are rebuilt even while segments are being made (cron, UTC)",
    )
    fresh_days: int | None = Field(
        40,
        ge=1,
        description="Days after which a new segment or its aggregates are overdue; null: never",
    )


_OWNER: Final = r"^(team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+\.[^@\s]+)$"
_TAG: Final = r"^([A-Za-z0-9_.-]{1,63}/)?[A-Za-z0-9_.-]{1,63}$"
_TAG_VALUE: Final = r"^[A-Za-z0-9_.-]{0,63}$"


class Catalogued(Options):
    """What Dagster's asset catalog shows of every asset that runs make."""

    owners: tuple[Annotated[str, Field(pattern=_OWNER)], ...] = Field(
        (), description="Owners of what runs make, as e-mail addresses or as team:NAME"
    )
    tags: Mapping[
        Annotated[str, Field(pattern=_TAG)], Annotated[str, Field(pattern=_TAG_VALUE)]
    ] = Field(default_factory=dict, description="Tags of what runs make, by name")


class Retry(Options):
    times: int = Field(3, ge=0, description="Retries after the first failure")
    delay_s: float = Field(
        10.0, ge=0, description="Seconds before the first retry; about doubled for each further one"
    )


class Retries(Options):
    """How often transient failures are retried; a permanent failure is not."""

    network: Retry = Retry(times=5, delay_s=60.0)
    """For assets that read from the crawl's or the images' servers."""
    local: Retry = Retry()


class Retention(Options):
    """How long Dagster's storage keeps records that do not say what was made."""

    logs_days: int = Field(30, ge=1, description="Log lines and printed output of finished runs")
    runs_days: int = Field(
        180, ge=1, description="Finished runs that made nothing, such as failed ones"
    )
    superseded_days: int | None = Field(
        None, ge=1, description="Runs whose partitions were all rebuilt since; null keeps them"
    )
    at: str | None = Field(
        "30 3 * * *", description="When the storage is pruned (cron, UTC); null: never"
    )


class Verification(Options):
    """How the lake's files are compared with their manifests, a share of them at a time."""

    at: str | None = Field(
        "0 4 * * *", description="When a share is verified (cron, UTC); null: never"
    )
    shares: int = Field(90, ge=1, description="Runs after which every partition was verified")


class Work(Options):
    """How a machine's cores are used."""

    workers: int = Field(2, ge=1, description="Processes that read WAT files in one partition")


def _recipe(section: Any, name: str | None = None) -> Any:
    """The fields of a recipe's section. An unknown key is left for the validation to name."""
    if not isinstance(section, Mapping):
        return section
    if set(section) - {*Recipe.model_fields, "recipe"}:
        return {key: value for key, value in section.items() if key != "recipe"}
    return recipe_fields(section, name)


class Settings(Options):
    """A whole deployment."""

    lake: LakeOptions = LakeOptions()
    crawl_source: CrawlSourceOptions = CrawlSourceOptions()
    lists: tuple[UrlListOptions, ...] = ()
    """URL lists, each a crawl of its own."""
    discovery: Discovery = Discovery()
    automation: Automation = Automation()
    assets: Catalogued = Catalogued()
    retries: Retries = Retries()
    notify: Notify = Notify()
    retention: Retention = Retention()
    verification: Verification = Verification()
    work: Work = Work()
    pairs: PairRules = PairRules()
    download: DownloadOptions = DownloadOptions()
    clip: ClipOptions = ClipOptions()
    safety: SafetyOptions = SafetyOptions()
    near_duplicates: NearDuplicateOptions = NearDuplicateOptions()
    heads: Mapping[str, HeadOptions] = Field(default_factory=dict)
    """Heads by name; each scores every pair, and `score_<name>` is its column."""
    subset: Recipe = Field(default_factory=lambda: load_recipe(DEFAULT))
    """The recipe of `filtered_subset`, which is indexed and searched."""
    subsets: Mapping[str, Recipe] = Field(default_factory=dict)
    """Further recipes by name, taken from the same scores; each is an asset of its own."""
    index: IndexOptions = IndexOptions()
    generation: GenerationOptions = Field(default_factory=GenerationOptions)
    comparison: ComparisonOptions = ComparisonOptions()
    removals: RemovalOptions = RemovalOptions()
    serve: ServeOptions = ServeOptions()

    @field_validator("lake")
    @classmethod
    def _can_be_queried(cls, lake: LakeOptions) -> LakeOptions:
        if found := unqueryable(Path(lake.root).absolute()):
            raise ValueError(
                f"root {lake.root} must not hold {' '.join(found)}, in itself or in the "
                "folder it is relative to: DuckDB would take it for a pattern or a key"
            )
        return lake

    @field_validator("lists")
    @classmethod
    def _named_once(cls, lists: tuple[UrlListOptions, ...]) -> tuple[UrlListOptions, ...]:
        names = [options.name for options in lists]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several lists are named {', '.join(twice)}")
        return lists

    @field_validator("heads")
    @classmethod
    def _exist(cls, heads: Mapping[str, HeadOptions]) -> Mapping[str, HeadOptions]:
        for name, options in heads.items():
            if not _HEAD_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a head's name like watermark")
            load_head(options.file)
        return heads

    @field_validator("subset", mode="before")
    @classmethod
    def _main(cls, section: Any) -> Any:
        return _recipe(section)

    @field_validator("subsets", mode="before")
    @classmethod
    def _further(cls, sections: Any) -> Any:
        if not isinstance(sections, Mapping):
            return sections
        recipes = {}
        for name, section in sections.items():
            if not _SUBSET_NAME.fullmatch(name):
                raise RecipeError(f"{name!r} is not a subset's name like laion5b-en")
            try:
                recipes[name] = _recipe(section, name)
            except RecipeError as error:
                raise RecipeError(f"{name}: {error}") from error
        return recipes

    @model_validator(mode="after")
    def _heads_for_recipes(self) -> Settings:
        for recipe in (self.subset, *self.subsets.values()):
            if unknown := sorted(set(recipe.heads) - set(self.heads)):
                raise ValueError(
                    f"the recipe {recipe.name!r} needs scores of {', '.join(unknown)}, but there "
                    f"is no section [heads.{unknown[0]}]"
                )
        return self

    def missing_thresholds(self) -> str:
        """Which recipes have no threshold for the model, and what to do; empty if all have one."""
        problems = []
        sections = {"subset": self.subset} | {f"subsets.{n}": r for n, r in self.subsets.items()}
        for section, recipe in sections.items():
            try:
                recipe.threshold_of(self.clip.key)
            except UnknownThresholdError as error:
                problems.append(f"[{section}] {error}")
        return "; ".join(problems)

    def recipe(self, name: str) -> Recipe:
        """A further subset's recipe, the main one, or a shipped one, by name.

        Raises :class:`RecipeError` for an unknown name.
        """
        known = {self.subset.name: self.subset, **self.subsets}
        return known[name] if name in known else load_recipe(name)


_DEPLOYMENTS: Final = Path(str(package_files.files("laion_assets"))) / "deployments"
DAGSTER_CONFIG: Final = _DEPLOYMENTS / "dagster.yaml"
"""The shipped configuration of a Dagster instance on one machine."""


def shipped_config(name: str) -> Path:
    """A settings file shipped with the package."""
    return _DEPLOYMENTS / f"{name}.toml"


def sample_config() -> Path:
    """The sample world's settings file."""
    return shipped_config("sample")


def named_config() -> Path | None:
    """The settings file that the environment names, if it names one."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


def load_settings(path: Path | None = None) -> Settings:
    """Read and validate a settings file. Raises :class:`SettingsError`.

    A recipe without a threshold for the model is warned of only: until a model of one's own is
    calibrated, all stages before the subset do without.
    """
    path = path or named_config() or sample_config()
    try:
        with path.open("rb") as stream:
            values = tomllib.load(stream)
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"{path}: {'; '.join(map(_problem, error.errors()))}") from error
    if missing := settings.missing_thresholds():
        logger.warning(f"{path}: {missing}")
    return settings


_OF_MANY: Final = {"subsets": Recipe, "lists": UrlListOptions, "heads": HeadOptions}
"""Section that has several of a kind -> what each is."""
_NO_TABLE: Final = ("model_type", "model_attributes_type", "dict_type", "mapping_type")


def _problem(error: ErrorDetails) -> str:
    """Describe one validation error in a line; an unknown key, with the known ones."""
    if not error["loc"]:  # several sections do not fit one another
        return error["msg"].removeprefix("Value error, ")
    *path, key = map(str, error["loc"])
    if error["type"] in _NO_TABLE:
        return f"[{'.'.join([*path, key])}] must be a table"
    if error["type"] != "extra_forbidden":
        return f"{'.'.join([*path, key])}: {error['msg'].removeprefix('Value error, ')}"
    if not path:
        return f"no section [{key}]; known: {', '.join(Settings.model_fields)}"
    model: Any = Settings
    for name in path:
        if model is Settings and name in _OF_MANY:
            model = _OF_MANY[name]
            break
        model = model.model_fields[name].annotation
    known = [*model.model_fields, *(["recipe"] if model is Recipe else [])]
    return f"[{'.'.join(path)}] has no {key}; known: {', '.join(known)}"
