"""The small model: a text model trained from scratch to find the stored vectors of images.

The images' vectors stay as they are. A caption is the mean of its tokens' vectors, through one
hidden layer; the loss is open_clip's. That trains in seconds. It does not know the order of words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.clip.model import Tokenizer, choose_device
from laion_assets.comparison.options import ComparisonOptions

if TYPE_CHECKING:
    import torch

Rows = NDArray[np.int64]
Tokens = NDArray[np.int32]

_PAD: Final = 0
_AT_ONCE: Final = 8_192
_ASKED_AT_ONCE: Final = 1_024
_HIDDEN: Final = 4
"""Width of the hidden layer, in widths of a token's vector."""
_DECAY: Final = 0.1
_FIRST_SCALE: Final = float(np.log(1 / 0.07))
_HIGHEST_SCALE: Final = 100.0
"""Scale of the cosines: its first logarithm and its bound are CLIP's."""


class NotFiniteError(ValueError):
    """A model's loss or weights became infinite or no number; the message says whose."""


@dataclass(frozen=True)
class Captions:
    """Captions as tokens, of the rows that are trained on or searched."""

    rows: Rows
    """(n,), ascending."""
    tokens: Tokens
    """(n, length); 0 stands for none, and for one that training never sees."""
    words: int
    """Numbers of tokens, 0 included."""

    def of(self, rows: Rows) -> Tokens:
        """The tokens of some of the rows, (m, length)."""
        return self.tokens[np.searchsorted(self.rows, rows)]


def captions_of(
    texts: pa.ChunkedArray, trained: Rows, searched: Rows, tokenize: Tokenizer
) -> Captions:
    """Turn captions into tokens.

    ``trained``, ``searched``: rows of ``texts``. The tokens of those that are trained on, by any
    arm, are numbered; the numbers are the same for all arms.
    """
    rows = np.unique(np.concatenate([trained, searched]))
    texts = texts.take(pa.array(rows))
    # The last place of an empty caption is padding.
    none = int(tokenize([""])[0, -1])
    parts = [np.zeros((0, 1), np.int32)]
    for start in range(0, len(texts), _AT_ONCE):
        some = tokenize(texts.slice(start, _AT_ONCE).to_pylist()).numpy().astype(np.int32)
        used = np.flatnonzero((some != none).any(axis=0))
        parts.append(some[:, : used[-1] + 1 if len(used) else 1])
    length = max(part.shape[1] for part in parts)
    tokens = np.full((len(texts), length), none, np.int32)
    at = 0
    for part in parts:
        tokens[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    known = np.unique(tokens[np.isin(rows, trained)])
    known = known[known != none]
    place = np.searchsorted(known, tokens)
    found = known[np.minimum(place, len(known) - 1)] == tokens if len(known) else tokens != tokens
    numbers = np.where(found, place + 1, _PAD).astype(np.int32)
    return Captions(rows, numbers, len(known) + 1)


class TextModel:
    """An untrained text model whose weights are drawn from the seed."""

    def __init__(
        self, words: int, dim: int, options: ComparisonOptions, seed: int, device: torch.device
    ) -> None:
        import torch
        from torch import nn

        width = options.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Sequential(
                nn.EmbeddingBag(words, width, mode="mean", padding_idx=_PAD),
                nn.LayerNorm(width),
                nn.Linear(width, _HIDDEN * width),
                nn.GELU(),
                nn.Linear(_HIDDEN * width, dim),
            )
        self._layers = layers.to(device)
        self._scale = nn.Parameter(torch.tensor(_FIRST_SCALE, device=device))
        self._device, self._options, self._seed = device, options, seed

    def fit(
        self,
        images: NDArray[np.float16],
        tokens: Tokens,
        arm: str,
        advance: Callable[[str], None],
    ) -> None:
        """Train on pairs, (n, dim) and (n, length), in an order that the seed decides.

        ``arm``: for people. ``advance`` is called after each step, with a note for the log. Raises
        :class:`NotFiniteError`.
        """
        import torch
        from open_clip.loss import ClipLoss

        options, loss_of = self._options, ClipLoss()
        parameters = [*self._layers.parameters(), self._scale]
        optimizer = torch.optim.AdamW(parameters, options.rate, weight_decay=_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, options.rate, total_steps=options.steps
        )
        for rows in _batches(len(tokens), options, self._seed):
            scale = self._scale.exp().clamp(max=_HIGHEST_SCALE)
            loss = loss_of(self._images(images[rows]), self._texts(tokens[rows]), scale)
            if not loss.isfinite():
                raise NotFiniteError(self._not_finite(arm, "loss"))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(f"{arm}, loss {float(loss.detach()):.3f}")
        if not all(parameter.isfinite().all() for parameter in parameters):
            raise NotFiniteError(self._not_finite(arm, "weights"))

    def ranks(self, images: NDArray[np.float16], tokens: Tokens) -> tuple[Rows, Rows]:
        """How many other pairs are at least as near as the right one: of images by texts, and of
        texts by images, (n,) each. What is no number counts as nearer."""
        import torch

        with torch.inference_mode():
            vectors, texts = self._images(images), self._texts(tokens)
            return _ranks(texts, vectors), _ranks(vectors, texts)

    def finds(self, images: NDArray[np.float16], names: Tokens, labels: Rows) -> NDArray[np.bool_]:
        """Whether the name of each image's class is nearer to it than every other name, (n,).

        ``names``: tokens of the classes' names; ``labels``: number of each image's class.
        """
        import torch

        with torch.inference_mode():
            cosines = self._images(images) @ self._texts(names).T
            right = cosines.gather(1, self._on_device(labels)[:, None])
            # The right one itself is not lower. What is no number is not lower, either.
            found: NDArray[np.bool_] = ((~(cosines < right)).sum(dim=1) == 1).cpu().numpy()
            return found

    def _not_finite(self, arm: str, what: str) -> str:
        return (
            f"the {what} of {arm}, training {self._seed + 1}, became no number: lower [comparison]"
            f" rate (now {self._options.rate:g}), or the image vectors are damaged"
        )

    def _images(self, vectors: NDArray[np.float16]) -> torch.Tensor:
        return self._unit(self._on_device(vectors).float())

    def _texts(self, tokens: Tokens) -> torch.Tensor:
        return self._unit(self._layers(self._on_device(tokens)))

    def _on_device(self, values: NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(values).to(self._device)

    def _unit(self, vectors: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        return functional.normalize(vectors, dim=-1)


def _ranks(asked: torch.Tensor, answers: torch.Tensor) -> Rows:
    """How many answers are at least as near as the one of the same row, itself not counted, (n,).

    A block at a time: all cosines at once would take 4 n² bytes.
    """
    import torch

    found = []
    for start in range(0, len(asked), _ASKED_AT_ONCE):
        cosines = asked[start : start + _ASKED_AT_ONCE] @ answers.T
        right = cosines.diagonal(start)
        found.append((~(cosines < right[:, None])).sum(dim=1) - 1)
    ranks: Rows = torch.cat(found).cpu().numpy()
    return ranks


def _batches(pairs: int, options: ComparisonOptions, seed: int) -> Sequence[Rows]:
    """The rows of each step's batch: all pairs in a random order, again and again."""
    rng, size = np.random.default_rng(seed), options.batch
    found: list[Rows] = []
    while len(found) < options.steps:
        order = rng.permutation(pairs)
        found += [order[at : at + size] for at in range(0, pairs - size + 1, size)]
    return found[: options.steps]


def device_of(options: ComparisonOptions) -> torch.device:
    """The device to train on. Raises :class:`~laion_assets.clip.model.ClipLoadError`."""
    return choose_device(options.device)
