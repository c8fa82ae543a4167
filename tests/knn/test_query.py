from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from laion_assets.clip.model import ClipModel
from laion_assets.clip.vectors import image_path
from laion_assets.knn.build import IndexOptions, build_index
from laion_assets.knn.query import QueryError, search_image
from tests.clip.conftest import (  # noqa: F401 - fixtures
    EPS,
    clip_folder,
    ghostscript_started,
    model,
    options,
    picture,
)
from tests.knn.conftest import MakeSubset


def test_an_image_file_is_searched_if_it_is_jpeg_png_or_webp(
    make_subset: MakeSubset,
    tmp_path: Path,
    model: ClipModel,  # noqa: F811
    ghostscript_started: Callable[[], bool],  # noqa: F811
) -> None:
    subset, index = make_subset("CC-MAIN-2000-05", "00", [20], d=model.dim), tmp_path / "index"
    vectors = image_path(subset, 0)
    wanted = np.load(vectors)
    wanted[7] = model.encode_images([picture(3)])[0]
    np.save(vectors, wanted)
    build_index(subset, index, IndexOptions(), model=model.identity)
    for name in ("a.jpg", "a.png", "a.webp"):
        picture(3).save(tmp_path / name)
        best = search_image(index, tmp_path / name, model, 1, subset=subset)[0]
        assert best.ref.key == "000000007"

    picture(3).save(tmp_path / "a.bmp")
    (tmp_path / "eps.jpg").write_bytes(EPS)
    for name in ("a.bmp", "eps.jpg"):
        with pytest.raises(QueryError, match=f"{name} is not a readable JPEG, PNG or WebP"):
            search_image(index, tmp_path / name, model, 1, subset=subset)
    assert not ghostscript_started()
