"""The autoencoder, the vocabulary and the transformer, at the smallest size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from laion_assets.generation import autoencoder, transformer
from laion_assets.generation.autoencoder import WrongWeightsError
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.trainer import save_model
from laion_assets.generation.vocabulary import END, PAD, START, UNKNOWN, Vocabulary


def test_the_autoencoder_learns_and_its_codes_come_back(
    tmp_path: Path, tiny: GenerationOptions
) -> None:
    options = tiny.model_copy(update={"vq_steps": 60, "vq_rate": 5e-3})
    rng = np.random.default_rng(0)
    pixels = np.empty((8, 16, 16, 3), np.uint8)
    pixels[:] = rng.integers(0, 256, (8, 1, 1, 3))
    model = autoencoder.build(options)
    before = autoencoder.held_out_loss(model, [pixels[:3], pixels[3:]])
    autoencoder.train(model, lambda _: pixels, options, "fp32", tmp_path / "c.safetensors")
    assert autoencoder.held_out_loss(model, [pixels[:3], pixels[3:]]) < before / 2
    codes = autoencoder.encode(model, pixels)
    assert codes.shape == (8, 16)
    assert codes.max() < options.codebook
    assert len(np.unique(codes)) > 4
    decoded = autoencoder.decode(model, codes, batch=3)
    with torch.inference_mode():
        direct = model(autoencoder.as_floats(pixels, torch.device("cpu"))).sample
    direct = direct.add(1).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(decoded - direct).max() <= 1

    save_model(model, tmp_path / "vq")
    loaded = autoencoder.load(tmp_path / "vq", options)
    assert np.array_equal(autoencoder.encode(loaded, pixels), codes)
    with pytest.raises(WrongWeightsError, match="16 codes, each for 4 pixels"):
        autoencoder.load(tmp_path / "vq", options.model_copy(update={"codebook": 8}))
    with pytest.raises(WrongWeightsError, match="holds no VQModel"):
        autoencoder.load(tmp_path, options)


class Quantize:
    """Codes on a line, and an optimiser that has moments for each of them."""

    def __init__(self, codes: int) -> None:
        self.embedding = torch.nn.Embedding(codes, 1)
        self.embedding.weight.data = torch.arange(codes, dtype=torch.float32)[:, None]
        self.optimizer = torch.optim.AdamW(self.embedding.parameters(), lr=0.0, weight_decay=0.0)
        self.embedding.weight.sum().backward()
        self.optimizer.step()

    @property
    def places(self) -> list[float]:
        return [float(place) for place in self.embedding.weight.detach().flatten()]


def latents(*places: float) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float32).reshape(1, 1, 1, -1)


def test_a_code_is_moved_only_if_a_window_of_passes_did_not_use_it(
    tiny: GenerationOptions,
) -> None:
    # With 8 codes and 4 latents a pass, 8 passes see four latents per code.
    options = tiny.model_copy(
        update={"codebook": 8, "vq_batch": 1, "image_size": 8, "vq_steps": 1000}
    )
    quantize = Quantize(8)
    reviver = autoencoder._Reviver(quantize, options)
    reviver.watch(quantize.optimizer)
    assert reviver.window == 8
    for number in range(1, 20):
        # Passes 1 to 12 come before the window: what they use does not count.
        used = (7, 7, 7, 7) if number < 13 else (0, 1, 2, 3) if number % 2 else (4, 5, 0, 1)
        reviver.see(number, latents(*used))
        assert quantize.places == list(range(8))
    assert reviver.carried["codes_used"].tolist() == [7, 7, 4, 4, 3, 3, 0, 0]
    reviver.see(20, latents(10, 10, 10, 10))
    # Code 7 was nearest in the last pass alone, and counts as used; 6 never was.
    assert quantize.places == [0, 1, 2, 3, 4, 5, 10, 7]
    moments = quantize.optimizer.state[quantize.embedding.weight]
    for name in ("exp_avg", "exp_avg_sq"):
        assert [bool(value) for value in moments[name].flatten()] == [True] * 6 + [False, True]
    assert not reviver.carried["codes_used"].any()


def test_the_papers_batches_see_half_of_its_codes() -> None:
    assert autoencoder._Reviver(Quantize(2), GenerationOptions(preset="paper")).window == 8


def test_a_killed_autoencoder_resumes_within_its_window(
    tmp_path: Path, tiny: GenerationOptions
) -> None:
    options = tiny.model_copy(
        update={"vq_steps": 45, "vq_batch": 1, "codebook": 64, "checkpoint_every": 13}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (45, 1, 16, 16, 3), np.uint8)

    def trained(name: str, until: int) -> np.ndarray:
        def batch_of(number: int) -> np.ndarray:
            if number == until:
                raise KeyboardInterrupt
            return np.asarray(pixels[number])

        model = autoencoder.build(options)
        autoencoder.train(model, batch_of, options, "fp32", tmp_path / f"{name}.safetensors")
        return np.asarray(model.quantize.embedding.weight.detach())

    assert autoencoder._Reviver(Quantize(2), options).window == 16
    with pytest.raises(KeyboardInterrupt):
        trained("killed", 14)
    assert np.array_equal(trained("killed", 45), trained("undisturbed", 45))


def test_captions_become_tokens_of_the_training_captions() -> None:
    vocabulary = Vocabulary.of(["A red heart", "a blue star"])
    red, other = vocabulary.encode(["a RED heart", "a green heart, twice and more"], 6).tolist()
    assert red[0] == START
    assert red[4:] == [END, PAD]
    assert other[1] == red[1]
    assert other[2] == UNKNOWN
    assert other[3] == red[3]
    assert other[5] == END
    assert len(vocabulary) == max(*red, *other, *vocabulary.encode(["a blue star"], 6)[0]) + 1
    assert Vocabulary(vocabulary.words).encode(["a red heart"], 6).tolist() == [red]


def test_the_cache_changes_no_sample(tiny: GenerationOptions) -> None:
    model = transformer.build(tiny, 9).eval()
    text = np.array([[1, 4, 5, 2, 0, 0, 0, 0, 0, 0], [1, 7, 2, 0, 0, 0, 0, 0, 0, 0]], np.uint16)
    text = np.repeat(text, 3, axis=0)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)  # else all codes are about equally likely
    for options in (
        tiny,
        tiny.model_copy(update={"top_k": 3, "temperature": 0.7}),
        tiny.model_copy(update={"top_p": 0.6}),
        tiny.model_copy(update={"guidance": 1.0}),
    ):
        cached = transformer.sample(model, text, options, seed=3)
        assert np.array_equal(
            cached, transformer.sample(model, text, options, seed=3, use_cache=False)
        )
        assert cached.shape == (6, 16)
        assert cached.max() < tiny.codebook
    other = transformer.sample(model, text, tiny, seed=4)
    assert not np.array_equal(other, transformer.sample(model, text, tiny, seed=3))
    likeliest = tiny.model_copy(update={"top_k": 1, "sample_batch": 4, "guidance": 1.0})
    only = transformer.sample(model, text, likeliest, seed=5)
    assert len(np.unique(only[:3], axis=0)) == 1
    # Step by step without generate(): the loss sees the distribution that is sampled from.
    ids = transformer.joined(text, only, tiny.codebook, torch.device("cpu"))
    with torch.inference_mode():
        logits = model(ids[:, :-1]).logits[:, tiny.text_tokens - 1 :, : tiny.codebook]
    assert np.array_equal(logits.argmax(-1).numpy(), only)


def test_guidance_multiplies_what_the_caption_changes(tiny: GenerationOptions) -> None:
    model = transformer.build(tiny, 9).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        # As it is built, it repeats the last code, whatever the caption.
        torch.nn.init.normal_(parameter, std=0.5)
    text = np.array([[1, 4, 5, 2, 0, 0, 0, 0, 0, 0], [1, 7, 2, 0, 0, 0, 0, 0, 0, 0]], np.uint16)
    empty = np.array([[1, 2, 0, 0, 0, 0, 0, 0, 0, 0]] * 2, np.uint16)
    assert np.array_equal(transformer.no_caption(text), empty)
    options = tiny.model_copy(update={"top_k": 1, "guidance": 8.0})
    codes = transformer.sample(model, text, options, seed=0)
    assert not np.array_equal(
        codes, transformer.sample(model, text, options.model_copy(update={"guidance": 1.0}), seed=0)
    )
    scores = []
    for said in (text, empty):
        ids = transformer.joined(said, codes, tiny.codebook, torch.device("cpu"))
        with torch.inference_mode():
            logits = model(ids[:, :-1]).logits[:, tiny.text_tokens - 1 :, : tiny.codebook]
        scores.append(logits.log_softmax(-1))
    captioned, without = scores
    guided = without + 8 * (captioned - without)
    assert np.array_equal(guided.argmax(-1).numpy(), codes)


def test_the_loss_is_the_likelihood_among_codes(tiny: GenerationOptions) -> None:
    model = transformer.build(tiny, 9).eval()
    text = np.array([[1, 4, 2, 0, 0, 0, 0, 0, 0, 0]], np.uint16)
    codes = np.arange(16, dtype=np.uint16)[None]
    image, said = transformer.losses(model, text, codes, tiny.codebook)
    ids = transformer.joined(text, codes, tiny.codebook, torch.device("cpu"))
    with torch.no_grad():
        logits = model(ids).logits[0]
    expected = [
        float(-logits[9 + at, : tiny.codebook].log_softmax(0)[code])
        for at, code in enumerate(codes[0].tolist())
    ]
    assert image[0].item() == pytest.approx(np.mean(expected), abs=1e-5)
    words = [
        float(-logits[at, tiny.codebook :].log_softmax(0)[word])
        for at, word in enumerate(text[0, 1:3].tolist())
    ]
    assert said.item() == pytest.approx(np.mean(words), abs=1e-5)


def test_captions_help_unless_they_were_shuffled(tmp_path: Path, tiny: GenerationOptions) -> None:
    """Four captions, each with its own codes: what the right caption saves is known."""
    options = tiny.model_copy(update={"steps": 80, "batch": 16, "rate": 1e-2, "dropout": 0.0})
    rng = np.random.default_rng(0)
    text = np.zeros((64, 10), np.uint16)
    text[:, 0], text[:, 1], text[:, 2] = START, 4 + np.arange(64) % 4, END
    codes = ((np.arange(64) % 4)[:, None] * 4 + rng.integers(0, 2, (64, 16))).astype(np.uint16)
    gains = {}
    for name, said in (("true", text), ("shuffled", text[rng.permutation(64)])):
        model = transformer.build(options, 8)

        def batch_of(number: int, said: transformer.Tokens = said) -> transformer.Batch:
            rows = np.random.default_rng(number).integers(0, 64, 16)
            return said[rows], codes[rows]

        transformer.train(name, model, batch_of, options, "fp32", tmp_path / f"{name}.safetensors")
        loss = [
            transformer.held_out_loss(model, said_now, codes, options.codebook, "fp32", 16)
            for said_now in (text, np.roll(text, 1, axis=0))
        ]
        gains[name] = loss[1] - loss[0]
    # The first code gives the caption away: a caption saves ln 4 in 16 codes, and more at first.
    assert gains["true"] > np.log(4) / 16
    assert abs(gains["shuffled"]) < gains["true"] / 4


def test_a_share_of_the_captions_is_dropped_in_training(
    tiny: GenerationOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, losses = [], transformer.losses

    def seeing(model: object, text: transformer.Tokens, *more: Any) -> Any:
        seen.append(text)
        return losses(model, text, *more)

    monkeypatch.setattr(transformer, "losses", seeing)
    options = tiny.model_copy(update={"caption_dropout": 0.3, "steps": 4})
    text = np.tile(np.array([START, 4, 5, END] + [PAD] * 6, np.uint16), (200, 1))
    codes = np.zeros((200, options.image_tokens), np.uint16)
    checkpoint = tmp_path / "c.safetensors"
    model = transformer.build(options, 9)
    transformer.train("t", model, lambda _: (text, codes), options, "fp32", checkpoint)
    dropped = np.concatenate(seen)[:, 1] == END
    assert 0.2 < dropped.mean() < 0.4
