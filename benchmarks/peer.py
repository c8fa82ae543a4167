"""Peers as they are released, each in a virtual environment of its own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

WORK: Final = Path(__file__).parent.parent / ".bench"
"""What benchmarks make: environments, inputs, outputs. Not under version control."""


def peer_python(name: str, requirements: Path) -> Path:
    """The interpreter of an environment with the pinned ``requirements``; made if it is not there.

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
