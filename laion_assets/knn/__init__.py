"""kNN indices over the subsets: how they are built, merged, judged and searched.

The HTTP service does not belong here; see :mod:`laion_assets.search`.
"""
