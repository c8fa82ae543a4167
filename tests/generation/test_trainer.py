from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from laion_assets.generation.trainer import DivergedError, Schedule, fit

TRAIN = """
import json, sys, time
from pathlib import Path
import torch
from laion_assets.generation.trainer import Schedule, fit

def train(folder, slow):
    torch.set_num_threads(1)
    torch.manual_seed(5)
    linear = torch.nn.Linear
    model = torch.nn.Sequential(linear(8, 16), torch.nn.Dropout(0.5), linear(16, 1))
    def loss_of(number):
        time.sleep(slow)
        return model(torch.randn(4, 8)).square().mean()
    schedule = Schedule(60, 1e-2, 3, "fp32", accumulate=2, checkpoint_every=7, evaluate_every=20)
    held = torch.linspace(-1, 1, 32).reshape(4, 8)
    curve = fit("test", model, loss_of, schedule, folder / "checkpoint.safetensors",
                held_out=lambda: float(model(held).detach().square().mean()))
    return {"curve": [vars(point) for point in curve],
            "weights": [p.flatten().tolist() for p in model.parameters()]}

if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]), float(sys.argv[2]))))
"""


def start(script: Path, folder: Path, slow: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(folder), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_training_resumes_with_the_curve_that_it_would_have_had(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    killed = tmp_path / "killed"
    process = start(script, killed, 0.05)
    train = runpy.run_path(str(script))["train"]
    while not (killed / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # A torn file stays beside the checkpoint under a name that nobody reads.
    (killed / ".torn.checkpoint.safetensors").write_bytes(os.urandom(100))
    undisturbed = train(tmp_path / "undisturbed", 0)
    assert len(undisturbed["curve"]) == 6
    resumed = json.loads(start(script, killed, 0).communicate()[0])
    assert resumed == undisturbed
    # A finished one is not trained again.
    assert train(killed, 60) == undisturbed


def test_accumulated_passes_are_one_larger_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(12, 8, 4)

    def trained(accumulate: int) -> list[float]:
        torch.manual_seed(1)
        model = torch.nn.Linear(4, 1)
        rows = data.reshape(-1, 8 // accumulate, 4)
        schedule = Schedule(12, 1e-2, 0, "fp32", accumulate)
        checkpoint = tmp_path / f"{accumulate}.safetensors"
        fit("test", model, lambda n: (model(rows[n]) - 1).square().mean(), schedule, checkpoint)
        return [float(value) for value in model.weight.detach().flatten()]

    assert trained(4) == pytest.approx(trained(1), abs=1e-6)


def test_mixed_precision_trains_in_bf16_and_keeps_fp32_weights(tmp_path: Path) -> None:
    model, seen = torch.nn.Linear(4, 1), set()

    def loss_of(_: int) -> torch.Tensor:
        answer = model(torch.ones(2, 4))
        seen.add(answer.dtype)
        return answer.float().square().mean()

    curve = fit("test", model, loss_of, Schedule(20, 0.1, 0, "bf16"), tmp_path / "c.safetensors")
    assert seen == {torch.bfloat16}
    assert model.weight.dtype == torch.float32
    assert curve[-1].loss < curve[0].loss


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)

    def loss_of(number: int) -> torch.Tensor:
        return model(torch.ones(1, 1)).sum() * (float("nan") if number == 7 else 1)

    path = tmp_path / "c.safetensors"
    with pytest.raises(DivergedError, match="step 7"):
        fit("test", model, loss_of, Schedule(20, 0.1, 0, "fp32", checkpoint_every=5), path)
    assert path.exists()


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(100, 1.0, 0, "fp32")
    rates = [schedule.rate_at(step) for step in range(100)]
    assert max(rates) == rates[5] == pytest.approx(1)
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
