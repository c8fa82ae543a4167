"""The small model: what it ranks, and that it says when it cannot learn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from laion_assets.comparison import training
from laion_assets.comparison.options import ComparisonOptions
from laion_assets.comparison.training import NotFiniteError, TextModel, captions_of, device_of
from tests.comparison.conftest import QUICK

PAIRS, DIM, WORDS = 120, 16, 130
RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(PAIRS, DIM)).astype(np.float16)
TOKENS = np.arange(1, PAIRS + 1, dtype=np.int32)[:, None]


def model_of(options: ComparisonOptions = QUICK) -> TextModel:
    return TextModel(WORDS, DIM, options, 0, device_of(options))


def with_nan() -> NDArray[np.float16]:
    images = IMAGES.copy()
    images[7] = np.nan
    return images


def test_a_vector_that_is_no_number_is_found_last_and_finds_nothing() -> None:
    model = model_of()
    sound, damaged = (np.stack(model.ranks(images, TOKENS)) for images in (IMAGES, with_nan()))
    assert (damaged[:, 7] == PAIRS - 1).all()
    others = np.arange(PAIRS) != 7
    assert (damaged[:, others] >= sound[:, others]).all()
    assert sound.min() >= 0


def test_an_image_is_of_the_class_whose_name_is_nearest() -> None:
    model, names = model_of(), TOKENS[:7]
    labels = RNG.integers(0, 7, PAIRS)
    found = model.finds(IMAGES, names, labels)
    every = np.stack([model.finds(IMAGES, names, np.full(PAIRS, label)) for label in range(7)])
    assert (every.sum(axis=0) == 1).all(), "one of them is nearest"
    assert (every[labels, np.arange(PAIRS)] == found).all()
    for number in np.flatnonzero(found)[:5]:
        # It is nearer than each of the others, one at a time.
        for other in set(range(7)) - {labels[number]}:
            pair = names[[labels[number], other]]
            assert model.finds(IMAGES[[number]], pair, np.array([0])).all()
    assert not model.finds(with_nan(), names, labels)[7]
    assert not model.finds(IMAGES, np.repeat(names[:1], 7, axis=0), labels).any(), "all alike"


def test_blocks_rank_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    whole = model.ranks(IMAGES, TOKENS)
    monkeypatch.setattr(training, "_ASKED_AT_ONCE", 50)
    assert np.array_equal(model.ranks(IMAGES, TOKENS), whole)


def test_a_model_that_ranks_all_alike_finds_nothing() -> None:
    same = np.repeat(TOKENS[:1], PAIRS, axis=0)
    by_text, by_image = model_of().ranks(np.repeat(IMAGES[:1], PAIRS, axis=0), same)
    assert (by_text == PAIRS - 1).all()
    assert (by_image == PAIRS - 1).all()


@pytest.mark.parametrize(
    ("images", "rate"), [(with_nan(), 1e-2), (IMAGES, 1e30)], ids=["vector", "rate"]
)
def test_a_model_that_cannot_learn_names_arm_and_way_out(
    images: NDArray[np.float16], rate: float
) -> None:
    model = model_of(QUICK.model_copy(update={"rate": rate}))
    wanted = r"of strict v1, training 1, became no number: lower \[comparison\] rate .* damaged"
    with pytest.raises(NotFiniteError, match=wanted):
        model.fit(images, TOKENS, "strict v1", lambda _: None)


def test_only_captions_that_are_used_become_tokens_and_only_trained_ones_have_numbers() -> None:
    asked: list[str] = []

    def letters(texts: list[str]) -> object:
        import torch

        asked.extend(text for text in texts if text)
        return torch.tensor([[*map(ord, text), *[0] * (4 - len(text))] for text in texts])

    texts = pa.chunked_array([["ab", "never"], ["bc", "cd"]])
    found = captions_of(texts, np.array([2, 0, 2]), np.array([3]), letters)
    assert asked == ["ab", "bc", "cd"]
    assert found.words == 4
    assert found.of(np.array([3, 0, 2])).tolist() == [[3, 0], [1, 2], [2, 3]]
