"""Write a release: resumable file by file, published as a whole, never changed afterwards."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import pyarrow.parquet as pq

from laion_assets import __version__
from laion_assets.clip.options import public_key
from laion_assets.files import fsync_directory, locked, sha256_file, write_json, write_text
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.subset import MODALITIES
from laion_assets.lake import Lake
from laion_assets.layout import (
    CATALOG,
    SegmentKey,
)
from laion_assets.release.croissant import croissant
from laion_assets.release.files import (
    cells_to_look_into,
    index_codec,
    index_name,
    metadata_name,
    vectors_name,
    write_faiss,
    write_metadata,
    write_rows,
    write_vectors,
)
from laion_assets.release.manifest import CROISSANT, MANIFEST, README, SUMS, read_json
from laion_assets.release.plan import SUBSET, Plan, ReleaseError, plan
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.stats.catalog import open_catalog
from laion_assets.stats.report import dataset_card
from laion_assets.stats.report_data import Facts, LeftOut, gather
from laion_assets.stats.segment import ROWS_OF_SUBSET, of_subset
from laion_assets.tables import part_path
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

_STATE: Final = ".state.json"
_SIZES: Final = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
)

LICENSES: Final = {
    "cc-by-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "cc-by-sa-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "odc-by": "https://opendatacommons.org/licenses/by/1-0/",
}
"""URL of each licence by its name on the Hugging Face hub."""


@dataclass(frozen=True)
class About:
    """Statements of a release about itself.

    ``license_id``, one of :data:`LICENSES`, is the licence of the metadata; the images belong to
    their owners. ``contact`` is where to request a removal.
    """

    name: str = "LAION Assets release"
    url: str = "https://example.org/"
    license_id: str = "cc-by-4.0"
    version: str = "1.0.0"
    contact: str = ""

    @property
    def license(self) -> str:
        return LICENSES[self.license_id]


def export(
    lake: Lake,
    out: Path,
    *,
    files: int = 32,
    about: About | None = None,
    index: IndexOptions | None = None,
) -> dict[str, Any]:
    """Write the lake's subset as a release to the folder ``out``; return its manifest.

    Rows that a removal list or blocklist names are left out, even if their segment has not been
    rebuilt yet. A killed export is resumed by the next call; ``out`` exists only once it is
    complete. The same lake gives the same files, except for the date.

    Raises :class:`ReleaseError` if there is nothing to release, if vectors or codec are of several
    models, or if the statistics are of other partitions. Raises it, too, if ``out`` holds something
    else, or if a partition or a list changed during the export.

    Args:
        lake: the lake to release from.
        out: the folder of the release.
        files: number of files of metadata, and of embeddings of each modality.
        about: what the release says about itself.
        index: options of the indices; None writes no indices.
    """
    about = about or About()
    catalog = lake.published(CATALOG) / "catalog.duckdb"
    codec = index_codec(lake, index.kind) if index else None
    made_with = {
        "about": about.__dict__,
        "indices": {"kind": index.kind, "codec": codec.id if codec else ""} if index else None,
        CATALOG: lake.manifest(CATALOG).data_version,
    }
    planned = plan(lake, files, made_with)
    if codec and not (
        codec.summary.is_same(planned.model) and codec.summary.d == planned.dimension
    ):
        raise ReleaseError(
            f"the codec is of {codec.summary.title}, width {codec.summary.d}, but the vectors are "
            f"of {planned.model.title}, width {planned.dimension}: materialize index_codec again"
        )
    for reason, n in planned.left_out.items():
        if n:
            logger.info(f"{n:,} samples are left out: {reason}")
    out = out.absolute()
    staging = out.with_name(f".{out.name}.export")
    with locked(
        out.with_name(f".{out.name}.lock"),
        lambda: logger.info(f"waiting: another process exports {out}"),
    ):
        if _is_there(out, planned):
            logger.info(f"{out} is already complete")
            return read_json(out / MANIFEST)
        _prepare(staging, planned)
        facts = _facts(catalog, planned)
        made = _Made(staging, planned.digest)
        _write_data(lake, planned, staging, made)
        if index:
            nprobe = cells_to_look_into(lake, codec)
            for modality in MODALITIES:
                with made.file(index_name(modality), planned.samples) as missing:
                    if missing:
                        logger.info(f"building the {modality} index")
                        kind = index.kind
                        write_faiss(staging, planned.files, modality, codec, kind, nprobe[modality])
        _unchanged(lake, planned)
        manifest = _write_words(staging, planned, facts, about, made)
        staging.rename(out)
        fsync_directory(out.parent)
        (out / _STATE).unlink()
    logger.info(f"{planned.samples:,} samples in {planned.files} files: {out}")
    return manifest


def _is_there(out: Path, planned: Plan) -> bool:
    if not out.exists():
        return False
    if (out / MANIFEST).exists() and read_json(out / MANIFEST).get("digest") == planned.digest:
        # A kill right after the folder was published left the state file there.
        (out / _STATE).unlink(missing_ok=True)
        return True
    raise ReleaseError(f"{out} holds something else: choose another folder, or delete it")


def _prepare(staging: Path, planned: Plan) -> None:
    state = staging / _STATE
    if state.exists() and read_json(state)["digest"] == planned.digest:
        logger.info("resuming an earlier export")
        return
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    write_json(state, {"digest": planned.digest, "files": {}})


class _Made:
    """The finished files, with their entries of the manifest."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder, self._digest = folder, digest
        self.files: dict[str, dict[str, Any]] = read_json(folder / _STATE)["files"]

    @contextmanager
    def file(self, name: str, rows: int | None = None) -> Iterator[bool]:
        """Yield whether the file is missing; the block then writes it, and it is recorded."""
        path = self._folder / name
        if name in self.files and path.exists():
            yield False
            return
        path.parent.mkdir(exist_ok=True)
        yield True
        described: dict[str, Any] = {
            "name": name,
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        self.files[name] = described if rows is None else {**described, "rows": rows}
        write_json(self._folder / _STATE, {"digest": self._digest, "files": self.files})

    def listed(self) -> list[dict[str, Any]]:
        return [self.files[name] for name in sorted(self.files)]


def _write_data(lake: Lake, planned: Plan, staging: Path, made: _Made) -> None:
    progress = Progress("release", "files", planned.files, logger)
    verified: set[SegmentKey] = set()
    for number, (first, stop) in enumerate(planned.bounds()):
        with made.file(metadata_name(number), stop - first) as missing:
            if missing:
                planned.verify(lake, first, stop, verified)
                write_metadata(planned, first, stop, staging / metadata_name(number))
        for modality in MODALITIES:
            name = vectors_name(modality, number)
            with made.file(name, stop - first) as missing:
                if missing:
                    planned.verify(lake, first, stop, verified)
                    write_vectors(planned, modality, first, stop, staging / name)
        progress.advance()


def _facts(catalog: Path, planned: Plan) -> Facts:
    """Gather the statistics of what is released.

    Raises :class:`ReleaseError` unless the catalog's are those of the subset's partitions.
    """
    with open_catalog(catalog) as connection:
        counted = {
            SegmentKey(crawl, segment): (version, code, json.loads(metadata))
            for crawl, segment, version, code, metadata in connection.execute(
                "select crawl, segment, sums.value, code_version, metadata from runs "
                "join sums using (crawl, segment) where asset = ? and kind = ? and stage = ?",
                [SUBSET, *ROWS_OF_SUBSET],
            ).fetchall()
        }
        present = {
            key: (manifest.data_version, manifest.code_version, dict(manifest.metadata))
            for key, manifest in planned.partitions.manifests.items()
        }
        keys = {*counted, *present}
        other = sorted(str(key) for key in keys if counted.get(key) != present.get(key))
        if other:
            raise ReleaseError(
                f"the statistics are not those of the subset's partitions ({', '.join(other[:3])}"
                f"{' and more' if other[3:] else ''}): materialize segment_stats and catalog again"
            )
        return gather(connection, _left_out(planned))


def _left_out(planned: Plan) -> LeftOut | None:
    n = sum(planned.left_out.values())
    if not n:
        return None
    with tempfile.TemporaryDirectory(prefix="laion-assets-export-") as folder:
        slices = [(piece, piece.left_out) for piece in planned.pieces if len(piece.left_out)]
        write_rows(slices, part_path(Path(folder), 0), planned.schema)
        return LeftOut(n, of_subset(Path(folder)))


def _unchanged(lake: Lake, planned: Plan) -> None:
    lists = read_lists(lake.current(*FOLDERS))
    if not planned.partitions.unchanged(lake) or lists.digests != planned.lists:
        raise ReleaseError(
            "a segment was rebuilt or a list changed during the export: export again"
        )


def _write_words(
    staging: Path,
    planned: Plan,
    facts: Facts,
    about: About,
    made: _Made,
) -> dict[str, Any]:
    """Write the files that describe the data files."""
    published = datetime.now(UTC).date().isoformat()
    described = croissant(
        name=about.name,
        description=(
            f"{planned.samples:,} links to images with their alt texts, from "
            f"{facts.segments:,} segments of Common Crawl, kept by {facts.recipe or 'a recipe'} "
            f"with the CLIP model {planned.model.title}."
        ),
        url=about.url,
        license=about.license,
        version=about.version,
        published=published,
        files=made.listed(),
        columns=planned.schema,
    )
    indexed = planned.made_with["indices"] is not None
    words: Mapping[str, Callable[[Path], None]] = {
        README: lambda path: write_text(path, _readme(planned, facts, about, indexed)),
        CROISSANT: lambda path: write_json(path, described),
    }
    for name, write in words.items():
        # Always rewritten: they are cheap, and an earlier export may have written an earlier date.
        made.files.pop(name, None)
        with made.file(name):
            write(staging / name)
    sums = "".join(f"{item['sha256']}  {item['name']}\n" for item in made.listed())
    write_text(staging / SUMS, sums)
    manifest = {
        "digest": planned.digest,
        "name": about.name,
        "version": about.version,
        "published": published,
        "made_by": f"laion-assets {__version__}",
        "samples": planned.samples,
        "left_out": dict(planned.left_out),
        "model": public_key(planned.model.model),
        "model_version": planned.model.model_version,
        "recipe": facts.recipe,
        "threshold": facts.threshold,
        "dimension": planned.dimension,
        "columns": pq.read_schema(staging / metadata_name(0)).names,
        "heads": dict(planned.heads),
        "indices": planned.made_with["indices"],
        "partitions": planned.partitions.versions,
        "lists": dict(planned.lists),
        "files": made.listed(),
    }
    write_json(staging / MANIFEST, manifest)
    return manifest


def _readme(planned: Plan, facts: Facts, about: About, indexed: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laion_assets.release"),
        autoescape=False,  # noqa: S701 - Markdown; what strangers wrote is in no template
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["count"] = "{:,}".format
    size = next((name for limit, name in _SIZES if planned.samples < limit), "n>1T")
    return environment.get_template("README.md").render(
        name=about.name,
        license_id=about.license_id,
        languages=[language for language in facts.spoken if len(language) in (2, 3)],
        size=size,
        card=dataset_card(facts, about.contact),
        total=planned.samples,
        files=planned.files,
        index=indexed,
    )
