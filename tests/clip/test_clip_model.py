from __future__ import annotations

import hashlib
import http.server
import itertools
import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.clip.identity import WEIGHTS
from laion_assets.clip.model import (
    ClipLoadError,
    ClipModel,
    choose_device,
    load_clip,
    resolve,
    tokenizer_of,
)
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.precision import choose_precision, cpu_has_bf16, possible_precision
from laion_assets.clip.preprocessing import Preprocessing
from laion_assets.clip.texts import TextTower, batches_by_length
from tests.clip.conftest import MODEL, as_processor, picture


def open_clip_model(**text: object) -> Any:
    import open_clip
    import torch

    torch.manual_seed(5)
    kind = open_clip.CustomTextCLIP if text.pop("custom", False) else open_clip.CLIP
    made = kind(**MODEL | {"text_cfg": MODEL["text_cfg"] | text}).eval()
    tower = getattr(made, "text", made)
    # Initial weights map all texts to almost the same vector.
    tower.token_embedding.weight.data *= 50
    tower.positional_embedding.data *= 50
    return made


def open_clip_tokenizer() -> Any:
    import open_clip

    return open_clip.get_tokenizer("ViT-B-32")


LONG = "a long introduction of many plain words that says nothing at all of what is to be seen: "


def test_embeddings_are_float32_rows_of_unit_length(model: ClipModel) -> None:
    images = model.encode_images([picture(n) for n in range(6)])
    texts = model.encode_texts([f"thing {n}" for n in range(6)])
    for vectors in (images, texts):
        assert vectors.dtype == np.float32
        assert vectors.shape == (6, 24)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert model.dim == 24


@pytest.mark.parametrize("threads", [2, 3])
def test_embeddings_keep_their_order_on_several_cores(
    model: ClipModel, clip_folder: Path, threads: int
) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shared = load_clip(ClipOptions(model=f"local-dir:{clip_folder}", batch_size=13))
        pictures, words = [picture(n) for n in range(17)], [f"thing {n} " * n for n in range(17)]
        images, texts = shared.encode_images(pictures), shared.encode_texts(words)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(images, model.encode_images(pictures), atol=1e-6)
    np.testing.assert_allclose(texts, model.encode_texts(words), atol=1e-6)


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


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_pictures_are_preprocessed_bit_for_bit_as_open_clip_does(mode: str) -> None:
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = PreprocessCfg(size=32, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28), resize_mode=mode)
    theirs = image_transform_v2(cfg, is_train=False)
    device = torch.device("cpu")
    preprocess = Preprocessing(theirs, device)
    model = ClipModel(ClipOptions(), open_clip_model(), preprocess, open_clip_tokenizer(), device)
    images = [picture(1, 90, 50), picture(2, 30, 41), picture(3, 256, 256).convert("L")]
    images = [image.convert("RGB") for image in images]
    ours = model.floats(torch.from_numpy(np.stack([model.pixels(image) for image in images])))
    assert torch.equal(ours, torch.stack([theirs(image) for image in images]))


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


TEXTS = ["", "cat", LONG, "a small red house by the sea", "word " * 200, "ein Haus", LONG * 4]


@pytest.mark.parametrize(
    ("text_cfg", "cut"),
    [
        ({}, True),
        ({"custom": True}, True),
        ({"eos_id": 49407, "pool_type": "eos"}, True),
        ({"no_causal_mask": True, "custom": True}, False),
        ({"pool_type": "last", "custom": True}, False),
        ({"embed_cls": True, "custom": True}, False),
    ],
)
def test_a_text_is_computed_at_its_own_length_where_that_changes_nothing(
    text_cfg: dict[str, object], cut: bool
) -> None:
    import torch

    module, tokenizer = open_clip_model(**text_cfg), open_clip_tokenizer()
    tower = TextTower(module)
    tokens = tokenizer(TEXTS)
    lengths = tower.lengths(tokens.numpy())
    assert lengths.tolist() == ([2, 3, 21, 9, 77, 4, 77] if cut else [77] * len(TEXTS))
    with torch.inference_mode():
        whole = module.encode_text(tokens)
        for row, length in enumerate(lengths):
            short = tower.encoder(int(length))(tokens[row : row + 1, :length])
            np.testing.assert_allclose(short[0], whole[row], atol=1e-4, rtol=1e-5)


def test_texts_may_be_embedded_from_several_threads(model: ClipModel) -> None:
    alone = [model.encode_texts([text]) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(lambda text: model.encode_texts([text]), TEXTS))
            np.testing.assert_allclose(together, alone, atol=1e-6)


@given(st.lists(st.integers(1, 77), max_size=60), st.integers(1, 400))
def test_batches_by_length_take_each_row_once_within_bounds(lengths: list[int], most: int) -> None:
    array = np.array(lengths, np.int64)
    batches = batches_by_length(array, most)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= most
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * array[following[0]] > most


def test_the_device_is_the_one_that_is_there() -> None:
    import torch

    found = choose_device("auto")
    here = torch.accelerator.current_accelerator(check_available=True)
    assert found == (here or torch.device("cpu"))
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ClipLoadError, match="no device 'gpu0': use auto, cpu or cuda"):
        choose_device("gpu0")
    with pytest.raises(ClipLoadError, match=r"no device 'cuda:99' .*: use auto or cpu"):
        load_clip(ClipOptions(device="cuda:99"))


def test_automatic_precision_is_a_matter_of_the_device() -> None:
    import torch

    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("auto", torch.device("cuda")) == "fp16"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16", None])
def test_bf16_is_for_processors_that_have_it(
    flag: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    given = as_processor(monkeypatch, tmp_path, flag or "avx512_bf16x")
    assert cpu_has_bf16() == (flag is not None), given
    assert possible_precision("bf16", torch.device("cpu")) == ("bf16" if flag else "fp32")
    assert possible_precision("bf16", torch.device("cuda")) == "bf16"
    assert possible_precision("auto", torch.device("cpu")) == "fp32"


def test_bf16_weights_are_near_and_the_same_model(
    model: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    as_processor(monkeypatch, tmp_path, "amx_bf16")
    mixed = load_clip(model.options.model_copy(update={"precision": "bf16"}))
    assert mixed.precision == "bf16"
    assert {weights.dtype for weights in mixed.module.parameters()} == {torch.bfloat16}
    images, texts = [picture(n) for n in range(4)], ["a red house", "thing", LONG]
    for ours, theirs in (
        (mixed.encode_images(images), model.encode_images(images)),
        (mixed.encode_texts(texts), model.encode_texts(texts)),
    ):
        assert ours.dtype == np.float32
        assert (ours * theirs).sum(axis=1).min() > 0.999
        assert not np.array_equal(ours, theirs)
    assert mixed.version == model.version


def test_the_version_names_the_weights_and_not_their_place(
    model: ClipModel, clip_folder: Path, tmp_path: Path
) -> None:
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
    with pytest.raises(ClipLoadError, match=r"weights file .* does not exist"):
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
    with pytest.raises(ClipLoadError, match="it has no weights"):
        load_clip(ClipOptions(model=f"local-dir:{tmp_path}"))


class _Hub(http.server.SimpleHTTPRequestHandler):
    """Answers `ORG/REPO/resolve/main/FILE` as the hub does, from a folder `ORG/REPO/FILE`."""

    def do_GET(self) -> None:
        path = Path(self.directory, self.path.lstrip("/").replace("/resolve/main/", "/"))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's client is pointed to a local server, as the variable HF_ENDPOINT does."""
    from huggingface_hub import constants

    handler = partial(_Hub, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture(params=["offline", "not_here"])
def hub(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """The hub's client is kept off the network, and pointed to a host that has nothing."""
    from huggingface_hub import constants

    if request.param == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield
        return
    with hub_of(tmp_path / "nothing", monkeypatch):
        yield


def test_a_model_is_fetched_from_a_hub_once(
    model: ClipModel, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    shutil.copytree(clip_folder, tmp_path / "hub" / "org" / "repo")
    options = ClipOptions(model="hf-hub:org/repo", device="cpu", cache_dir=str(tmp_path / "cache"))
    with hub_of(tmp_path / "hub", monkeypatch):
        assert load_clip(options).version == model.version
    # What the error for an unreachable hub recommends: the cache alone is enough.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_clip(options).version == model.version


def test_weights_that_cannot_be_fetched_name_the_way_out(hub: None, tmp_path: Path) -> None:
    options = ClipOptions(device="cpu", cache_dir=str(tmp_path))
    with pytest.raises(ClipLoadError) as failed:
        load_clip(options)
    message = str(failed.value)
    assert "ViT-B-32/openai" in message
    assert "`cache_dir`" in message
    assert "`weights`" in message
    assert "\n" not in message

    with pytest.raises(ClipLoadError, match="local-dir:FOLDER"):
        load_clip(options.model_copy(update={"model": "hf-hub:nobody/nothing"}))
    with pytest.raises(ClipLoadError, match="local-dir:FOLDER"):
        tokenizer_of(options.model_copy(update={"model": "hf-hub:nobody/nothing"}))


def test_the_shipped_model_is_open_clips_with_normalisations_folded_in() -> None:
    import open_clip
    import torch

    weights = WEIGHTS / "laion-assets-tiny.safetensors"
    options = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny", device="cpu")
    ours = load_clip(options)
    theirs, preprocess = open_clip.create_model_from_pretrained("laion-assets-tiny", str(weights))
    # More than are encoded at once.
    images = [picture(seed, 60 + seed, 80) for seed in range(10)]
    with torch.no_grad():
        batch = torch.stack([preprocess(image) for image in images])
        vectors = theirs.eval().encode_image(batch, normalize=True)
    np.testing.assert_allclose(ours.encode_images(images), vectors.numpy(), atol=1e-5)

    def normalisations(model: Any) -> int:
        return sum(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())

    assert normalisations(theirs) > normalisations(ours.module) == 0
    assert {weights.device for weights in ours.module.parameters()} == {ours.device}
    assert float((vectors[0] * vectors[1]).sum()) < 0.99, "it tells pictures apart"
