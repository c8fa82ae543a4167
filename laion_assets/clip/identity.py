"""Identity of a model: by its version once it is loaded, by its files before.

What was made with a model carries its version, taken from what it was made of and never from
today's settings: a name or a folder may stand for other weights tomorrow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ValidationError

from laion_assets.clip.folder import model_files
from laion_assets.clip.options import LOCAL, ClipOptions, public_key
from laion_assets.files import sha256_file

WEIGHTS: Final = Path(__file__).with_name("weights")
"""Folder of the models shipped with the package."""


class UnknownModelError(ValueError):
    """What was made with a model does not say which; the message says what to do."""


class ModelIdentity(BaseModel, frozen=True):
    """A model as what was made with it records it."""

    model: str
    """`MODEL/PRETRAINED`, as people name it."""
    model_version: str
    """Digest of weights, preprocessing and tokens (:attr:`ClipModel.version`)."""

    @classmethod
    def recorded(cls, metadata: Mapping[str, Any], where: object) -> Self:
        """Read what the metadata of ``where`` records. Raises :class:`UnknownModelError`."""
        try:
            return cls.model_validate(metadata)
        except ValidationError as error:
            lacking = ", ".join(sorted({str(found["loc"][0]) for found in error.errors()}))
            raise UnknownModelError(
                f"{where} does not record {lacking}, as it does now: make it again"
            ) from error

    @property
    def identity(self) -> ModelIdentity:
        """The identity alone, without what a subclass records beside it."""
        return ModelIdentity(model=self.model, model_version=self.model_version)

    @property
    def title(self) -> str:
        """Name and version, as anybody may read them."""
        return f"{public_key(self.model)} (version {self.model_version})"

    def is_same(self, other: ModelIdentity) -> bool:
        """Whether vectors of both can be compared, whatever the models are called."""
        return self.model_version == other.model_version


class SeveralModelsError(ValueError):
    """Things of several models cannot be used as one; the message names the models."""


_PLACES_NAMED: Final = 3


def the_one(models: Iterable[tuple[object, ModelIdentity]], of: object) -> ModelIdentity | None:
    """The one model of all, under one of its names; None if there are none.

    ``models``: places, and the model of what is there. Raises :class:`SeveralModelsError`, whose
    message begins with ``of`` and names each model with some of its places.
    """
    found: dict[str, ModelIdentity] = {}
    places: dict[str, list[str]] = {}
    for place, model in models:
        found.setdefault(model.model_version, model.identity)
        places.setdefault(model.model_version, []).append(str(place))
    if len(found) > 1:
        named = "; ".join(
            sorted(f"{model.title}: {_some(places[key])}" for key, model in found.items())
        )
        raise SeveralModelsError(f"{of} of several models cannot be used as one: {named}")
    return next(iter(found.values()), None)


def _some(places: Sequence[str]) -> str:
    more = len(places) - _PLACES_NAMED
    return ", ".join(sorted(places)[:_PLACES_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def files_identity(options: ClipOptions) -> str:
    """What the settings' model is before it is loaded, for the code version of what it makes.

    A tag of open_clip or of a hub names its weights for good. A file, a folder, or a model shipped
    with the package may change under the same name, or be moved: the content counts, not the path.
    """
    if options.model.startswith(LOCAL):
        digest = hashlib.sha256()
        for path in model_files(Path(options.model.removeprefix(LOCAL))):
            digest.update(f"{path.name} {_digest_of(path)} ".encode())
        return f"{LOCAL}{digest.hexdigest()[:16]}"
    if options.weights and Path(options.weights).is_file():
        # The tag beside it decides activation and preprocessing.
        return f"{options.key} {_digest_of(Path(options.weights))}"
    shipped = WEIGHTS / f"{options.pretrained}.safetensors"
    if shipped.is_file():
        return f"{options.key} {_digest_of(shipped)}"
    if Path(options.pretrained).is_file():
        return f"{options.model} {_digest_of(Path(options.pretrained))}"
    return options.key


def _digest_of(path: Path) -> str:
    about = path.stat()
    return _digest(path, about.st_mtime_ns, about.st_size)


@cache
def _digest(path: Path, _changed: int, _size: int) -> str:
    return sha256_file(path)[:16]
