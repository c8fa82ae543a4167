"""A small DALL-E, trained on a subset, whose samples CLIP ranks.

Needs the optional extra `generation`; :func:`require_extra` says how to install it.
What does not belong here: the asset (``defs.assets.dalle_samples``).
"""

from __future__ import annotations

import importlib


class MissingExtraError(RuntimeError):
    """The extra's libraries are not installed; the message says how to install them."""


def require_extra() -> None:
    """Raise :class:`MissingExtraError` if diffusers or transformers cannot be imported."""
    for name in ("diffusers", "transformers"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"{name} cannot be imported ({error}): install the optional extra, which"
                " dalle_samples needs, by pip install 'laion-assets[generation]' (in a checkout:"
                " pip install --constraint constraints.txt -e '.[generation]')"
            ) from error
