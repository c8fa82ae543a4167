"""Asking an index by text or by image file, with the model that made its vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from laion_assets.clip.model import ClipModel
from laion_assets.clip.shards import IMAGE_FORMATS, NOT_AN_IMAGE
from laion_assets.knn.files import IndexSummary
from laion_assets.knn.search import Hit, Searcher
from laion_assets.knn.subset import Modality
from laion_assets.lake import LocalLake
from laion_assets.segments import SegmentKey

_SUBSET: Final = "filtered_subset"


class QueryError(ValueError):
    """The question cannot be asked of this index; the message says why."""


def lake_beside(index_dir: Path) -> LocalLake | None:
    """The lake of an index: ``<lake>/search_index`` or ``<lake>/knn_index/crawl=.../segment=...``;
    None for any other folder.
    """
    lakes = map(LocalLake.at, index_dir.absolute().parents)
    return next((lake for lake in lakes if lake.folder(_SUBSET).is_dir()), None)


def subset_beside(index_dir: Path) -> Callable[[str, str], Path]:
    """Where a lake keeps the subset of an index. Raises :class:`QueryError` outside a lake."""
    lake = lake_beside(index_dir)
    if lake is None:
        raise QueryError(f"{index_dir} is not in a lake: name the subset that it was made of")
    return lambda crawl, segment: lake.folder(_SUBSET, SegmentKey(crawl, segment))


def searcher(index_dir: Path, subset: Path | None = None) -> Searcher:
    """``subset`` is needed for an index outside a lake."""
    return Searcher(index_dir, (lambda *_: subset) if subset else subset_beside(index_dir))


def _same_model(index_dir: Path, model: ClipModel) -> None:
    made_with = IndexSummary.read(index_dir).model
    if made_with != model.key:
        raise QueryError(f"{index_dir} was made with {made_with}, not with {model.key}")


def search_text(
    index_dir: Path,
    text: str,
    model: ClipModel,
    k: int,
    over: Modality = "image",
    subset: Path | None = None,
) -> list[Hit]:
    """The ``k`` samples whose image (or text) is nearest to the text."""
    _same_model(index_dir, model)
    return searcher(index_dir, subset).search(model.encode_texts([text])[0], k, over)


def search_image(
    index_dir: Path,
    image: Path,
    model: ClipModel,
    k: int,
    over: Modality = "image",
    subset: Path | None = None,
) -> list[Hit]:
    """The ``k`` samples whose image (or text) is nearest to the image file.

    Raises :class:`QueryError` if the file is no JPEG, PNG or WebP.
    """
    from PIL import Image

    _same_model(index_dir, model)
    try:
        with Image.open(image, formats=IMAGE_FORMATS) as opened:
            decoded = opened.convert("RGB")
    except NOT_AN_IMAGE as error:
        raise QueryError(f"{image} is not a JPEG, PNG or WebP that can be read: {error}") from error
    vector = model.encode_images([decoded])[0]
    return searcher(index_dir, subset).search(vector, k, over)
