"""Releases: what is published of a dataset, in files that others' tools load.

The texts of the dataset card do not belong here; see :mod:`laion_assets.stats.report`.
"""
