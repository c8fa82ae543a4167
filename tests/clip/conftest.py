"""A small CLIP for the tests (open_clip, seeded random weights), and shards in real tars."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from laion_assets.clip import precision
from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.options import ClipOptions

MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"}

MakeShard = Callable[..., Path]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder for `local-dir:`."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS})
    )
    torch.manual_seed(7)
    state = open_clip.CLIP(**MODEL).state_dict()
    # Initial weights map all texts to almost the same vector.
    state["token_embedding.weight"] *= 50
    state["positional_embedding"] *= 50
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def options(clip_folder: Path) -> ClipOptions:
    return ClipOptions(model=f"local-dir:{clip_folder}", pretrained="", device="cpu", batch_size=4)


@pytest.fixture(scope="session")
def model(options: ClipOptions) -> ClipModel:
    return load_clip(options)


@pytest.fixture(scope="session")
def other_model(
    clip_folder: Path, options: ClipOptions, tmp_path_factory: pytest.TempPathFactory
) -> ClipModel:
    """A model like :func:`model`, with other weights."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(clip_folder, tmp_path_factory.mktemp("other") / "clip")
    state = load_file(folder / "open_clip_model.safetensors")
    state["text_projection"][0, 0] += 0.01
    save_file(state, folder / "open_clip_model.safetensors")
    return load_clip(options.model_copy(update={"model": f"local-dir:{folder}"}))


def as_processor(monkeypatch: pytest.MonkeyPatch, folder: Path, flag: str) -> str:
    """Have the processor's description name a flag, whatever this one has."""
    info = f"processor\t: 0\nflags\t\t: fpu sse {flag} avx2\nprocessor\t: 1\n"
    (folder / "cpuinfo").write_text(info)
    monkeypatch.setattr(precision, "CPU_INFO", folder / "cpuinfo")
    return info


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Function that says whether Pillow has started `gs`, of which PATH has a stand-in."""
    folder, sign = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\n: > '{sign}'\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    # Pillow looks for `gs` only once.
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(OSError):
        Image.open(io.BytesIO(EPS)).load()
    assert sign.exists(), "the stand-in is not found"
    sign.unlink()
    return sign.exists


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of a shard's parquet; `image` holds the bytes of its picture in the tar."""
    key = f"{number:09d}"
    return {
        "url": f"https://a.test/{number}.jpg",
        "caption": f"a picture of thing {number}",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 64,
        "height": 64,
        "original_width": 400 + number,
        "original_height": 300 + number,
        "sha256": f"{number:064x}",
        "uid": bytes([number]) * 16,
        "language": "en",
        "language_score": 0.5,
        "license": "?",
        "page_url": "https://a.test/",
        "crawl": "CC-MAIN-2021-01",
        "segment": "00",
        "wat_file": "a.warc.wat.gz",
        "md5": f"{number:032x}",
        "image": jpeg(picture(number)),
    } | changes


@pytest.fixture
def make_shard(tmp_path: Path) -> MakeShard:
    def make(rows: list[dict[str, Any]], number: int = 0, schema: pa.Schema | None = None) -> Path:
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        tar = folder / f"{number:05d}.tar"
        with tarfile.open(tar, "w") as archive:
            for one in rows:
                if one["status"] == "success" and one["image"] is not None:
                    text = one["caption"].encode()
                    members = {"jpg": one["image"], "txt": text, "json": b"{}"}
                    for suffix, content in members.items():
                        member = tarfile.TarInfo(f"{one['key']}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
        columns = [{k: v for k, v in one.items() if k != "image"} for one in rows]
        table = pa.Table.from_pylist(columns, schema=schema)
        pq.write_table(table, tar.with_suffix(".parquet"))
        return tar

    return make
