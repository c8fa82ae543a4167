"""Generation: a small DALL-E, trained on a subset, whose samples CLIP ranks.

Needs the optional extra `generation`; :func:`require_extra` says so where it is not installed.
"""

from __future__ import annotations

import importlib


class MissingExtraError(RuntimeError):
    """The libraries of the extra are not installed; the message says how to get them."""


def require_extra() -> None:
    """Raises :class:`MissingExtraError` if diffusers or transformers cannot be imported."""
    for name in ("diffusers", "transformers"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"{name} cannot be imported ({error}): dalle_samples needs the optional extra,"
                " pip install 'laion-assets[generation]' (in a checkout: pip install --constraint"
                " constraints.txt -e '.[generation]')"
            ) from error
