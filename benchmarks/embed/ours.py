"""Ours, one way per process: ``python -m benchmarks.embed.ours WAY SHARDS WEIGHTS OUT BATCH``.

``embed`` is ours. The others are the bare model: images and tokens are ready in memory, and only
open_clip's two encoders run. ``model`` encodes all texts at the 77 tokens of their context, as
open_clip and the peer do; ``model_short`` at their own length, which is the work that ours has.
Prints a JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.embed.weights import MODEL
from laion_assets.clip.embed import embed_files
from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.shards import find_shards, read_rows
from laion_assets.download.tars import ImageBytes


def embed(model: ClipModel, shards: Path, out: Path) -> dict[str, float]:
    before = time.process_time()
    embedded = embed_files(find_shards(shards), out, model, model.options)
    return {
        "n": embedded.samples,
        "seconds": embedded.seconds,
        "cpu_seconds": time.process_time() - before,
        "waited_seconds": embedded.waited_seconds,
    }


def bare(model: ClipModel, shards: Path, *, short: bool) -> dict[str, float]:
    images, tokens = _ready(model, shards)
    size = model.options.batch_size
    # A first call's set-up is not part of the model's speed; the peer warms up, too.
    model.module.encode_image(images[:size])
    cuda = model.device.type == "cuda"
    started, before = time.perf_counter(), time.process_time()
    for first in range(0, len(images), size):
        model.module.encode_image(images[first : first + size])
        if not short:
            model.module.encode_text(tokens[first : first + size].to(model.device))
    if short:
        model.embed_tokens(tokens.numpy())
    if cuda:
        torch.cuda.synchronize()
    return {
        "n": len(images),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - before,
    }


def _ready(model: ClipModel, shards: Path) -> tuple[torch.Tensor, torch.Tensor]:
    import io

    from PIL import Image

    images, texts = [], []
    for tar in find_shards(shards):
        rows = read_rows(tar)
        texts += rows["text"].to_pylist()
        with ImageBytes(tar) as encoded:
            for key in rows["key"].to_pylist():
                images.append(model.preprocess(Image.open(io.BytesIO(encoded.read(key)))))
    return torch.stack(images).to(model.device), torch.from_numpy(np.copy(model.tokenize(texts)))


def main() -> None:
    way, shards, weights, out, batch = sys.argv[1:]
    options = ClipOptions(model=MODEL, pretrained=weights, batch_size=int(batch))
    model = load_clip(options)
    half = torch.autocast(model.device.type, torch.float16, enabled=model.precision == "fp16")
    with torch.inference_mode(), half:
        if way == "embed":
            answer = embed(model, Path(shards), Path(out))
        else:
            answer = bare(model, Path(shards), short=way == "model_short")
    print(json.dumps(answer | {"device": str(model.device), "precision": model.precision}))


if __name__ == "__main__":
    main()
