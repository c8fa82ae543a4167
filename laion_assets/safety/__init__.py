"""Safety tags of images and texts, by published rules over embeddings and word lists.

What a recipe drops by these tags does not belong here; see :mod:`laion_assets.filtering`.
"""
