"""X-Robots-Tag: a host's wishes about the use of its image.

The syntax is the one that search engines document: directives are separated by commas; a user
agent's name and a colon precede those meant for it alone. The directives are the established ones
against indexing, and those of DeviantArt's and Spawning's proposals against training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

REFUSING: Final = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
_AGENT: Final = re.compile(r"[a-z0-9_.*/-]+")
_WITH_VALUE: Final = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)


def opted_out(headers: Iterable[str], agent: str) -> str | None:
    """The first directive among the headers' values that refuses ``agent`` the use, or None."""
    for header in headers:
        meant_for = agent.lower()
        for token in header.lower().split(","):
            name, colon, rest = token.strip().partition(":")
            directive = name.strip()
            if colon:
                if directive in _WITH_VALUE or not _AGENT.fullmatch(directive):
                    continue  # a value, perhaps a date with commas and colons of its own
                meant_for, directive = directive, rest.strip()
            if directive in REFUSING and meant_for in (agent.lower(), "*"):
                return directive
    return None
