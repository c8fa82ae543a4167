"""Score image embeddings by heads, with numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.clip.identity import ModelIdentity
from laion_assets.heads.head import Activation, Head, HeadError, head_path, load_head, weights_path
from laion_assets.heads.options import HeadOptions
from laion_assets.schemas import SCORE_PREFIX

_ROWS_AT_ONCE: Final = 4_096
"""Rows whose activations are in memory at once."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """``weight``, float32 (out, in), and ``bias``, (out,), and what follows them."""

    weight: Floats
    bias: Floats
    activation: Activation

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = values @ self.weight.T
        result += self.bias
        if self.activation == "relu":
            np.maximum(result, 0, out=result)
        elif self.activation == "sigmoid":
            # As tanh, which overflows for no value.
            result = 0.5 * (1 + np.tanh(0.5 * result))
        return result


@dataclass(frozen=True)
class Scorer:
    """A head ready for use, under the name that the settings give it."""

    name: str
    head: Head
    layers: Sequence[Layer]

    @classmethod
    def load(cls, name: str, file: str) -> Self:
        """Read a head's files. Raises :class:`~laion_assets.heads.head.HeadError`."""
        head = load_head(file)
        return cls(name, head, read_layers(head, weights_path(head_path(file))))

    @property
    def column(self) -> str:
        return f"{SCORE_PREFIX}{self.name}"

    def score(self, images: NDArray[Any]) -> Floats:
        """Scores of image vectors (n, dim), as stored: float32 (n,).

        The vectors are normalised again, since rounding to float16 left them slightly off unit
        length. Raises :class:`~laion_assets.heads.head.HeadError` for vectors of another width.
        """
        if images.ndim != 2 or images.shape[1] != self.head.dim:
            raise HeadError(
                f"the head {self.head.title} takes vectors of width {self.head.dim}, not of "
                f"{images.shape[-1]}"
            )
        scores = np.empty(len(images), np.float32)
        for start in range(0, len(images), _ROWS_AT_ONCE):
            # In double precision, so that a row's score does not depend on the rows beside it.
            values = images[start : start + _ROWS_AT_ONCE].astype(np.float64)
            norms = np.linalg.norm(values, axis=1, keepdims=True)
            values /= np.maximum(norms, np.finfo(np.float32).tiny)
            for layer in self.layers:
                values = layer(values)
            scores[start : start + len(values)] = values[:, 0]
        return scores

    def direction(self) -> Floats | None:
        """The unit vector (dim,) along which the score grows fastest; None if there is not one for
        all images, since the head has several layers."""
        if len(self.layers) != 1:
            return None
        weight = self.layers[0].weight[0]
        norm = float(np.linalg.norm(weight))
        return weight / norm if norm else None


def scorers(heads: Mapping[str, HeadOptions]) -> list[Scorer]:
    """The settings' heads, ready for use, sorted by name."""
    return [Scorer.load(name, options.file) for name, options in sorted(heads.items())]


def refuse_other_model(heads: Iterable[Scorer], embedded: ModelIdentity) -> None:
    """Raise :class:`~laion_assets.heads.head.HeadError` for heads of another CLIP than that of the
    embeddings."""
    for scorer in heads:
        if not scorer.head.identity.is_same(embedded):
            raise HeadError(
                f"the head {scorer.name} ({scorer.head.title}) is for embeddings of "
                f"{scorer.head.identity.title}, but these are of {embedded.title}: scores of one "
                "model mean nothing for another. Take the head out of [heads], or use one of this "
                "model"
            )


def as_column(scores: Floats) -> pa.Array:
    """Scores as a column; one that is no number is null."""
    return pa.array(scores, mask=~np.isfinite(scores))


def read_layers(head: Head, path: Path) -> list[Layer]:
    """Read weights. Raises :class:`~laion_assets.heads.head.HeadError` unless they are those of
    the head's layers."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise HeadError(f"{path} is not a safetensors file: {error}") from error
    layers, width = [], head.dim
    for number, activation in enumerate(head.activations):
        weight = tensors.pop(f"layers.{number}.weight", np.empty(0))
        bias = tensors.pop(f"layers.{number}.bias", np.empty(0))
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise HeadError(
                f"{path}: layer {number} has the shapes {weight.shape} and {bias.shape}, but its "
                f"input has width {width}"
            )
        # As float32 and in one block, so that numpy multiplies by BLAS.
        layers.append(
            Layer(np.ascontiguousarray(weight, np.float32), bias.astype(np.float32), activation)
        )
        width = len(bias)
    if width != 1 or tensors:
        raise HeadError(f"{path}: a head's last layer has one output, and no tensors follow it")
    return layers
