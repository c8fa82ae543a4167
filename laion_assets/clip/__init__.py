"""CLIP models, and the embedding of shards.

Safety tags and thresholds of subsets do not belong here; see :mod:`laion_assets.safety` and
:mod:`laion_assets.filtering`.
"""
