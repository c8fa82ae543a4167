"""Ours and the bare model, in turn: ``python -m benchmarks.embed.ours SHARDS WEIGHTS OUT BATCH
ROUNDS PRECISION WAY…``.

``embed`` is ours. The others are the bare model: images and tokens are ready in memory, and only
open_clip's two encoders run, as torch divides their operations among the cores, on eight pictures
at once on a CPU. ``model`` encodes all texts at the 77 tokens of their context, as open_clip and
the peer do; ``model_short`` at their own length, by our code.

All ways are warmed up alike by a batch of images and of texts, and then take turns, so that neither
a first call's set-up nor a busy moment of the machine is counted for one alone. Prints a JSON line:
seconds and CPU seconds of each way's rounds, and the CPU seconds of the cold start by its parts.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from laion_assets.clip.model import ClipModel

Ready = tuple["torch.Tensor", "torch.Tensor"]


def embed(model: ClipModel, shards: Path, out: Path) -> dict[str, float]:
    from laion_assets.clip.embed import embed_files
    from laion_assets.clip.shards import find_shards

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    embedded = embed_files(find_shards(shards), out, model, model.options)
    return {"n": embedded.samples, "waited_seconds": embedded.waited_seconds}


def bare(model: ClipModel, ready: Ready, *, short: bool) -> dict[str, float]:
    import torch

    from laion_assets.clip.model import AT_ONCE

    images, tokens = ready
    size = model.options.batch_size
    at_once = max(AT_ONCE, torch.get_num_threads()) if model.device.type == "cpu" else size
    with torch.inference_mode():
        for some in torch.split(images, at_once):
            model.module.encode_image(some)
        if not short:
            for words in torch.split(tokens, size):
                model.module.encode_text(words.to(model.device))
    if short:
        model.embed_tokens(tokens.numpy())
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return {"n": len(images)}


def ready_made(model: ClipModel, shards: Path) -> Ready:
    import io

    import numpy as np
    import torch
    from PIL import Image

    from laion_assets.clip.shards import find_shards, read_rows
    from laion_assets.download.tars import ImageBytes

    images, texts, transform = [], [], model.preprocess.transform
    for tar in find_shards(shards):
        rows = read_rows(tar)
        texts += rows["text"].to_pylist()
        with ImageBytes(tar) as encoded:
            for key in rows["key"].to_pylist():
                images.append(transform(Image.open(io.BytesIO(encoded.read(key)))))
    return torch.stack(images).to(model.device), torch.from_numpy(np.copy(model.tokenize(texts)))


def timed(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    started, before = time.perf_counter(), time.process_time()
    answer = work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    return {"seconds": seconds, "cpu_seconds": cpu} | answer


def main() -> None:
    shards, weights, out, batch, rounds, precision, *ways = sys.argv[1:]
    cold: dict[str, float] = {}

    def part(name: str) -> None:
        cold[name] = time.process_time() - sum(cold.values())

    import numpy as np
    import open_clip  # noqa: F401 - to see what it costs
    import torch

    from benchmarks.embed.weights import MODEL
    from laion_assets.clip.model import load_clip
    from laion_assets.clip.options import ClipOptions

    part("imports")
    options = ClipOptions(
        model=MODEL, pretrained=weights, batch_size=int(batch), precision=precision
    )
    model = load_clip(options)
    part("load")
    side = model.module.visual.image_size[0]
    warm = [np.zeros((side, side, 3), np.uint8)] * options.batch_size
    list(model.embed_images([warm]))
    model.embed_tokens(model.tokenize(["a small red house by the sea"] * options.batch_size))
    part("first batches")
    ready = ready_made(model, Path(shards)) if {*ways} - {"embed"} else None
    half = torch.autocast(model.device.type, torch.float16, enabled=model.precision == "fp16")
    found: dict[str, list[Any]] = {way: [] for way in ways}
    for turn in range(int(rounds)):
        for way in ways[:: 1 if turn % 2 == 0 else -1]:
            if way == "embed":
                found[way].append(timed(lambda: embed(model, Path(shards), Path(out))))
                continue
            assert ready is not None
            with half:
                short = way == "model_short"
                found[way].append(timed(lambda short=short: bare(model, ready, short=short)))  # type: ignore[misc]
    about = {"device": str(model.device), "precision": model.precision, "cold": cold}
    print(json.dumps({"rounds": found} | about))


if __name__ == "__main__":
    main()
