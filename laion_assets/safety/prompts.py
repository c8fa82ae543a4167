"""Category prompts: versioned data files, and their embeddings by a model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError, model_validator

from laion_assets.safety.minors import WordList, load_words

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

HERE: Final = Path(__file__).with_name("prompts")


class PromptsError(ValueError):
    """A prompts file is missing or invalid; the message says which and why."""


class _Strict(BaseModel, frozen=True, extra="forbid"):
    pass


class Category(_Strict):
    text: str
    nsfw: bool


class AgeCategory(_Strict):
    text: str
    underage: bool


class AnimalCategory(_Strict):
    text: str
    animal: bool


class Prompts(_Strict):
    """Three sets of prompts. An image has the categories whose embeddings are nearest to it."""

    name: str
    version: int
    about: str
    source: str
    categories: tuple[Category, ...]
    underage: tuple[AgeCategory, ...]
    animals: tuple[AnimalCategory, ...]
    words: str = "minors"
    """Word list that names minors: the name of a shipped one, or a file."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if min(len(self.categories), len(self.underage)) < 2 or not self.animals:
            raise ValueError(
                "at least two categories, two age categories and one animal category are needed"
            )
        return self

    @property
    def digest(self) -> str:
        """Digest, 16 hex digits, of all prompts, flags and words: part of the scores' version."""
        content = self.model_dump(mode="json", exclude={"about", "source", "words"})
        content["words"] = load_words(self.words).words
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def load_prompts(name_or_path: str) -> Prompts:
    """Read shipped prompts by name, or a JSON file. Raises :class:`PromptsError`."""
    shipped = HERE / f"{name_or_path}.json"
    path = shipped if shipped.is_file() else Path(name_or_path)
    try:
        return Prompts.model_validate_json(path.read_bytes())
    except OSError as error:
        known = ", ".join(sorted(found.stem for found in HERE.glob("*.json")))
        raise PromptsError(
            f"no prompts {name_or_path!r}: it is neither shipped ({known}) nor a file"
        ) from error
    except ValidationError as error:
        raise PromptsError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Ranked:
    """One set of categories, embedded by a model.

    ``texts`` are the k prompts, ``flags``, bool (k,), say which of them are of the flagged kind,
    and ``vectors``, float32 (k, dim), have unit length.
    """

    texts: tuple[str, ...]
    flags: NDArray[np.bool_]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Categories:
    """Everything that tagging needs besides the image embeddings and the texts."""

    nsfw: Ranked
    underage: Ranked
    animals: Ranked
    words: WordList

    @property
    def dim(self) -> int:
        return int(self.nsfw.vectors.shape[1])

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(k, dim): those of all prompts, as :func:`categories_of` takes them."""
        return np.concatenate([one.vectors for one in (self.nsfw, self.underage, self.animals)])


def category_embeddings(prompts: Prompts, model: ClipModel) -> Categories:
    """Embed the prompts with the model that embedded the images."""
    sets = (prompts.categories, prompts.underage, prompts.animals)
    vectors = [model.encode_texts([row.text for row in rows]) for rows in sets]
    return categories_of(prompts, np.concatenate(vectors))


def categories_of(prompts: Prompts, vectors: NDArray[np.float32]) -> Categories:
    """Categories whose prompts have been embedded. ``vectors``: float32 (k, dim), those of the NSFW
    categories, then of the ages, then of the animals. Raises ``ValueError`` for another number."""
    sizes = [len(prompts.categories), len(prompts.underage), len(prompts.animals)]
    if vectors.ndim != 2 or len(vectors) != sum(sizes):
        raise ValueError(f"{sum(sizes)} prompts, but vectors of the shape {vectors.shape}")
    nsfw, underage, animals = np.split(vectors, np.cumsum(sizes)[:-1])

    def ranked(rows: tuple[Any, ...], flag: str, embedded: NDArray[np.float32]) -> Ranked:
        flags = np.array([getattr(row, flag) for row in rows], dtype=np.bool_)
        return Ranked(tuple(row.text for row in rows), flags, embedded)

    return Categories(
        nsfw=ranked(prompts.categories, "nsfw", nsfw),
        underage=ranked(prompts.underage, "underage", underage),
        animals=ranked(prompts.animals, "animal", animals),
        words=load_words(prompts.words),
    )
