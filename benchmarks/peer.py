"""Peers as released, each in its own virtual environment."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

WORK: Final = Path(__file__).parent.parent / ".bench"
"""Folder of the benchmarks' environments, inputs and outputs; not under version control."""


def peer_python(name: str, requirements: Path) -> Path:
    """Interpreter of an environment with the pinned ``requirements``, created on first use.

    Raises ``subprocess.CalledProcessError`` if pip cannot install them.
    """
    folder = WORK / "venvs" / name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == digest):
        print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)]
        subprocess.run(pip, check=True)
        stamp.write_text(digest)
    return python
