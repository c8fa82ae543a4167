"""Search an index by a text or an image file, with the model that made its vectors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from laion_assets.clip.model import ClipModel
from laion_assets.clip.shards import IMAGE_FORMATS, NOT_AN_IMAGE
from laion_assets.knn.files import IndexSummary
from laion_assets.knn.search import Hit, Searcher
from laion_assets.knn.subset import Modality, SubsetOf
from laion_assets.lake import LocalLake
from laion_assets.layout import FILTERED_SUBSET


class QueryError(ValueError):
    """An index cannot answer the query; the message says why."""


def lake_beside(index_dir: Path) -> LocalLake | None:
    """Return the lake that an index folder lies in; None if it lies in none.

    That is an index at ``<lake>/search_index`` or ``<lake>/knn_index/crawl=.../segment=...``.
    """
    lakes = map(LocalLake.at, index_dir.absolute().parents)
    return next((lake for lake in lakes if lake.folder(FILTERED_SUBSET).is_dir()), None)


def subset_beside(index_dir: Path) -> SubsetOf:
    """Find an index's subsets in its lake. Raises :class:`QueryError` outside a lake."""
    lake = lake_beside(index_dir)
    if lake is None:
        raise QueryError(f"{index_dir} is not in a lake: name the subset that it was built from")
    return partial(lake.folder, FILTERED_SUBSET)


def searcher(index_dir: Path, subset: Path | None = None) -> Searcher:
    """Open an index for search; ``subset`` is needed outside a lake."""
    return Searcher(index_dir, subset or subset_beside(index_dir))


def _refuse(index_dir: Path, model: ClipModel, over: Modality) -> None:
    made_with = IndexSummary.read(index_dir)
    if not any(over in run.modalities for run in made_with.runs):
        raise QueryError(
            f"{index_dir} is of images without captions: there are no {over}s to search over"
        )
    if not made_with.is_same(model.identity):
        raise QueryError(
            f"{index_dir} was built with the CLIP model {made_with.title}, "
            f"the query uses {model.identity.title}"
        )


def search_text(
    index_dir: Path,
    text: str,
    model: ClipModel,
    k: int,
    over: Modality = "image",
    subset: Path | None = None,
) -> list[Hit]:
    """The ``k`` samples whose image (or text) is nearest to the text.

    Raises :class:`QueryError` for an index of another model, or without what is searched ``over``.
    """
    _refuse(index_dir, model, over)
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

    Raises :class:`QueryError` if the file is not a readable JPEG, PNG or WebP.
    """
    from PIL import Image

    _refuse(index_dir, model, over)
    try:
        with Image.open(image, formats=IMAGE_FORMATS) as opened:
            decoded = opened.convert("RGB")
    except NOT_AN_IMAGE as error:
        raise QueryError(f"{image} is not a readable JPEG, PNG or WebP: {error}") from error
    vector = model.encode_images([decoded])[0]
    return searcher(index_dir, subset).search(vector, k, over)
