"""The search service: clip-retrieval's API and a page over one index, through HTTP.

Reading and searching an index does not belong here; see :mod:`laion_assets.knn`.
"""
