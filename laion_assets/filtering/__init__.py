"""Scores of embedded pairs, and subsets by recipe.

The safety tags' rules do not belong here; see :mod:`laion_assets.safety`.
"""
