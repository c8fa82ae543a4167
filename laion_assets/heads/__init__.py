"""Heads: small models that score images by their stored embeddings.

A head is two files: what it is (:mod:`.head`), and its weights in safetensors. Which pairs a
subset takes by these scores does not belong here, but in :mod:`laion_assets.filtering.recipe`.
"""
