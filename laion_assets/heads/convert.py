"""Make heads of files that others published: read a known layout, fold its layers, write a head.

The layouts are those of LAION's predictors:

- `aesthetic-linear`: a linear layer (github.com/LAION-AI/aesthetic-predictor,
  ``sa_0_4_vit_b_32_linear.pth`` and its like);
- `aesthetic-mlp`: layers without activations between them, which are one linear layer in sum
  (github.com/christophschuhmann/improved-aesthetic-predictor, ``…linearMSE.pth``);
- `nsfw`: normalised inputs, ReLU layers and a sigmoid
  (github.com/LAION-AI/CLIP-based-NSFW-Detector, ``models/clip_…_binary_nsfw_head.pth``);
- `nsfw-h14`: ReLU layers (``h14_nsfw.pth`` of the same).

Other layouts of the same weights, such as Keras', are not read.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from laion_assets.clip.identity import ModelIdentity
from laion_assets.files import atomic_path, sha256_file, write_json
from laion_assets.heads.head import Activation, Head, HeadError, weights_path

LAYOUTS: Final = ("aesthetic-linear", "aesthetic-mlp", "nsfw", "nsfw-h14")
_SEQUENTIAL: Final = re.compile(r"layers\.(\d+)\.(?:weight|bias)")
_NUMBERED: Final = re.compile(r"linear_(\d+)\.(?:weight|bias)")
_BETWEEN: Final[Mapping[tuple[int, ...], tuple[str, tuple[Activation, ...]]]] = {
    # Dropouts alone stand between them.
    (0, 2, 4, 6, 7): ("aesthetic-mlp", ("none",) * 5),
    # A ReLU and a dropout, but for the last two.
    (0, 3, 6, 9, 12, 15, 16): ("nsfw-h14", (*("relu",) * 5, "none", "none")),
}
"""Numbers of an ``nn.Sequential``'s layers with weights -> its layout, and what follows each."""
_EPSILON: Final = 1e-10
"""What the NSFW detector adds to the deviation it divides by."""

Doubles = NDArray[np.float64]
State = Mapping[str, Doubles]


class Linear(NamedTuple):
    """A layer: ``weight`` (out, in), ``bias`` (out,), and what follows them."""

    weight: Doubles
    bias: Doubles
    activation: Activation


class Description(BaseModel, frozen=True, extra="forbid"):
    """What people say of a head that a file of weights does not."""

    name: str
    version: int = 1
    about: str = ""
    source: str
    licence: str
    low: float
    high: float
    keep: Literal["low", "high"]
    calibration: Mapping[str, Any] = Field(default_factory=dict)


class Layout(NamedTuple):
    """A layout that was recognised, and the layers of the file."""

    name: str
    layers: Sequence[Linear]


RANGES: Final[Mapping[str, tuple[float, float, Literal["low", "high"]]]] = {
    "aesthetic-linear": (0.0, 10.0, "high"),
    "aesthetic-mlp": (0.0, 10.0, "high"),
    "nsfw": (0.0, 1.0, "low"),
    "nsfw-h14": (0.0, 1.0, "low"),
}
"""Usual range of a layout's scores, and the end that people want."""


def read_layout(path: Path) -> Layout:
    """Read a PyTorch file of one of the :data:`LAYOUTS`. Raises :class:`HeadError`.

    Nothing but tensors is unpickled: a file with any other object is refused.
    """
    state = _tensors(path)
    names = set(state)
    if names == {"weight", "bias"}:
        return Layout("aesthetic-linear", [_linear(state, "", "none")])
    if {"norm.mean", "norm.variance"} < names and _all_match(
        names - {"norm.mean", "norm.variance"}, _NUMBERED
    ):
        return Layout("nsfw", _nsfw(state))
    if _all_match(names, _SEQUENTIAL):
        return _sequential(state)
    raise HeadError(
        f"{path} has none of the known layouts ({', '.join(LAYOUTS)}); its tensors are "
        f"{', '.join(sorted(names)[:6])}{' and more' if len(names) > 6 else ''}"
    )


def folded(layers: Sequence[Linear]) -> list[Linear]:
    """The same function with fewer layers: those without an activation between them are one."""
    result: list[Linear] = []
    for layer in layers:
        if result and result[-1].activation == "none":
            before = result.pop()
            weight = layer.weight @ before.weight
            layer = Linear(weight, layer.weight @ before.bias + layer.bias, layer.activation)
        result.append(layer)
    return result


def write_head(
    path: Path, description: Description, layers: Sequence[Linear], model: ModelIdentity
) -> Head:
    """Write a head's JSON file and, beside it, its weights; ``model``: the CLIP it belongs to.

    Raises :class:`HeadError` if the layers do not fit one another.
    """
    from safetensors.numpy import save_file

    widths = [layers[0].weight.shape[1], *(len(layer.bias) for layer in layers)]
    for layer, width in zip(layers, widths, strict=False):
        if layer.weight.shape != (len(layer.bias), width):
            raise HeadError(f"a layer of the shape {layer.weight.shape} after one of width {width}")
    if widths[-1] != 1:
        raise HeadError(f"a head has one output, not {widths[-1]}")
    tensors = {
        f"layers.{number}.{name}": np.ascontiguousarray(values, np.float32)
        for number, layer in enumerate(layers)
        for name, values in (("weight", layer.weight), ("bias", layer.bias))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(weights_path(path)) as beside:
        save_file(tensors, beside)
        beside.chmod(0o644)  # safetensors makes the file readable for its owner alone
    head = Head(
        **description.model_dump(),
        **model.identity.model_dump(),
        dim=widths[0],
        activations=tuple(layer.activation for layer in layers),
        weights_sha256=sha256_file(weights_path(path)),
    )
    write_json(path, head.model_dump(mode="json"))
    return head


def _tensors(path: Path) -> State:
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HeadError(f"{path} is not a PyTorch file of tensors alone: {reason}") from error
    # A checkpoint of PyTorch Lightning has the state beside other things.
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise HeadError(f"{path} holds no state dict")
    if others := [name for name, value in loaded.items() if not isinstance(value, torch.Tensor)]:
        raise HeadError(f"{path}: {others[0]} is no tensor")
    return {str(name): value.double().numpy() for name, value in loaded.items()}


def _all_match(names: set[str], pattern: re.Pattern[str]) -> bool:
    return bool(names) and all(pattern.fullmatch(name) for name in names)


def _numbers(state: State, pattern: re.Pattern[str]) -> list[int]:
    return sorted({int(found[1]) for name in state if (found := pattern.fullmatch(name))})


def _linear(state: State, prefix: str, activation: Activation) -> Linear:
    try:
        weight, bias = state[f"{prefix}weight"], state[f"{prefix}bias"]
    except KeyError as error:
        raise HeadError(f"a layer has no {error.args[0]}") from error
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise HeadError(f"{prefix}weight and bias have the shapes {weight.shape} and {bias.shape}")
    return Linear(weight, bias, activation)


def _nsfw(state: State) -> list[Linear]:
    """The layers, with the normalisation of the inputs folded into the first."""
    numbers = _numbers(state, _NUMBERED)
    layers = [
        _linear(state, f"linear_{number}.", "sigmoid" if number == numbers[-1] else "relu")
        for number in numbers
    ]
    first, mean = layers[0], state["norm.mean"]
    deviation = np.sqrt(state["norm.variance"]) + _EPSILON
    if mean.shape != deviation.shape or mean.shape != first.weight.shape[1:]:
        raise HeadError("the normalisation is of another width than the first layer")
    weight = first.weight / deviation
    return [Linear(weight, first.bias - weight @ mean, first.activation), *layers[1:]]


def _sequential(state: State) -> Layout:
    """The layers of a known ``nn.Sequential``, of which the file has only those with weights."""
    numbers = tuple(_numbers(state, _SEQUENTIAL))
    if numbers not in _BETWEEN:
        raise HeadError(
            f"the layers have the numbers {', '.join(map(str, numbers))}: what stands between them "
            "is unknown"
        )
    name, activations = _BETWEEN[numbers]
    return Layout(
        name,
        [
            _linear(state, f"layers.{number}.", activation)
            for number, activation in zip(numbers, activations, strict=True)
        ],
    )
