"""The record of a partition, in the making and published, and the errors of those who want one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from laion_assets.errors import TransientError
from laion_assets.funnel import StageCounts
from laion_assets.lake.content import MANIFEST, digest


class LakeError(RuntimeError):
    """The lake cannot do what was asked; the message says what and why."""


class NotPublishedError(LakeError):
    """A partition that is needed has not been materialized."""


class DamagedManifestError(LakeError, ValueError):
    """A manifest is not what it must be; the message names the file."""


class PartitionBusyError(LakeError, TransientError):
    """Another process is making the same partition."""


def _of_files(records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    for record in records:
        for key, kind in (("name", str), ("bytes", int), ("sha256", str)):
            if not isinstance(record.get(key), kind):
                raise ValueError(f"a file without {key}: {str(record)[:200]}")
    return records


@dataclass(frozen=True)
class Manifest:
    """The record of a published partition: where it came from, and what it holds."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    asset: str
    crawl: str | None
    segment: str | None
    run_id: str
    code_version: str
    fingerprint: str
    data_version: str
    started: str
    """ISO 8601, in UTC."""
    seconds: float
    bytes: int
    files: Annotated[Sequence[Mapping[str, Any]], AfterValidator(_of_files)]
    """``name`` (relative to the partition's folder), ``bytes`` and ``sha256`` of each file; of a
    parquet file ``rows`` and ``columns``, too, unless it is older than these."""
    counts: Sequence[StageCounts]
    metadata: Mapping[str, Any]
    seal: str = ""
    """Digest of all the rest, see :meth:`sealed`; empty if it is older than these."""

    def sealed(self) -> Manifest:
        """Return the manifest with its seal: a changed byte of it breaks that."""
        return replace(self, seal=self._seal())

    @property
    def is_whole(self) -> bool:
        """Whether it is as it was sealed. It costs more than reading it."""
        return not self.seal or self.seal == self._seal()

    def _seal(self) -> str:
        return digest({**self.to_json(), "seal": ""})

    def to_json(self) -> dict[str, Any]:
        value = dict(self.__dict__)
        value["counts"] = [counts.to_json() for counts in self.counts]
        return value

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """The manifest of which :meth:`to_json` is ``value``. Raises ``ValueError``."""
        try:
            counts = [StageCounts.from_json(counts) for counts in value["counts"]]
            return _MANIFEST.validate_python({**value, "counts": counts})
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it is no manifest: {error!r}") from error

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest in a partition's folder.

        Raises ``FileNotFoundError``, and :class:`DamagedManifestError`.
        """
        path = folder / MANIFEST
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise DamagedManifestError(f"{path} is damaged: {error}") from error

    def stage(self, name: str) -> StageCounts:
        for counts in self.counts:
            if counts.stage == name:
                return counts
        raise KeyError(f"{self.asset} counted no stage {name!r}")


_MANIFEST: Final = TypeAdapter(Manifest)


@dataclass
class Staging:
    """A partition in the making: the stage fills ``path``, the asset sets the other fields.

    It does not assume that ``path`` is empty (``resumed``), that all files are new
    (``linked_from``), or that equal content means equal bytes (``data_version``).
    """

    path: Path
    fingerprint: str
    resumed: bool
    """Whether ``path`` holds finished parts of an earlier run."""
    counts: list[StageCounts] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    not_content: tuple[str, ...] = ()
    """Patterns of names of files that record how a run went (times, run ids), not what it made.
    They are published, and the data version does not depend on them."""
    linked_from: list[Path] = field(default_factory=list)
    """Published folders that files may be hard links into; their digests are already known."""
    digests: Mapping[Path, str] = field(default_factory=dict)
    """SHA-256 of files that the stage has made reach the disk and read back itself."""
    data_version: str | None = None
    """Replaces the digest of the files where equal content does not have equal bytes."""
    manifest: Manifest | None = None
    """Set once the partition has been published."""

    @property
    def published(self) -> Manifest:
        if self.manifest is None:
            raise LakeError(f"{self.path} has not been published")
        return self.manifest
