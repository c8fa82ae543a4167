from __future__ import annotations

import http.server
import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laion_assets.clip.model import WEIGHTS, ClipLoadError, ClipModel, load_clip, resolve
from laion_assets.clip.options import ClipOptions
from tests.clip.conftest import MODEL, picture

LONG = "a long introduction of many plain words that says nothing at all of what is to be seen: "


def test_embeddings_are_float32_rows_of_unit_length(model: ClipModel) -> None:
    images = model.encode_images([picture(n) for n in range(6)])
    texts = model.encode_texts([f"thing {n}" for n in range(6)])
    for vectors in (images, texts):
        assert vectors.dtype == np.float32
        assert vectors.shape == (6, 24)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert model.dim == 24


def test_nothing_embeds_to_no_rows(model: ClipModel) -> None:
    assert model.encode_images([]).shape == (0, 24)
    assert model.encode_texts([]).shape == (0, 24)


def test_embeddings_are_open_clips_own(model: ClipModel, clip_folder: Path) -> None:
    import open_clip
    import torch

    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    image, text = picture(3, 90, 50), "a red house"
    with torch.no_grad():
        vector = theirs.eval().encode_image(preprocess(image)[None], normalize=True)
        words = theirs.encode_text(open_clip.tokenize([text]), normalize=True)
    np.testing.assert_allclose(model.encode_images([image]), vector.numpy(), atol=1e-6)
    np.testing.assert_allclose(model.encode_texts([text]), words.numpy(), atol=1e-6)


def test_batches_do_not_change_the_embeddings(model: ClipModel) -> None:
    texts = [f"thing number {n}" for n in range(9)]
    one_by_one = np.concatenate([model.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(model.encode_texts(texts), one_by_one, atol=1e-5)


def test_a_text_is_seen_beyond_77_characters(model: ClipModel) -> None:
    cat, dog = LONG + "a cat", LONG + "a dog"
    assert len(LONG) > 77

    def cut(texts: list[str]) -> list[str]:
        return [text[:77] for text in texts]

    wrong = model.encode_texts(cut([cat, dog]))
    assert np.array_equal(wrong[0], wrong[1])

    right = model.encode_texts([cat, dog])
    assert np.abs(right[0] - right[1]).max() > 1e-3


def test_a_text_of_more_tokens_than_the_context_is_cut_by_tokens(model: ClipModel) -> None:
    vectors = model.encode_texts(["word " * 200, "word " * 300])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_the_version_names_the_weights_and_not_their_place(
    model: ClipModel, clip_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    moved = shutil.copytree(clip_folder, tmp_path / "moved")
    options = model.options.model_copy(update={"model": f"local-dir:{moved}", "batch_size": 1})
    assert load_clip(options).version == model.version

    weights = moved / "open_clip_model.safetensors"
    state = load_file(weights)
    state["text_projection"][0, 0] += 0.01
    save_file(state, weights)
    assert load_clip(options).version != model.version


def test_a_known_architecture_loads_weights_from_a_file(
    model: ClipModel, clip_folder: Path, tmp_path: Path
) -> None:
    import open_clip

    weights = str(clip_folder / "open_clip_model.safetensors")
    config = tmp_path / "architecture-of-a-test.json"
    config.write_text(json.dumps(MODEL))
    open_clip.add_model_config(config)
    for named in ({"pretrained": weights}, {"pretrained": "mine", "weights": weights}):
        loaded = load_clip(ClipOptions(model=config.stem, device="cpu", **named))
        words = ["a red house"]
        np.testing.assert_allclose(loaded.encode_texts(words), model.encode_texts(words), atol=1e-6)


def test_openais_weights_get_quickgelu_which_the_bare_name_lacks() -> None:
    import open_clip
    import torch

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = open_clip.create_model("ViT-B-32", device="meta")
        source = resolve(ClipOptions(model="ViT-B-32", pretrained="openai"))
        ours = open_clip.create_model(
            source.model, device="meta", force_quick_gelu=source.quick_gelu
        )

    def activations(module: torch.nn.Module) -> set[str]:
        return {type(part).__name__ for part in module.modules() if "GELU" in type(part).__name__}

    assert activations(bare) == {"GELU"}
    assert activations(ours) == {"QuickGELU"}
    assert not resolve(ClipOptions(pretrained="laion2b_s34b_b79k")).quick_gelu


def test_unknown_names_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(ClipLoadError, match="ViT-Z-99"):
        load_clip(ClipOptions(model="ViT-Z-99"))
    with pytest.raises(ClipLoadError, match=r"opnai.*its tags.*openai"):
        load_clip(ClipOptions(pretrained="opnai"))
    with pytest.raises(ClipLoadError, match="no weights file"):
        load_clip(ClipOptions(weights=str(tmp_path / "nothing.pt")))


def test_weights_of_another_model_are_refused(clip_folder: Path) -> None:
    weights = str(clip_folder / "open_clip_model.safetensors")
    with pytest.raises(ClipLoadError, match="cannot be loaded"):
        load_clip(ClipOptions(model="ViT-S-32-alt", pretrained=weights))


def test_a_folder_without_weights_is_never_a_random_model(
    clip_folder: Path, tmp_path: Path
) -> None:
    config = (clip_folder / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(ClipLoadError, match="cannot be loaded"):
        load_clip(ClipOptions(model=f"local-dir:{tmp_path}"))


class _NotHere(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(404)

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["offline", "not_here"])
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The hub's client told to stay off the network, and sent to a host that has nothing."""
    from huggingface_hub import constants

    if request.param == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield request.param
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NotHere) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield address
        server.shutdown()
        thread.join()


def test_weights_that_cannot_be_fetched_name_the_way_out(hub: str, tmp_path: Path) -> None:
    options = ClipOptions(device="cpu", cache_dir=str(tmp_path))
    with pytest.raises(ClipLoadError) as failed:
        load_clip(options)
    message = str(failed.value)
    assert "ViT-B-32/openai" in message
    assert "`cache_dir`" in message
    assert "`weights`" in message

    with pytest.raises(ClipLoadError, match="local-dir:FOLDER"):
        load_clip(options.model_copy(update={"model": "hf-hub:nobody/nothing"}))


@pytest.mark.skipif(
    not (WEIGHTS / "laion-assets-tiny.safetensors").is_file(), reason="not trained yet"
)
def test_the_shipped_model_tells_pictures_apart() -> None:
    options = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny", device="cpu")
    tiny = load_clip(options)
    red = Image.new("RGB", (256, 256), "red")
    images = tiny.encode_images([red, picture(1, 256, 256)])
    assert images.shape == (2, tiny.dim)
    assert float(images[0] @ images[1]) < 0.99
