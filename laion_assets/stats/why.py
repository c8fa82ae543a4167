"""The whole story of one pair, from what the lake keeps of it.

For every partition that has the pair: where it was found, what each stage decided, by which rule
and version, and where it is now. A rejected pair has a story as far as the lake keeps its row;
links that became no pair leave only counts and a few examples in the manifests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from laion_assets import schemas
from laion_assets.clip.embed import EmbeddedWith
from laion_assets.download.shard_files import SHARDS, files_of
from laion_assets.filtering.recipe import Recipe, RecipeError
from laion_assets.filtering.score import ScoredWith
from laion_assets.filtering.subset import TakenWith, choose
from laion_assets.funnel import REASONS
from laion_assets.knn.files import find_sample
from laion_assets.lake import Lake, Manifest
from laion_assets.layout import (
    EMBEDDINGS,
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    KNN_INDEX,
    NEAR_DUPLICATES,
    PAIR_PARQUET,
    PARTITIONS,
    SCORED_PAIRS,
    SEARCH_INDEX,
    SUBSET_PREFIX,
    UNIQUE_PAIRS,
    WAT_MANIFEST,
    SegmentKey,
    Table,
    partition_of,
)
from laion_assets.removals.active import FOLDERS, REASON_OF_LIST, read_lists
from laion_assets.removals.entries import Entries
from laion_assets.schemas import sample_id_of, uid_of
from laion_assets.stats.finder import Finder
from laion_assets.stats.question import NotAskableError as NotAskableError
from laion_assets.stats.question import Question, ask

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One stage's verdict on a pair.

    ``verdict`` is `kept`, a reject reason of the funnel, or another word for what happened;
    ``detail`` explains it, and ``by`` gives the rules and the version that decided.
    """

    stage: str
    verdict: str
    detail: str = ""
    by: str = ""


@dataclass(frozen=True)
class Story:
    """One pair in one segment."""

    key: SegmentKey
    url: str
    text: str
    """Empty for an image without a caption."""
    steps: Sequence[Step]

    @property
    def sample_id(self) -> int:
        return sample_id_of(uid_of(self.url, self.text))

    def lines(self) -> Iterator[str]:
        yield f"{self.url}"
        caption = repr(self.text) if self.text else "no caption"
        yield f"  {caption}, SAMPLE_ID {self.sample_id}, in {self.key}"
        for step in self.steps:
            detail = f": {step.detail}" if step.detail else ""
            yield f"  {step.stage:14} {step.verdict}{detail}"
            if step.by:
                yield f"  {'':14} by {step.by}"


@dataclass(frozen=True)
class Answer:
    """Everything known; ``remarks`` belong to no single segment. False if nothing is known.

    ``scanned``: partitions that had to be searched row by row.
    """

    stories: Sequence[Story]
    remarks: Sequence[str]
    scanned: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.stories or self.remarks)

    def lines(self) -> Iterator[str]:
        for story in self.stories:
            yield from story.lines()
        yield from self.remarks
        if self.scanned:
            yield (
                f"{len(self.scanned)} partitions had to be searched row by row, because they have "
                f"no look-up or are older than what they were made of, such as {self.scanned[0]}"
            )


def why(lake: Lake, text: str) -> Answer:
    """Collect everything that a lake knows of a URL, a SAMPLE_ID or an image's hash.

    Raises :class:`NotAskableError`, and ``ListError`` if a removal list cannot be read.
    """
    question = ask(text)
    with duckdb.connect() as connection:
        finder = Finder(lake, connection)
        reader = StoryReader(lake, finder)
        stories = [reader.story(*found) for found in finder.find(question)]
    remarks = [_listed_remark(name, text) for name, text in reader.lists.naming(question)]
    if not stories:
        remarks += _examples(lake, question)
    return Answer(stories, remarks, finder.scanned)


def _listed_remark(name: str, text: str) -> str:
    return (
        f"{text} is on the list `{name}` now: partitions that hold it drop it when they are rebuilt"
    )


class _Lists:
    """The lake's removal lists and blocklists, as they are now."""

    def __init__(self, lake: Lake) -> None:
        self._lists: dict[str, Entries] = dict(read_lists(lake.current(*FOLDERS)).each())

    def of_pair(self, url: str, sample_id: int) -> str | None:
        """Name of the first list that names a pair."""
        for name, entries in self._lists.items():
            if entries.matches_url(url) or entries.key_for_sample(sample_id) is not None:
                return name
        return None

    def naming(self, question: Question) -> Iterator[tuple[str, str]]:
        """``(list, URL or hash)`` for each list that names what is asked for."""
        hashes = question.hashes
        for name, entries in self._lists.items():
            for url in question.urls[-1:]:
                if entries.matches_url(url):
                    yield name, url
            if entries.matches_image(hashes.get("sha256", ""), hashes.get("md5", "")):
                yield name, question.text


class StoryReader:
    """Reader of the partitions that have a pair."""

    def __init__(self, lake: Lake, finder: Finder) -> None:
        self._lake, self._finder, self._connection = lake, finder, finder.connection
        self.lists = _Lists(lake)
        self._subsets = [FILTERED_SUBSET, *lake.assets(f"{SUBSET_PREFIX}*")]

    def story(self, key: SegmentKey, url: str, text: str) -> Story:
        return Story(key, url, text, list(self._steps(key, url, text)))

    def _steps(self, key: SegmentKey, url: str, text: str) -> Iterator[Step]:
        uid = uid_of(url, text)
        pair = self._row(PAIR_PARQUET, key, "uid = ?", uid)
        unique = self._row(UNIQUE_PAIRS, key, "uid = ?", uid)
        image = self._row(IMAGE_SHARDS, key, "uid = ?", uid.hex())
        embedded = self._row(EMBEDDINGS, key, '"SAMPLE_ID" = ?', sample_id_of(uid))
        scored = self._row(SCORED_PAIRS, key, '"SAMPLE_ID" = ?', sample_id_of(uid))
        origin = pair or unique or image or embedded or scored
        if origin is not None:
            yield self._found(key, origin)
        yield self._pairs(key, pair)
        yield self._unique(key, url, uid, unique)
        if unique or image:
            yield self._images(key, image)
        if embedded or (image and image["status"] == "success"):
            yield self._embeddings(key, embedded)
        if embedded or scored:
            yield self._scores(key, scored)
        yield from self._cluster(key, uid)
        for asset in self._subsets:
            yield from self._subset(asset, key, uid, scored)
        yield from self._indices(key, sample_id_of(uid))

    def _found(self, key: SegmentKey, row: Row) -> Step:
        manifest = self._row(WAT_MANIFEST, key, "wat_file = ?", row["wat_file"])
        real = f", segment {manifest['segment_id']}" if manifest else ""
        where = f"on {row['page_url']}" if row["page_url"] else "in a list"
        return Step("found", where, f"in {row['wat_file']}{real}")

    def _pairs(self, key: SegmentKey, row: Row | None) -> Step:
        rules = ("min_text_chars", "max_text_chars", "languages")
        if row is None:
            return self._absent("pairs", PAIR_PARQUET, key, rules)
        score = f"{row['language_score']:.2f}" if row["language_score"] is not None else "unknown"
        detail = f"language {row['language']} ({score}), licence {row['license']}"
        return Step("pairs", "kept", detail, self._by(PAIR_PARQUET, key, rules))

    def _unique(self, key: SegmentKey, url: str, uid: bytes, row: Row | None) -> Step:
        stage, by = UNIQUE_PAIRS, self._by(UNIQUE_PAIRS, key)
        if row is not None:
            return Step(stage, "kept", "no other segment holds the same (URL, TEXT)", by)
        if not self._manifest(stage, key):
            return self._absent(stage, stage, key)
        listed = self.lists.of_pair(url, sample_id_of(uid))
        if listed:
            reason = REASON_OF_LIST[listed]
            return Step(stage, reason, REASONS[stage][reason], by)
        holders = [other for other in self._finder.holders(uid) if other != key]
        if holders:
            detail = f"{REASONS[stage]['duplicate']}: {', '.join(map(str, holders))}"
            return Step(stage, "duplicate", detail, by)
        return Step(stage, "not kept", "no list or other segment explains it any more", by)

    def _images(self, key: SegmentKey, row: Row | None) -> Step:
        rules = ("min_bytes", "max_bytes", "max_pixels", "total_timeout_s", "image_size")
        if row is None:
            return self._absent("images", IMAGE_SHARDS, key, rules)
        by = self._by(IMAGE_SHARDS, key, rules)
        _, fetches = PARTITIONS[IMAGE_SHARDS].tables
        tried = self._row(IMAGE_SHARDS, key, "key = ?", row["key"], fetches)
        attempts = ""
        if tried:
            last = f"{tried['last_tried']:%Y-%m-%d %H:%M}"
            attempts = f"; fetched by {tried['attempts']} runs, last at {last}"
        if row["status"] != "success":
            reason = row["reason"]
            meaning = REASONS["images"].get(reason, "")
            error = (row["error_message"] or "").removeprefix(f"{reason}: ")
            return Step("images", reason, f"{meaning} ({error}){attempts}", by)
        shard = files_of(Path(row["filename"]).parent / SHARDS, row["shard"])[0]
        detail = (
            f"{row['original_width']} x {row['original_height']}, SHA-256 {row['sha256']}; "
            f"now {row['key']} in {shard.relative_to(self._lake.local_root)}{attempts}"
        )
        return Step("images", "kept", detail, by)

    def _embeddings(self, key: SegmentKey, row: Row | None) -> Step:
        manifest = self._manifest(EMBEDDINGS, key)
        if row is None and manifest:
            meaning = REASONS[EMBEDDINGS]["undecodable"]
            return Step(EMBEDDINGS, "undecodable", meaning, self._by(EMBEDDINGS, key))
        if row is None:
            return self._absent(EMBEDDINGS, EMBEDDINGS, key)
        assert manifest is not None
        made = EmbeddedWith.recorded(manifest.metadata, f"{EMBEDDINGS} of {key}")
        detail = f"row {row['file_row_number']} of {Path(row['filename']).name}"
        by = f"model {made.model} {made.model_version}; {self._by(EMBEDDINGS, key)}"
        return Step(EMBEDDINGS, "kept", detail, by)

    def _scores(self, key: SegmentKey, row: Row | None) -> Step:
        if row is None:
            return self._absent("scores", SCORED_PAIRS, key)
        flags = [
            name for name in ("text_names_minors", "underage_ranked", "animal_ranked") if row[name]
        ]
        similarity = "no caption"
        if row["similarity"] is not None:
            similarity = f"similarity {row['similarity']:.4f}"
        detail = (
            f"{similarity}, {row['nsfw']} (nearest: "
            f"{row['nsfw_category_1']!r}, {row['nsfw_category_2']!r})"
            + "".join(f", {flag}" for flag in flags)
            + "".join(f", {name} {_score(row[name])}" for name in schemas.score_columns(row))
        )
        made = ScoredWith.recorded(
            self._lake.manifest(SCORED_PAIRS, key).metadata, f"{SCORED_PAIRS} of {key}"
        )
        by = f"prompts {made.prompts} {made.prompts_digest}, words {made.words}; "
        return Step("scores", "scored", detail, by + self._by(SCORED_PAIRS, key))

    def _cluster(self, key: SegmentKey, uid: bytes) -> Iterator[Step]:
        row = self._row(NEAR_DUPLICATES, key, '"SAMPLE_ID" = ?', sample_id_of(uid))
        if row is None:
            return
        verdict = "first" if row["first"] else "copy"
        detail = f"of cluster {row['cluster']}"
        if not row["first"]:
            detail += f", likeness {row['likeness']:.3f} to its first image"
        yield Step(NEAR_DUPLICATES, verdict, detail, self._by(NEAR_DUPLICATES, key))

    def _subset(
        self, asset: str, key: SegmentKey, uid: bytes, scored: Row | None
    ) -> Iterator[Step]:
        manifest = self._manifest(asset, key)
        row = self._row(asset, key, '"SAMPLE_ID" = ?', sample_id_of(uid))
        if row is None and scored is None:
            return
        if not manifest:
            yield self._absent(asset, asset, key)
            return
        made = TakenWith.recorded(manifest.metadata, f"{asset} of {key}")
        threshold = "no threshold" if made.threshold is None else f"threshold {made.threshold:g}"
        by = f"recipe {made.recipe}, {threshold} for {made.model}; {self._by(asset, key)}"
        if row is not None:
            part = Path(row["filename"]).relative_to(self._lake.local_root)
            yield Step(asset, "kept", f"now row {row['file_row_number']} of {part}", by)
            return
        assert scored is not None
        yield Step(asset, *_refusal(scored, manifest.metadata), by)

    def _indices(self, key: SegmentKey, sample_id: int) -> Iterator[Step]:
        for asset, of in ((KNN_INDEX, key), (SEARCH_INDEX, None)):
            self._lake.fetch(asset, of, "*ids.npy")
            folder = self._lake.folder(asset, of, "index.json")
            if not (folder / "index.json").exists():
                continue
            row = find_sample(folder, key, sample_id)
            if row is not None:
                yield Step(asset, "indexed", f"as row {row}")

    def _absent(self, stage: str, asset: str, key: SegmentKey, rules: Sequence[str] = ()) -> Step:
        """The step of a stage whose partition does not exist, or does not have the pair."""
        if not self._manifest(asset, key):
            return Step(stage, "not made", f"{asset} of {key} is not in the lake")
        return Step(
            stage,
            "missing",
            f"{asset} of {key} does not hold it: it, or what it was made from, was rebuilt since",
            self._by(asset, key, rules),
        )

    # Reading

    def _row(
        self, asset: str, key: SegmentKey, where: str, value: Any, table: Table | None = None
    ) -> Row | None:
        """The first row of a partition that meets a condition."""
        table = table or partition_of(asset).rows
        folder = self._lake.folder(asset, key, table.files)
        return self._first(table.paths(folder), where, value)

    def _first(self, files: Sequence[Path], where: str, *values: Any) -> Row | None:
        present = [str(path) for path in files if path.exists()]
        if not present:
            return None
        cursor = self._connection.execute(
            "select *, file_row_number from read_parquet(?, filename = true, "
            "file_row_number = true, hive_partitioning = false, union_by_name = true) "
            f"where {where} limit 1",
            [present, *values],
        )
        row = cursor.fetchone()
        names = [column[0] for column in cursor.description or ()]
        return dict(zip(names, row, strict=True)) if row else None

    def _manifest(self, asset: str, key: SegmentKey) -> Manifest | None:
        """Manifest of a partition; None if it is not published."""
        return self._lake.manifest(asset, key) if self._lake.has(asset, key) else None

    def _by(self, asset: str, key: SegmentKey, rules: Sequence[str] = ()) -> str:
        """Origin of a decision: the options named by ``rules``, the code's version, and the run."""
        manifest = self._manifest(asset, key)
        if not manifest:
            return ""
        options = manifest.metadata.get("options", {})
        values = ", ".join(f"{name} {_plain(options[name])}" for name in rules if name in options)
        made = f"code {manifest.code_version}, made {manifest.started[:19]}"
        run = f", run {manifest.run_id[:8]}" if manifest.run_id else ""
        return f"{values + '; ' if values else ''}{made}{run}"


def _score(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _plain(value: object) -> str:
    return "/".join(map(str, value)) or "any" if isinstance(value, list) else str(value)


def _refusal(scored: Row, made: Mapping[str, Any]) -> tuple[str, str]:
    """``(reason, its meaning)``, by applying the recipe the subset was made with to this row."""
    if "options" not in made:
        return "not kept", "its manifest does not record the recipe"
    schema = schemas.with_scores(schemas.SCORED, schemas.score_columns(scored))
    table = pa.Table.from_pylist([dict(scored)], schema=schema)
    recipe = Recipe.model_validate(made["options"])
    try:
        _, counts = choose(table, recipe, made["threshold"])
    except RecipeError as error:  # the scores were made again without one of its heads
        return "not kept", f"its recipe cannot be applied to the scores as they are now: {error}"
    for reason in counts.rejects:
        meaning = REASONS["subset"][reason]
        return reason, f"{meaning}: {recipe.where}" if reason == "predicate" else meaning
    if recipe.duplicates:
        return "duplicate_image", REASONS["subset"]["duplicate_image"]
    return "missing", "its recipe would keep it: the scores were rebuilt since"


def _examples(lake: Lake, question: Question) -> list[str]:
    """Remarks on links that became no pair, if they are among a manifest's examples."""
    remarks = []
    manifests = lake.manifests(PAIR_PARQUET) if question.urls else {}
    for key, manifest in sorted(manifests.items(), key=lambda of: str(of[0])):
        for counts in manifest.counts:
            for reason, examples in counts.examples.items():
                if {example.partition(" ")[0] for example in examples} & set(question.urls):
                    meaning = REASONS[counts.stage][reason]
                    remarks.append(f"{key}, stage {counts.stage}: {reason} ({meaning})")
    return remarks
