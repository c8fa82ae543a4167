"""Exact claims of (URL, TEXT) across segments.

Duplicates within a segment belong to ``pairs``.
"""
