from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from laion_assets.clip.identity import (
    ModelIdentity,
    SeveralModelsError,
    UnknownModelError,
    files_identity,
    the_one,
)
from laion_assets.clip.options import ClipOptions


def test_a_folder_is_known_by_its_content_and_not_by_its_place(
    clip_folder: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(clip_folder, tmp_path / "moved")
    known = files_identity(ClipOptions(model=f"local-dir:{clip_folder}"))
    of_moved = ClipOptions(model=f"local-dir:{moved}")
    assert files_identity(of_moved) == known
    (moved / "training.log").write_text("loss 0.1")
    assert files_identity(of_moved) == known
    config = moved / "open_clip_config.json"
    config.write_text(config.read_text() + "\n")
    assert files_identity(of_moved) != known


def test_a_file_is_known_by_its_content_and_a_tag_by_its_name(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    one, same, other = file("a.pt", b"1"), file("b.pt", b"1"), file("c.pt", b"2")
    of = [files_identity(ClipOptions(pretrained=path)) for path in (one, same, other)]
    assert of[0] == of[1] != of[2]
    assert files_identity(ClipOptions(model="ViT-L-14", pretrained=one)) != of[0]
    assert files_identity(ClipOptions()) == "ViT-B-32/openai"
    # A tag decides more than the weights do.
    fetched = [files_identity(ClipOptions(weights=path)) for path in (one, other)]
    assert len({*fetched, *of}) == 4


def test_a_model_that_brings_its_weights_has_no_others() -> None:
    for model in ("local-dir:/my/model", "hf-hub:me/mine"):
        options = ClipOptions(model=model)
        assert (options.pretrained, options.key) == ("", model)
        assert ClipOptions(**options.model_dump()) == options
    assert ClipOptions(model="ViT-L-14").key == "ViT-L-14/openai"


def test_models_are_compared_by_version() -> None:
    one = ModelIdentity(model="local-dir:/home/me/a", model_version="1")
    moved = ModelIdentity(model="b", model_version="1")
    other = ModelIdentity(model="local-dir:/home/me/a", model_version="2")
    assert one.is_same(moved)
    assert not one.is_same(other)
    assert one.title == "local-dir:a (version 1)"
    assert the_one([("00", one), ("01", moved)], "scores") == one
    assert the_one([], "scores") is None
    several = [(f"{number:02d}", one) for number in range(5)] + [("07", other)]
    places = r"version 1\): 00, 01, 02 and 2 more; .*version 2\): 07$"
    with pytest.raises(SeveralModelsError, match=rf"scores of several .*{places}"):
        the_one(several, "scores")


def test_what_records_no_version_is_to_be_made_again() -> None:
    assert ModelIdentity.recorded({"model": "m", "model_version": "1", "rows": 3}, "x").model == "m"
    with pytest.raises(UnknownModelError, match="scores of 00 does not record model_version"):
        ModelIdentity.recorded({"model": "m"}, "scores of 00")
