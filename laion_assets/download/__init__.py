"""Guarded fetching, and img2dataset's formats.

Which pairs are downloaded belongs to ``pairs`` and ``dedup``; where shards are published, to the
lake.
"""
