"""The text tower, run at the length of its texts and not always at the full context of 77 tokens.

Most captions have 8 to 20 tokens. A causal transformer that takes the embedding at the end of the
text does not depend on what follows the end, which therefore need not be computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TextTower:
    """A model's text encoder for tokens that are cut after the end of the longest text.

    The results are those of the uncut tokens but for rounding. Models that look beyond the end
    (SigLIP, CoCa, those with a tower of another library) are never cut. Several threads may call
    it: a shortened encoder is another module that shares the whole one's weights.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tower, self._pool, end = _causal_tower(model)
        self._end_token = end
        self._of_length = cache(self._shorten)

    def lengths(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of tokens that matter in each row of (n, context)."""
        if self._tower is None:
            return np.full(len(tokens), tokens.shape[1], np.int64)
        marked = tokens if self._pool == "argmax" else tokens == self._end_token
        ends: NDArray[np.int64] = marked.argmax(axis=1)
        return ends + 1

    def encoder(self, length: int) -> Callable[[Any], Any]:
        """Encoder of tokens (n, length) into features.

        ``length`` is that of the context or one of :meth:`lengths`.
        """
        encode: Callable[[Any], Any] = self._of_length(length)
        return encode

    def _shorten(self, length: int) -> Any:
        if self._tower is None or length >= len(self._tower.positional_embedding):
            return self._model.encode_text
        from torch.nn import Parameter

        short = copy.copy(self._tower)
        position = self._tower.positional_embedding[:length].detach()
        short._parameters = self._tower._parameters | {
            "positional_embedding": Parameter(position, requires_grad=False)
        }
        short._buffers = self._tower._buffers | {
            "attn_mask": self._tower.attn_mask[:length, :length]
        }
        return short.encode_text if self._tower is self._model else short


def _causal_tower(model: Any) -> tuple[Any, str, int | None]:
    """The module that may be shortened or None, how it finds the end, and its end token."""
    from open_clip.model import CLIP
    from open_clip.transformer import TextTransformer

    if isinstance(model, CLIP):
        tower, pool, end = model, model.text_pool_type, model.text_eos_id
    elif isinstance(text := getattr(model, "text", None), TextTransformer) and text.cls_emb is None:
        tower, pool, end = text, text.pool_type, text.eos_id
    else:
        return None, "", None
    if tower.attn_mask is None or pool not in ("argmax", "eos"):
        return None, "", None
    return tower, pool, end


def batches_by_length(lengths: NDArray[np.int64], tokens_at_once: int) -> list[NDArray[np.int64]]:
    """Split row numbers into batches, shortest texts first.

    Padded to its longest text, a batch has at most ``tokens_at_once`` tokens, or is a single text.
    """
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        # Rows are in order of length: count those that still fit at the last one's length.
        rows = np.arange(1, len(order) - start + 1)
        fits = rows * lengths[order[start:]] <= tokens_at_once
        size = max(1, int(np.argmin(fits)) if not fits.all() else len(fits))
        batches.append(order[start : start + size])
        start += size
    return batches
