"""Code versions that depend on the rules: a new threshold makes existing partitions stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

from pydantic import BaseModel


def code_version(revision: int, *options: BaseModel | str, leave_out: Collection[str] = ()) -> str:
    """Return ``"<revision>-<digest of the options>"``, or ``"<revision>"`` without options.

    Raise ``revision`` by hand when changed code gives other results. ``leave_out`` names options
    that cannot change a result, such as thread counts and the stage's own time-outs. A string
    stands for data other than options, such as the digest of a word list.
    """
    if not options:
        return str(revision)
    values = [
        option
        if isinstance(option, str)
        else option.model_dump(mode="json", exclude=set(leave_out))
        for option in options
    ]
    text = json.dumps(values, sort_keys=True)
    return f"{revision}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
