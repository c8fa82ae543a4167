"""What every asset does around its stage: inputs, staging, checks, publishing, metadata."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import dagster as dg
from pydantic import BaseModel

from laion_assets.defs import checks
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import manifest_metadata, picture, table_metadata, uri_of
from laion_assets.defs.partitions import segment_key
from laion_assets.errors import TransientError
from laion_assets.files import atomic_path
from laion_assets.funnel import StageCounts
from laion_assets.lake import (
    MANIFEST,
    DamagedFilesError,
    Lake,
    Manifest,
    NotPublishedError,
    Staging,
    link_others,
)
from laion_assets.layout import (
    LOOKUP_FILES,
    PICTURE_FILES,
    PICTURES,
    SegmentKey,
    is_by_segment,
    partition_of,
)
from laion_assets.lookup.find import MADE_OF
from laion_assets.options import versioned

logger = logging.getLogger(__name__)

_NOT_TAKEN_OVER: Final = (LOOKUP_FILES, PICTURE_FILES)
"""Files of a partition that no other is made of."""
_OTHERS: Final = ".others"
"""Folder, in staging, of the files of the published version that are not damaged."""
_DAMAGED_SHOWN: Final = 20
_SET_ASIDE: Final = (
    "set the partition aside (`laion-assets verify {asset} --set-aside`) and materialize it again: "
    "nothing of it is taken over then, and its pairs get other keys"
)


class InputsChangedError(TransientError):
    """An upstream partition was replaced while this one was made of it."""


def key_of(context: dg.AssetExecutionContext) -> SegmentKey:
    return segment_key(context.partition_key)


@dataclass
class Publication:
    """One partition of an asset: first in the making, then published.

    In the block of :func:`publishing` the stage fills :attr:`out`; behind it, :meth:`result` tells
    Dagster what was published.
    """

    context: dg.AssetExecutionContext
    store: Lake
    asset: str
    key: SegmentKey | None
    staging: Staging
    _outcomes: list[checks.Outcome] = field(default_factory=list)
    _inputs: dict[str, Path] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    """What is damaged of the published version, and not taken over: file -> its problem."""

    @property
    def out(self) -> Path:
        """The partition's files: the staging folder in the block, the published one behind it."""
        if self.staging.manifest is None:
            return self.staging.path
        return self._published

    @cached_property
    def _published(self) -> Path:
        # In an object store's lake, each look at a folder asks the store.
        return self.store.folder(self.asset, self.key)

    @property
    def rows(self) -> list[Path]:
        """The parquet files in :attr:`out` that have the asset's rows, sorted."""
        return partition_of(self.asset).rows.paths(self.out)

    def input(self, asset: str, unread: Sequence[str] = ()) -> Path:
        """Folder of what ``asset`` has published: for the same segment, or as a whole.

        Its files are compared with their digests first, but for those whose names match a pattern
        of ``unread``. Raises :class:`~laion_assets.lake.DamagedFilesError`: what is made of damage
        looks sound.
        """
        if asset not in self._inputs:
            self._inputs[asset] = whole_input(self.store, asset, self._key_of(asset), unread)
        return self._inputs[asset]

    def earlier(self, names: str = "*", kept: Sequence[str] = ()) -> Path | None:
        """Folder of the published version of this partition, whose parts may be taken over; None if
        it is not published.

        Files whose names match are compared with their digests. Damaged ones are not in the folder,
        so that they are made again; the partition's metadata says which these were. Raises
        :class:`~laion_assets.lake.DamagedFilesError` if one whose name matches a pattern of
        ``kept`` is damaged: nothing could be made again as it was without it.
        """
        if not self.store.has(self.asset, self.key):
            return None
        whole = self.is_whole(names)
        lost = {
            name: problem
            for name, problem in self.damaged.items()
            if any(fnmatch(name, pattern) for pattern in kept)
        }
        if lost:
            raise DamagedFilesError(
                f"the earlier {self.asset}", lost, _SET_ASIDE.format(asset=self.asset)
            )
        # The comparison has fetched what is sound of it.
        folder = self.store.folder(self.asset, self.key, MANIFEST)
        self.staging.linked_from.append(folder)
        if whole:
            return folder
        others = self.staging.path / _OTHERS
        shutil.rmtree(others, ignore_errors=True)
        link_others(folder, Manifest.read(folder), self.damaged, others)
        return others

    def is_whole(self, names: str) -> bool:
        """Whether no file of the published version is damaged, of those whose names match."""
        found = earlier_damage(self.store, self.asset, self.key, names)
        self.damaged |= found
        return not found

    def input_rows(self, asset: str) -> list[Path]:
        """The parquet files that have the rows of :meth:`input`, sorted."""
        return partition_of(asset).rows.paths(self.input(asset))

    def manifest(self, asset: str) -> Manifest:
        """Manifest of what ``asset`` has published: for the same segment, or as a whole."""
        return self.store.manifest(asset, self._key_of(asset))

    def kept(self, asset: str) -> int:
        """How many subjects the stage of ``asset`` kept."""
        stage = partition_of(asset).stage
        assert stage is not None, f"{asset} counts no stage"
        return self.manifest(asset).stage(stage).kept

    def _key_of(self, asset: str) -> SegmentKey | None:
        return self.key if is_by_segment(asset) else None

    def require(self, *outcomes: checks.Outcome) -> None:
        """Record what checks found. Raises ``dagster.Failure`` if one stands in the way."""
        checks.require(*outcomes)
        self._outcomes += outcomes

    def picture(self, name: str, image: bytes, alt: str) -> dg.MarkdownMetadataValue:
        """Put a PNG or JPEG among the partition's files, and return a small view of it.

        To be called before the partition is published. Pictures are no content: two partitions that
        differ in them alone have the same data version.
        """
        kind = "png" if image.startswith(b"\x89PNG") else "jpg"
        file = f"{PICTURES}/{name}.{kind}"
        with atomic_path(self.staging.path / file) as beside:
            beside.write_bytes(image)
        return picture(image, alt, f"{self.uri}/{file}")

    def view(self, path: Path, alt: str = "") -> dg.MarkdownMetadataValue:
        """A small view of a PNG or JPEG that is in :attr:`out`; ``alt``: by default its name."""
        name = path.relative_to(self.out).as_posix()
        return picture(path.read_bytes(), alt or path.stem, f"{self.uri}/{name}")

    @property
    def uri(self) -> str:
        """Address of the published partition."""
        return uri_of(str(self.store), self.asset, self.key)

    def result(self, **shown: Any) -> dg.MaterializeResult:
        """The result of the published partition. ``shown``: what people see of it beside counts."""
        manifest = self.staging.published
        for counts in manifest.counts:
            self.context.log.info(_counted(counts))
        metadata = manifest_metadata(manifest, self.out, self.uri) | {
            "resumed": self.staging.resumed
        }
        metadata |= table_metadata(self.asset, self.out)
        # As metadata of the result, Dagster would record all of it twice: with the step's output.
        self.context.add_asset_metadata(metadata | shown)
        return dg.MaterializeResult(
            asset_key=self.context.asset_key,
            data_version=dg.DataVersion(manifest.data_version),
            check_results=[found.for_dagster(self.asset) for found in self._outcomes],
        )


def whole_input(
    store: Lake, asset: str, key: SegmentKey | None, unread: Sequence[str] = ()
) -> Path:
    """As :meth:`Publication.input`, for a stage that reads before it publishes."""
    return store.whole(asset, key, but=[*_NOT_TAKEN_OVER, *unread])


def earlier_damage(
    store: Lake, asset: str, key: SegmentKey | None, names: str = "*"
) -> dict[str, str]:
    """What is damaged of a published version, of files whose names match: file -> its problem."""
    found = store.damaged(asset, key, names, _NOT_TAKEN_OVER)
    for name, problem in found.items():
        logger.warning(f"published {asset}: {name} {problem}")
    return found


def _counted(counts: StageCounts) -> str:
    rejects = ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.rejects.items()))
    line = f"{counts.stage}: {counts.n_in:,} in, {counts.kept:,} kept"
    return f"{line}; {rejects}" if rejects else line


@contextmanager
def publishing(
    context: dg.AssetExecutionContext,
    lake: Lake,
    *,
    upstream: Sequence[str] = (),
    made_of: Mapping[str, str] | None = None,
    options: BaseModel | None = None,
    stage_judges_parts: bool = False,
) -> Iterator[Publication]:
    """Stage and publish the run's partition of this asset.

    ``upstream``: the assets that it is made of, by their partition for the same segment if they
    have such. ``made_of``: other inputs and their versions. ``options``: those in effect for this
    run, which may differ from the ones hashed into the code version. ``stage_judges_parts``: as
    :meth:`Lake.publish` has it.

    Raises :class:`InputsChangedError` if an upstream partition was replaced meanwhile; nothing is
    published then.
    """
    name = context.asset_key.path[-1]
    # Of the asset, not of the run: a run over a segment may hold assets without partitions.
    key = key_of(context) if context.assets_def.partitions_def is not None else None
    version = context.assets_def.code_versions_by_key[context.asset_key] or ""
    of = {asset: key if is_by_segment(asset) else None for asset in upstream}
    before = {asset: lake.manifest(asset, its_key).data_version for asset, its_key in of.items()}
    inputs = {**before, **(made_of or {})}
    if options is not None:
        inputs["options"] = code_version(0, options)
    with lake.publish(
        name,
        key,
        inputs=inputs,
        code_version=version,
        run_id=context.run.run_id,
        stage_judges_parts=stage_judges_parts,
    ) as staging:
        made = Publication(context, lake, name, key, staging)
        yield made
        shutil.rmtree(staging.path / _OTHERS, ignore_errors=True)
        staging.not_content = (*staging.not_content, LOOKUP_FILES, PICTURE_FILES)
        staging.metadata = {**staging.metadata, MADE_OF: before}
        if options is not None:
            staging.metadata = {**staging.metadata, "options": versioned(options)}
        if made.damaged:
            # All were made again; how many, and the first of them.
            staging.metadata = {
                **staging.metadata,
                "damaged_files_made_again": len(made.damaged),
                "damaged_files": sorted(made.damaged)[:_DAMAGED_SHOWN],
            }
        for asset, data_version in before.items():
            if lake.manifest(asset, of[asset]).data_version != data_version:
                raise InputsChangedError(
                    f"{asset} was replaced while {name} was being built: materialize {name} again"
                )


def versions_of(
    lake: Lake, assets: Sequence[str], keys: Iterable[SegmentKey]
) -> dict[str, dict[str, str]]:
    """The data versions of segments that have all of the assets, by segment and asset."""
    return {
        str(key): {asset: lake.manifest(asset, key).data_version for asset in assets}
        for key in keys
        if all(lake.has(asset, key) for asset in assets)
    }


@contextmanager
def reading(
    lake: Lake, assets: Sequence[str], versions: Mapping[str, Mapping[str, str]]
) -> Iterator[None]:
    """Read, in the block, what :func:`versions_of` returned the versions of.

    Raises :class:`InputsChangedError` if a segment was replaced in the block, whichever error that
    led to: what is read of two versions need not fit together.
    """
    message = "a segment was replaced meanwhile: materialize the asset again"
    try:
        yield
    except Exception as error:
        if not are_still(lake, assets, versions):
            raise InputsChangedError(message) from error
        raise
    if not are_still(lake, assets, versions):
        raise InputsChangedError(message)


def are_still(lake: Lake, assets: Sequence[str], versions: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the segments are present with the versions that :func:`versions_of` returned."""
    return versions_of(lake, assets, map(SegmentKey.parse, versions)) == versions


def named_versions(versions: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What :func:`versions_of` returned, as inputs of :func:`publishing`: by asset and segment."""
    return {
        f"{asset} {key}": version
        for key, of_key in versions.items()
        for asset, version in of_key.items()
    }


def made_of_the_same(made: Publication) -> bool:
    """Whether the published version was made of the same inputs with the same code and options."""
    with suppress(NotPublishedError):
        published = made.store.manifest(made.asset, made.key)
        return published.fingerprint == made.staging.fingerprint
    return False
