"""Code versions that change with the rules: a new threshold makes old partitions stale."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel

from laion_assets.options import versioned


def code_version(revision: int, *parts: BaseModel | str) -> str:
    """Return ``"<revision>-<digest of the parts>"``.

    ``revision`` is raised by hand when the code's results change. A part is options, of which the
    operational fields do not count, or a string that stands for other data, such as the digest of
    a word list.
    """
    if not parts:
        return str(revision)
    values = [part if isinstance(part, str) else versioned(part) for part in parts]
    text = json.dumps(values, sort_keys=True)
    return f"{revision}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
