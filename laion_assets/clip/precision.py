"""In which precision a model computes, and which of them the CPU has instructions for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

CPU_INFO: Final = Path("/proc/cpuinfo")
BF16: Final = "bf16"
_BF16_FLAGS: Final = {"amx_bf16", "avx512_bf16"}


def choose_precision(name: str, device: torch.device) -> str:
    """Precision that the options name; ``auto`` is fp16 on CUDA and fp32 elsewhere.

    OpenAI's models were run in fp16.
    """
    if name != "auto":
        return name
    return "fp16" if device.type == "cuda" else "fp32"


def possible_precision(name: str, device: torch.device) -> str:
    """Precision in which a model runs on the device, by :func:`choose_precision`.

    A CPU without instructions for bf16 emulates them, at a loss of exactness: there it is fp32,
    which is logged. Queries may be embedded so; :func:`fallback` says why samples may not.
    """
    precision = choose_precision(name, device)
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        logger.warning(
            "precision bf16: this CPU has neither AMX nor AVX512-BF16, so the model runs in fp32"
        )
        return "fp32"
    return precision


def fallback(name: str, precision: str) -> str:
    """Why a model that runs in ``precision`` may not embed samples; empty if it may.

    ``name`` is the options' precision. Vectors in bf16 and fp32 would mix in one table.
    """
    if name in ("auto", precision):
        return ""
    return (
        f"precision {name} is asked for, but this CPU has neither AMX nor AVX512-BF16"
        " (flags amx_bf16, avx512_bf16): embed on a machine that has one of them, or set"
        ' precision = "fp32" in [clip], with which everything is embedded again'
    )


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU multiplies in bf16: x86 with AMX or AVX512-BF16, on Linux."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # macOS
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not _BF16_FLAGS.isdisjoint(flags.split())
