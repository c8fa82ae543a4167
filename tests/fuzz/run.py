"""Fuzz every target for its share of the time: ``python -m tests.fuzz.run SECONDS [TARGET ...]``.

What was found lies in ``.fuzz/``: a corpus for each target, from which the next run goes on, and
each input that failed. ``python -m tests.fuzz.one TARGET .fuzz/FILE`` repeats one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOUND = Path(".fuzz")
TARGETS = ("wat", "picture", "list", "pointer", "manifest", "http", "service")


def main() -> None:
    seconds, *chosen = sys.argv[1:]
    targets = chosen or list(TARGETS)
    share = max(1, int(seconds) // len(targets))
    failed = [target for target in targets if not _fuzz(target, share)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see above, and {FOUND}/")
    print(f"nothing found in {share} s each: {', '.join(targets)}")


def _fuzz(target: str, seconds: int) -> bool:
    """Whether nothing was found."""
    print(f"== {target}", flush=True)
    if target == "service":
        return _run("tests.fuzz.service", str(seconds)) == 0
    corpus = FOUND / target
    corpus.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=3000", "-verbosity=0"]
    return _run("tests.fuzz.one", target, str(corpus), *limits, f"-artifact_prefix={corpus}-") == 0


def _run(module: str, *args: str) -> int:
    return subprocess.run([sys.executable, "-m", module, *args], check=False).returncode


if __name__ == "__main__":
    main()
