"""A copy of the checkout: the files that git tracks or would track, and no others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def checkout_files() -> list[Path]:
    """List the files that git does not ignore, relative to the checkout's root."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = sorted(set(filter(None, listed.stdout.split("\0"))))
    return [Path(name) for name in names if (ROOT / name).is_file()]


def copy_checkout(to: Path) -> list[Path]:
    """Copy the checkout's files below ``to``; return their relative paths."""
    files = checkout_files()
    for file in files:
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, to / file)
    return files
