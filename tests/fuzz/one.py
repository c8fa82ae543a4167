"""Fuzz one target until its time is over or something fails: ``python -m tests.fuzz.one wat``.

libFuzzer's options may follow, among them inputs that failed before.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris


def main() -> None:
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["laion_assets"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    folders = [Path(option) for option in options if not option.startswith("-")]
    if folders and folders[0].is_dir():
        for number, seed in enumerate(target.seeds()):
            (folders[0] / f"seed-{number:03d}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
