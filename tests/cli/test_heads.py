"""A published file becomes a head of the settings, by commands alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from laion_assets.clip.embed import MadeOf
from laion_assets.heads.score import Scorer
from tests.cli.conftest import laion_assets, refused
from tests.heads.conftest import MODEL


def test_a_converted_head_is_listed_with_the_shipped_ones(tmp_path: Path) -> None:
    torch.save(nn.Linear(8, 1).state_dict(), tmp_path / "sa_0_4_tiny_linear.pth")
    embeddings = tmp_path / "embeddings"
    embeddings.mkdir()
    MadeOf(1, {0: MODEL.model_dump()}).write(embeddings)
    config = tmp_path / "config.toml"
    config.write_text("")
    out = tmp_path / "heads" / "aesthetic.json"
    convert = ("heads", "convert", "--config", config, tmp_path / "sa_0_4_tiny_linear.pth")
    done = laion_assets(*convert, "--embeddings", embeddings, "--licence", "MIT", "-o", out)
    assert (done.code, done.out) == (0, f"{out}\n"), done.err
    assert "layout aesthetic-linear: 1 layers, 1 after folding, of width 8" in done.err

    config.write_text(f'[heads.beauty]\nfile = "{out}"\n')
    listed = laion_assets("heads", "list", "--config", config)
    assert listed.code == 0, listed.err
    head = Scorer.load("beauty", str(out)).head
    first, second, third, *others = listed.out.splitlines()
    assert first.startswith("score_beauty: aesthetic v1, Converted from sa_0_4_tiny_linear.pth")
    assert MODEL.title in second
    assert third == f"  source sa_0_4_tiny_linear.pth; licence MIT; digest {head.digest}"
    assert others[0].startswith("shipped watermark-tiny: ")


def test_embeddings_of_an_unknown_model_make_no_head(tmp_path: Path) -> None:
    torch.save(nn.Linear(8, 1).state_dict(), tmp_path / "file.pth")
    (tmp_path / "embeddings").mkdir()
    done = laion_assets(
        *("heads", "convert", tmp_path / "file.pth", "--embeddings", tmp_path / "embeddings"),
        *("-o", tmp_path / "head.json"),
    )
    refused(done, "does not say which model made it")
