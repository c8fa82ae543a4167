"""Fuzz the search service over HTTP by its own OpenAPI document: ``python -m tests.fuzz.service``.

Schemathesis makes requests of the document, and others that break it. No answer may be a server's
error, or of another type or shape than the document says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from laion_assets.clip.model import load_clip
from tests.search.conftest import CLIP, FIRST, FREE, SECOND, SmallLake, rows, serving

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
OPTIONS = FREE.model_copy(update={"removal_queue_bytes": 10**9, "removal_rate": 1e6})


def main() -> None:
    seconds = sys.argv[1]
    model = load_clip(CLIP)
    with tempfile.TemporaryDirectory() as folder:
        lake = SmallLake(Path(folder) / "lake", model)
        for key, chosen in zip((FIRST, SECOND), rows(), strict=True):
            lake.write(key, chosen)
        lake.publish(FIRST, SECOND)
        with serving(lake.index, model, OPTIONS) as served:
            command = [str(Path(sys.executable).parent / "st"), "run", f"{served.url}openapi.json"]
            command += ["--checks", CHECKS, "--phases", "coverage,fuzzing", "--max-time", seconds]
            done = subprocess.run([*command, "--continue-on-failure"], check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
