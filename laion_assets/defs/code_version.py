"""Code versions that change with the rules: a new threshold makes old partitions stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

from pydantic import BaseModel


def code_version(revision: int, *options: BaseModel | str, leave_out: Collection[str] = ()) -> str:
    """``"<revision>-<digest of the options>"``.

    ``revision`` is raised by hand when the code's results change; options that cannot change a
    result (threads, time-outs of the work itself) are left out by name. A string stands for data
    that is not options, such as the digest of a word list.
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
