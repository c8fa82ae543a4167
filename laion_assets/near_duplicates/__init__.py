"""Near-duplicates: which stored images are copies of one picture, within a segment and across.

Exact duplicates of (URL, TEXT) belong to ``dedup``. Which of a cluster a subset takes belongs to
``filtering``.
"""
