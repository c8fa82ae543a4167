"""A head's description: a JSON file that names its CLIP, its source, its licence and its layers.

The weights are a safetensors file of the same name beside it, with the float32 tensors
``layers.N.weight`` (out, in) and ``layers.N.bias`` (out,).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from laion_assets.clip.identity import ModelIdentity
from laion_assets.files import sha256_file

SHIPPED: Final = Path(__file__).with_name("shipped")

Activation = Literal["none", "relu", "sigmoid"]


class HeadError(ValueError):
    """A head is missing, invalid, or of another model; the message says which and why."""


class Head(BaseModel, frozen=True, extra="forbid"):
    """What a head is, without its weights. It takes image embeddings of unit length."""

    name: str = Field(min_length=1)
    version: int = Field(ge=1)
    about: str
    source: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    model: str
    """`MODEL/PRETRAINED` of the CLIP whose embeddings it takes, for people."""
    model_version: str = Field(min_length=1)
    """Version of that CLIP (:attr:`laion_assets.clip.identity.ModelIdentity.model_version`)."""
    dim: int = Field(ge=1)
    """Width of the embeddings."""
    activations: tuple[Activation, ...] = Field(min_length=1)
    """What follows each layer; there are as many layers."""
    low: float
    high: float
    """Usual range of the scores, for sliders: a score may lie outside."""
    keep: Literal["low", "high"]
    """The end of the range that people usually want."""
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    calibration: Mapping[str, Any] = Field(default_factory=dict)
    """What its makers measured."""

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self

    @property
    def identity(self) -> ModelIdentity:
        """The CLIP that it belongs to."""
        return ModelIdentity(model=self.model, model_version=self.model_version)

    @property
    def title(self) -> str:
        """`NAME vVERSION`, as shown in metadata."""
        return f"{self.name} v{self.version}"

    @property
    def digest(self) -> str:
        """Digest, 16 hex digits, of what decides a score: part of the scores' version."""
        content = [self.model_version, self.dim, self.activations, self.weights_sha256]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def in_all(of_each: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Compare the heads, name -> digest, that scored each of some partitions.

    Returns those that scored all of them with the same weights, and the names of the others, both
    sorted.
    """
    same = set[tuple[str, str]].intersection(*(set(of_one.items()) for of_one in of_each))
    others = {name for of_one in of_each for name, _ in of_one.items() - same}
    return dict(sorted(same)), sorted(others)


def shipped_heads() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def head_path(name_or_path: str) -> Path:
    """The JSON file of a shipped head, by its name, or of one's own, by its path."""
    shipped = SHIPPED / f"{name_or_path}.json"
    return shipped if shipped.is_file() else Path(name_or_path)


def weights_path(path: Path) -> Path:
    """The weights beside a head's JSON file."""
    return path.with_suffix(".safetensors")


def load_head(name_or_path: str) -> Head:
    """Read a shipped head by name, or a JSON file, and compare its weights' digest.

    Raises :class:`HeadError`.
    """
    path = head_path(name_or_path)
    try:
        head = Head.model_validate_json(path.read_bytes())
        digest = sha256_file(weights_path(path))
    except OSError as error:
        if error.filename and Path(error.filename).suffix == ".safetensors":
            raise HeadError(f"{path} has no weights beside it: {error.filename}") from error
        raise HeadError(
            f"no head {name_or_path!r}: it is neither shipped ({', '.join(shipped_heads())}) nor "
            "a file"
        ) from error
    except ValidationError as error:
        problems = "; ".join(
            ": ".join(filter(None, (".".join(map(str, found["loc"])), found["msg"])))
            for found in error.errors()
        )
        raise HeadError(f"{path}: {problems}") from error
    if digest != head.weights_sha256:
        raise HeadError(
            f"{weights_path(path)} is not the file that {path.name} describes: convert it again"
        )
    return head
