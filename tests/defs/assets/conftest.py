"""Fixtures that these tests share with those of the domain packages."""

from tests.comparison.conftest import clip, drawings
from tests.filtering.conftest import categories, make_embeddings
from tests.generation.conftest import make_shards, tiny

__all__ = ["categories", "clip", "drawings", "make_embeddings", "make_shards", "tiny"]
