"""Published layouts, made by torch as their authors make them, against torch's own forward."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from laion_assets.heads.convert import folded, read_layout, write_head
from laion_assets.heads.head import HeadError, load_head
from laion_assets.heads.score import Scorer
from tests.heads.conftest import MODEL, described


class InLayers(nn.Module):
    """`layers` of an nn.Sequential, as two of the authors have them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.layers(x)
        return value


def aesthetic_mlp() -> nn.Module:
    return InLayers(
        *(nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
        *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
    )


def nsfw_h14() -> nn.Module:
    widths = (1024, 1024, 2048, 1024, 256, 128)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.2)]
    return InLayers(*layers, nn.Linear(128, 16), nn.Linear(16, 1))


class Nsfw(nn.Module):
    """The detector for ViT-L/14: normalised inputs, ReLU layers, a sigmoid."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.norm = nn.Module()
        self.norm.register_buffer("mean", torch.randn(widths[0]) / 30)
        self.norm.register_buffer("variance", torch.rand(widths[0]) / 500 + 1e-4)
        self.count = len(widths)
        for number, (before, after) in enumerate(zip(widths, (*widths[1:], 1), strict=True), 1):
            setattr(self, f"linear_{number}", nn.Linear(before, after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.norm.mean) / (self.norm.variance.sqrt() + 1e-10)
        for number in range(1, self.count):
            x = torch.relu(getattr(self, f"linear_{number}")(x))
        return torch.sigmoid(getattr(self, f"linear_{self.count}")(x))


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], str, int, int]] = {
    "aesthetic predictor": (lambda: nn.Linear(512, 1), "aesthetic-linear", 512, 1),
    "improved aesthetic predictor": (aesthetic_mlp, "aesthetic-mlp", 768, 1),
    "NSFW detector, L/14": (lambda: Nsfw(768, 64, 512, 256), "nsfw", 768, 4),
    "NSFW detector, B/32": (lambda: Nsfw(512, 32, 32), "nsfw", 512, 3),
    "NSFW detector, H/14": (nsfw_h14, "nsfw-h14", 1024, 6),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_scores_are_those_of_torch(name: str, tmp_path: Path) -> None:
    make, layout, width, layers = LAYOUTS[name]
    torch.manual_seed(7)
    model = make().eval()
    torch.save(model.state_dict(), tmp_path / "published.pth")

    found = read_layout(tmp_path / "published.pth")
    assert found.name == layout
    head = write_head(tmp_path / "head.json", described(), folded(found.layers), MODEL)
    assert (head.dim, len(head.activations)) == (width, layers)

    images = torch.nn.functional.normalize(torch.randn(64, width), dim=1)
    with torch.no_grad():
        expected = model(images)[:, 0].numpy()
    # As the lake stores them, and of another length: a head takes unit vectors.
    stored = (images.numpy() * 0.999).astype(np.float16)
    scores = Scorer.load("own", str(tmp_path / "head.json")).score(stored)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=2e-3)
    exact = Scorer.load("own", str(tmp_path / "head.json")).score(images.numpy())
    np.testing.assert_allclose(exact, expected, atol=2e-5)


def test_a_lightning_checkpoint_has_its_state_inside(tmp_path: Path) -> None:
    state = nn.Linear(8, 1).state_dict()
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.ckpt")
    (layer,) = read_layout(tmp_path / "checkpoint.ckpt").layers
    np.testing.assert_array_equal(layer.weight, state["weight"].double().numpy())


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/he-was-here"),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weight": torch.zeros(1, 8)}, "none of the known layouts"),
        ({"layers.0.weight": torch.zeros(1, 8), "layers.0.bias": torch.zeros(1)}, "unknown"),
        ({"weight": torch.zeros(2, 8), "bias": torch.zeros(1)}, "have the shapes"),
        ({"weight": 3}, "is no tensor"),
        ([torch.zeros(1)], "no state dict"),
        (Harmful(), "not a PyTorch file of tensors alone"),
    ],
)
def test_another_file_is_refused(content: object, reason: str, tmp_path: Path) -> None:
    if isinstance(content, Harmful):
        (tmp_path / "file.pth").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "file.pth")
    with pytest.raises(HeadError, match=reason):
        read_layout(tmp_path / "file.pth")
    assert not Path("/tmp/he-was-here").exists()


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    torch.save(nn.Linear(8, 1).state_dict(), tmp_path / "file.pth")
    layers = read_layout(tmp_path / "file.pth").layers
    head = write_head(tmp_path / "head.json", described("mine"), layers, MODEL)
    assert load_head(str(tmp_path / "head.json")) == head
    assert (head.title, head.identity) == ("mine v1", MODEL)
