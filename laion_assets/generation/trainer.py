"""One resumable training loop: gradient accumulation, mixed precision, checkpoints, curves.

No random state outlives a forward pass: before each one the generators are seeded from the seed
and the pass's number, and a batch is a function of that number. A killed training therefore
resumes with the curve it would have had, and a checkpoint is weights, moments and the curve.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from laion_assets.files import atomic_path
from laion_assets.generation.options import GenerationOptions
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch

CURVE_EVERY: Final = 10
"""Optimiser steps between two points of a curve."""
_CLIP_NORM: Final = 1.0
_DECAY: Final = 0.01
_WARM_UP: Final = 0.05
"""Share of the steps in which the rate rises."""


class DivergedError(RuntimeError):
    """The loss is no longer a finite number; the message names the step."""


@dataclass(frozen=True)
class Schedule:
    """Length, learning rate and intervals of a training.

    ``accumulate`` forward passes of a batch make one of ``steps`` optimiser steps. The rate rises
    to ``rate`` over the first twentieth and then falls as a cosine to a tenth of it.
    """

    steps: int
    rate: float
    seed: int
    precision: str
    accumulate: int = 1
    checkpoint_every: int = 100
    evaluate_every: int = 100

    @classmethod
    def of_autoencoder(cls, options: GenerationOptions, precision: str) -> Schedule:
        intervals = options.checkpoint_every, options.evaluate_every
        steps, rate, accumulate = options.vq_steps, options.vq_rate, options.vq_accumulate
        return cls(steps, rate, options.seed, precision, accumulate, *intervals)

    @classmethod
    def of_transformer(cls, options: GenerationOptions, precision: str) -> Schedule:
        intervals = options.checkpoint_every, options.evaluate_every
        steps, rate, accumulate = options.steps, options.rate, options.accumulate
        return cls(steps, rate, options.seed, precision, accumulate, *intervals)

    def rate_at(self, step: int) -> float:
        """Learning rate of an optimiser step."""
        warm = max(1, round(self.steps * _WARM_UP))
        if step < warm:
            return self.rate * (step + 1) / warm
        share = (step - warm) / max(1, self.steps - warm)
        return self.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True)
class Point:
    """One point of a loss curve, after ``step`` steps.

    ``loss`` is the mean training loss of the steps since the point before; ``held_out`` is the
    held-out loss, if it was measured.
    """

    step: int
    loss: float
    held_out: float | None = None


def fit(
    what: str,
    model: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    schedule: Schedule,
    checkpoint: Path,
    *,
    held_out: Callable[[], float] | None = None,
    carried: Mapping[str, torch.Tensor] | None = None,
    watch: Callable[[torch.optim.Optimizer], None] | None = None,
) -> list[Point]:
    """Train ``model`` in place and return its curve, a point every ten steps.

    Args:
        loss_of: returns the loss of a forward pass by its number (0, 1, …); ``accumulate`` passes
            make a step.
        checkpoint: a safetensors file. An existing one is resumed from; one of a finished training
            is only loaded.
        held_out: returns a loss to measure every ``evaluate_every`` steps and at the end.
        carried: tensors that ``loss_of`` changes in place from one pass to the next; they are
            saved and restored with the weights.
        watch: receives the optimiser before the first step.

    Raises:
        DivergedError: if the loss is not finite; the last checkpoint stays.
    """
    import torch

    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), schedule.rate, weight_decay=_DECAY)
    scaler = torch.amp.GradScaler(device.type, enabled=schedule.precision == "fp16")
    if watch:
        watch(optimizer)
    carried = carried or {}
    start, curve, pending = 0, list[Point](), list[float]()
    if checkpoint.exists():
        start, curve, pending = _restore(checkpoint, model, optimizer, scaler, carried)
    progress = Progress(what, "steps", schedule.steps, logger, resumed=start)
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step in range(start, schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(step)
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for number in range(step * schedule.accumulate, (step + 1) * schedule.accumulate):
                torch.manual_seed(schedule.seed * 1_000_003 + number)
                with mixed(device, schedule.precision):
                    loss = loss_of(number)
                scaler.scale(loss / schedule.accumulate).backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach()) / schedule.accumulate
            if not math.isfinite(total):
                raise DivergedError(f"{what}: the loss is {total} at step {step}; lower the rate")
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
            scaler.step(optimizer)
            scaler.update()

            pending.append(total)
            done, last = step + 1, step + 1 == schedule.steps
            measured = None
            if held_out and (done % schedule.evaluate_every == 0 or last):
                model.eval()
                measured = held_out()
                model.train()
            if done % CURVE_EVERY == 0 or measured is not None or last:
                curve.append(Point(done, sum(pending) / len(pending), measured))
                pending = []
            if done % schedule.checkpoint_every == 0 or last:
                _save(checkpoint, model, optimizer, scaler, carried, done, curve, pending)
            progress.advance(note=f"loss {total:.3f}")
    model.eval()
    return curve


def save_model(model: Any, folder: Path) -> None:
    """Save a model of diffusers or transformers as safetensors and a JSON configuration."""
    model.save_pretrained(folder, safe_serialization=True)


def mixed(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bf16 or fp16; a context without effect for other precisions."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _save(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    carried: Mapping[str, torch.Tensor],
    step: int,
    curve: list[Point],
    pending: list[float],
) -> None:
    from safetensors.torch import save_file

    tensors = {f"carried/{name}": tensor for name, tensor in carried.items()}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for moment, value in optimizer.state[parameter].items():
            tensors[f"{moment}/{name}"] = value
    state = {
        "step": step,
        "curve": [vars(point) for point in curve],
        "pending": pending,
        "scaler": scaler.state_dict(),
    }
    with atomic_path(path) as beside:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            beside,
            {"state": json.dumps(state)},
        )


def _restore(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    carried: Mapping[str, torch.Tensor],
) -> tuple[int, list[Point], list[float]]:
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file, torch.no_grad():
        state = json.loads(file.metadata()["state"])
        names = set(file.keys())
        for name, tensor in carried.items():
            tensor.copy_(file.get_tensor(f"carried/{name}"))
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model/{name}"))
            moments = ("step", "exp_avg", "exp_avg_sq")
            if f"exp_avg/{name}" not in names:
                continue  # it has not had a gradient yet
            kept = {moment: file.get_tensor(f"{moment}/{name}") for moment in moments}
            optimizer.state[parameter] = {
                # AdamW counts its steps on the CPU.
                moment: value if moment == "step" else value.to(parameter.device)
                for moment, value in kept.items()
            }
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return state["step"], [Point(**point) for point in state["curve"]], state["pending"]
