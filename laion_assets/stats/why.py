"""The whole story of one pair, told from what the lake keeps.

Where it was found, what each stage decided, by which rule and which version, and where it is now:
for every partition that has it. Rejected pairs are told of as far as rows of them are kept: links
that became no pair leave only counts and a few examples, which are in the manifests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from laion_assets import schemas
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.subset import choose
from laion_assets.funnel import REASONS
from laion_assets.knn.files import find_sample
from laion_assets.lake import LocalLake, Manifest
from laion_assets.removals.active import read_lists
from laion_assets.removals.lists import Entries, ListError, parse_entry
from laion_assets.schemas import UID_BYTES, sample_id_of, uid_of
from laion_assets.segments import SegmentKey

Row = Mapping[str, Any]

_MAIN: Final = "filtered_subset"


class NotAskableError(ValueError):
    """What was asked for is neither a URL, nor a SAMPLE_ID, nor an image's hash."""


@dataclass(frozen=True)
class Step:
    """What one stage did with a pair.

    ``verdict`` is `kept`, a reason of the funnel, or what else is to be said.
    """

    stage: str
    verdict: str
    told: str = ""
    by: str = ""


@dataclass(frozen=True)
class Story:
    """One pair in one segment."""

    key: SegmentKey
    url: str
    text: str
    steps: Sequence[Step]

    @property
    def sample_id(self) -> int:
        return sample_id_of(uid_of(self.url, self.text))

    def lines(self) -> Iterator[str]:
        yield f"{self.url}"
        yield f"  {self.text!r}, SAMPLE_ID {self.sample_id}, in {self.key}"
        for step in self.steps:
            told = f": {step.told}" if step.told else ""
            yield f"  {step.stage:14} {step.verdict}{told}"
            if step.by:
                yield f"  {'':14} by {step.by}"


@dataclass(frozen=True)
class Answer:
    """All that is known; ``remarks`` are of no one segment."""

    stories: Sequence[Story]
    remarks: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.stories or self.remarks)

    def lines(self) -> Iterator[str]:
        for story in self.stories:
            yield from story.lines()
        yield from self.remarks


@dataclass(frozen=True)
class _Question:
    """What rows are looked for, by the columns that an asset may have."""

    said: str
    urls: tuple[str, ...] = ()
    sample_id: int | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    def where(self, columns: Mapping[str, str]) -> tuple[str, list[Any]] | None:
        """SQL and its values for a stage's columns; None if they cannot tell."""
        if self.urls:
            return f"{columns['url']} in ({', '.join('?' * len(self.urls))})", list(self.urls)
        if self.sample_id is not None:
            if "uid" not in columns:
                return f"{columns['SAMPLE_ID']} = ?", [self.sample_id]
            # SAMPLE_ID is the first half of the uid.
            first = self.sample_id.to_bytes(UID_BYTES // 2, "big", signed=True)
            rest = UID_BYTES - len(first)
            uids = [first + b"\0" * rest, first + b"\xff" * rest]
            return "uid between ? and ?", [
                uid.hex() if columns["uid"] == _HEX else uid for uid in uids
            ]
        name, value = next(iter(self.hashes.items()))
        return (f"{name} = ?", [value]) if name in columns else None


def ask(said: str) -> _Question:
    """A URL as people write it, a SAMPLE_ID, or an image's SHA-256 or MD5.

    Raises :class:`NotAskableError`.
    """
    text = said.strip()
    if re.fullmatch(r"-?\d{1,19}", text) and -(1 << 63) <= int(text) < 1 << 63:
        return _Question(text, sample_id=int(text))
    try:
        kind, value = parse_entry(text)
    except ListError as error:
        raise NotAskableError(
            f"{said!r} is neither a URL, nor a SAMPLE_ID, nor an image's SHA-256 or MD5"
        ) from error
    if kind == "url":
        return _Question(text, urls=tuple(dict.fromkeys([text.removeprefix("url:"), value])))
    if kind in ("sha256", "md5"):
        return _Question(text, hashes={kind: value})
    raise NotAskableError(f"{said!r} is a {kind}: ask for one URL")


_HEX: Final = "uid in hex digits"
_SAME: Final = {"url": "url", "text": "text"}
_SCORED: Final = _SAME | {"SAMPLE_ID": "SAMPLE_ID", "sha256": "sha256", "md5": "md5"}
_SUBSET: Final = _SCORED | {"url": '"URL"', "text": '"TEXT"'}
_FILES: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "pair_parquet": ("part-*.parquet", _SAME | {"uid": "uid"}),
    "unique_pairs": ("part-*.parquet", _SAME | {"uid": "uid"}),
    "image_shards": (
        "[0-9]*.parquet",
        {"url": "url", "text": "caption", "uid": _HEX, "sha256": "sha256", "md5": "md5"},
    ),
    "embeddings": ("metadata/metadata_*.parquet", _SCORED),
    "scored_pairs": ("part-*.parquet", _SCORED),
    _MAIN: ("part-*.parquet", _SUBSET),
}
"""Asset -> its files, and what it calls the columns that are asked for."""


def why(lake: LocalLake, said: str) -> Answer:
    """All that a lake knows of a URL, a SAMPLE_ID or an image's hash.

    Raises :class:`NotAskableError`, and ``ListError`` if a removal list cannot be read.
    """
    question = ask(said)
    with duckdb.connect() as connection:
        teller = _Teller(lake, connection)
        stories = [teller.story(*found) for found in teller.find(question)]
    remarks = [_listed_remark(name, text) for name, text in teller.lists.naming(question)]
    if not stories:
        remarks += _examples(lake, question)
    return Answer(stories, remarks)


def _listed_remark(name: str, text: str) -> str:
    return f"{text} is on the list `{name}` now: what holds it loses it when it is made again"


class _Lists:
    """The lake's removal lists and blocklists, as they are now."""

    def __init__(self, lake: LocalLake) -> None:
        self._lists: dict[str, Entries] = dict(read_lists(lake.root).each())

    def of_pair(self, url: str, sample_id: int) -> str | None:
        for name, entries in self._lists.items():
            if entries.matches_url(url) or entries.key_for_sample(sample_id) is not None:
                return name
        return None

    def naming(self, question: _Question) -> Iterator[tuple[str, str]]:
        hashes = question.hashes
        for name, entries in self._lists.items():
            for url in question.urls[-1:]:
                if entries.matches_url(url):
                    yield name, url
            if entries.matches_image(hashes.get("sha256", ""), hashes.get("md5", "")):
                yield name, question.said


class _Teller:
    """Reads the lake's files: wide for where a pair is, then only the partitions that have it."""

    def __init__(self, lake: LocalLake, connection: duckdb.DuckDBPyConnection) -> None:
        self._lake, self._connection = lake, connection
        self.lists = _Lists(lake)
        self._subsets = [_MAIN, *lake.assets("subset_*")]

    # Finding

    def find(self, question: _Question) -> list[tuple[SegmentKey, str, str]]:
        """(segment, url, text) of every partition of every asset that has a row of it."""
        found: set[tuple[SegmentKey, str, str]] = set()
        for asset in [*_FILES, *self._subsets[1:]]:
            pattern, columns = _FILES.get(asset, _FILES[_MAIN])
            condition = question.where(columns)
            key_of = self._files(asset, pattern)
            if condition is None or not key_of:
                continue
            where, values = condition
            rows = self._connection.execute(
                f"select distinct filename, {columns['url']}, {columns['text']} "
                f"from read_parquet(?, filename = true, hive_partitioning = false) where {where}",
                [list(key_of), *values],
            ).fetchall()
            found |= {(key_of[filename], url, text or "") for filename, url, text in rows}
        return sorted(found)

    # Telling

    def story(self, key: SegmentKey, url: str, text: str) -> Story:
        return Story(key, url, text, list(self._steps(key, url, text)))

    def _steps(self, key: SegmentKey, url: str, text: str) -> Iterator[Step]:
        uid = uid_of(url, text)
        pair = self._row("pair_parquet", key, "uid = ?", uid)
        unique = self._row("unique_pairs", key, "uid = ?", uid)
        image = self._row("image_shards", key, "uid = ?", uid.hex())
        embedded = self._row("embeddings", key, '"SAMPLE_ID" = ?', sample_id_of(uid))
        scored = self._row("scored_pairs", key, '"SAMPLE_ID" = ?', sample_id_of(uid))
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
        for asset in self._subsets:
            yield from self._subset(asset, key, uid, scored)
        yield from self._indices(key, sample_id_of(uid))

    def _found(self, key: SegmentKey, row: Row) -> Step:
        manifest = self._row("wat_manifest", key, "wat_file = ?", row["wat_file"], "*.parquet")
        real = f", segment {manifest['segment_id']}" if manifest else ""
        return Step("found", f"on {row['page_url']}", f"in {row['wat_file']}{real}")

    def _pairs(self, key: SegmentKey, row: Row | None) -> Step:
        told = ("min_text_chars", "max_text_chars", "languages")
        if row is None:
            return self._absent("pairs", "pair_parquet", key, told)
        score = f"{row['language_score']:.2f}" if row["language_score"] is not None else "unknown"
        said = f"language {row['language']} ({score}), licence {row['license']}"
        return Step("pairs", "kept", said, self._by("pair_parquet", key, told))

    def _unique(self, key: SegmentKey, url: str, uid: bytes, row: Row | None) -> Step:
        stage, by = "unique_pairs", self._by("unique_pairs", key)
        if row is not None:
            return Step(stage, "kept", "no other segment holds the same (URL, TEXT)", by)
        if not self._manifest(stage, key):
            return self._absent(stage, stage, key)
        listed = self.lists.of_pair(url, sample_id_of(uid))
        if listed:
            reason = {"removals": "removed", "blocklists": "blocked"}[listed]
            return Step(stage, reason, REASONS[stage][reason], by)
        holders = [other for other in self._holders(uid) if other != key]
        if holders:
            told = f"{REASONS[stage]['duplicate']}: {', '.join(map(str, holders))}"
            return Step(stage, "duplicate", told, by)
        return Step(stage, "not kept", "and neither a list nor another segment says why now", by)

    def _holders(self, uid: bytes) -> list[SegmentKey]:
        key_of = self._files("unique_pairs", _FILES["unique_pairs"][0])
        rows = self._connection.execute(
            "select distinct filename from read_parquet("
            "?, filename = true, hive_partitioning = false) where uid = ?",
            [list(key_of), uid],
        ).fetchall()
        return sorted(key_of[filename] for (filename,) in rows)

    def _images(self, key: SegmentKey, row: Row | None) -> Step:
        told = ("min_bytes", "max_bytes", "max_pixels", "total_timeout_s", "image_size")
        if row is None:
            return self._absent("images", "image_shards", key, told)
        by = self._by("image_shards", key, told)
        tried = self._row("image_shards", key, "key = ?", row["key"], "_ledger/*.parquet")
        attempts = ""
        if tried:
            last = f"{tried['last_tried']:%Y-%m-%d %H:%M}"
            attempts = f"; asked for in {tried['attempts']} runs, last at {last}"
        if row["status"] != "success":
            reason = row["reason"]
            meaning = REASONS["images"].get(reason, "")
            error = (row["error_message"] or "").removeprefix(f"{reason}: ")
            return Step("images", reason, f"{meaning} ({error}){attempts}", by)
        shard = Path(row["filename"]).with_suffix(".tar")
        said = (
            f"{row['original_width']} x {row['original_height']}, SHA-256 {row['sha256']}; "
            f"now {row['key']} in {shard.relative_to(self._lake.root)}{attempts}"
        )
        return Step("images", "kept", said, by)

    def _embeddings(self, key: SegmentKey, row: Row | None) -> Step:
        manifest = self._manifest("embeddings", key)
        if row is None and manifest:
            meaning = REASONS["embeddings"]["undecodable"]
            return Step("embeddings", "undecodable", meaning, self._by("embeddings", key))
        if row is None:
            return self._absent("embeddings", "embeddings", key)
        model = manifest.metadata if manifest else {}
        said = f"row {row['file_row_number']} of {Path(row['filename']).name}"
        by = f"model {model.get('model')} {model.get('model_version', '')}; "
        return Step("embeddings", "kept", said, by + self._by("embeddings", key))

    def _scores(self, key: SegmentKey, row: Row | None) -> Step:
        if row is None:
            return self._absent("scores", "scored_pairs", key)
        flags = [
            name for name in ("text_names_minors", "underage_ranked", "animal_ranked") if row[name]
        ]
        said = (
            f"similarity {row['similarity']:.4f}, {row['nsfw']} (nearest: "
            f"{row['nsfw_category_1']!r}, {row['nsfw_category_2']!r})"
            + "".join(f", {flag}" for flag in flags)
        )
        manifest = self._manifest("scored_pairs", key)
        made = manifest.metadata if manifest else {}
        by = (
            f"prompts {made.get('prompts')} {made.get('prompts_digest', '')}, "
            f"words {made.get('words')}; "
        )
        return Step("scores", "scored", said, by + self._by("scored_pairs", key))

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
        made = manifest.metadata
        by = (
            f"recipe {made['recipe']}, threshold {made['threshold']:g} for {made['model']}; "
            f"{self._by(asset, key)}"
        )
        if row is not None:
            part = Path(row["filename"]).relative_to(self._lake.root)
            yield Step(asset, "kept", f"now row {row['file_row_number']} of {part}", by)
            return
        assert scored is not None
        yield Step(asset, *_refusal(scored, made), by)

    def _indices(self, key: SegmentKey, sample_id: int) -> Iterator[Step]:
        for asset, folder in (
            ("knn_index", self._lake.folder("knn_index", key)),
            ("search_index", self._lake.folder("search_index")),
        ):
            if not (folder / "index.json").exists():
                continue
            row = find_sample(folder, key.crawl, key.segment, sample_id)
            if row is not None:
                yield Step(asset, "indexed", f"as row {row}")

    def _absent(self, stage: str, asset: str, key: SegmentKey, told: Sequence[str] = ()) -> Step:
        if not self._manifest(asset, key):
            return Step(stage, "not made", f"{asset} of {key} is not in the lake")
        return Step(
            stage,
            "not there",
            f"{asset} of {key} does not hold it: one of the two was made anew since",
            self._by(asset, key, told),
        )

    # Reading

    def _row(
        self, asset: str, key: SegmentKey, where: str, value: Any, pattern: str | None = None
    ) -> Row | None:
        """The first row of a partition that meets a condition."""
        if pattern is None:
            pattern, _ = _FILES.get(asset, _FILES[_MAIN])
        return self._first(sorted(self._lake.folder(asset, key).glob(pattern)), where, value)

    def _first(self, files: Sequence[Path], where: str, *values: Any) -> Row | None:
        there = [str(path) for path in files if path.exists()]
        if not there:
            return None
        cursor = self._connection.execute(
            "select *, file_row_number from read_parquet(?, filename = true, "
            "file_row_number = true, hive_partitioning = false, union_by_name = true) "
            f"where {where} limit 1",
            [there, *values],
        )
        row = cursor.fetchone()
        names = [column[0] for column in cursor.description or ()]
        return dict(zip(names, row, strict=True)) if row else None

    def _files(self, asset: str, pattern: str) -> dict[str, SegmentKey]:
        """The files of all of an asset's partitions, and the segment of each."""
        return {
            str(path): key
            for key in self._lake.segments(asset)
            for path in sorted(self._lake.folder(asset, key).glob(pattern))
        }

    def _manifest(self, asset: str, key: SegmentKey) -> Manifest | None:
        """None if the partition is not published."""
        return self._lake.manifest(asset, key) if self._lake.has(asset, key) else None

    def _by(self, asset: str, key: SegmentKey, told: Sequence[str] = ()) -> str:
        manifest = self._manifest(asset, key)
        if not manifest:
            return ""
        options = manifest.metadata.get("options", {})
        rules = ", ".join(f"{name} {_plain(options[name])}" for name in told if name in options)
        made = f"code {manifest.code_version}, made {manifest.started[:19]}"
        run = f", run {manifest.run_id[:8]}" if manifest.run_id else ""
        return f"{rules + '; ' if rules else ''}{made}{run}"


def _plain(value: object) -> str:
    return "/".join(map(str, value)) or "any" if isinstance(value, list) else str(value)


def _refusal(scored: Row, made: Mapping[str, Any]) -> tuple[str, str]:
    """(reason, its meaning): the recipe that the subset was made with, asked again of this row."""
    if "options" not in made:
        return "not kept", "and its manifest does not tell the recipe"
    table = pa.Table.from_pylist([dict(scored)], schema=schemas.SCORED)
    recipe = Recipe.model_validate(made["options"])
    _, counts = choose(table, recipe, made["threshold"])
    for reason in counts.rejects:
        told = REASONS["subset"][reason]
        return reason, f"{told}: {recipe.where}" if reason == "predicate" else told
    return "not there", "though its recipe would take it: the scores were made anew since"


def _examples(lake: LocalLake, question: _Question) -> list[str]:
    """Remarks on links that became no pair and are among the examples that a manifest keeps."""
    remarks = []
    partitions = ((asset, key) for asset in lake.assets("*") for key in lake.segments(asset))
    for asset, key in partitions:
        for counts in lake.manifest(asset, key).counts:
            for reason, examples in counts.examples.items():
                if any(
                    example.split()[:1] == [url] for example in examples for url in question.urls
                ):
                    meaning = REASONS[counts.stage][reason]
                    remarks.append(f"{key}, stage {counts.stage}: {reason} ({meaning})")
    return remarks
