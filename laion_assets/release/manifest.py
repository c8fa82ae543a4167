"""Names of the files that describe a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
README: Final = "README.md"
CROISSANT: Final = "croissant.json"


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
