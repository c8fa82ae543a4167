"""From a page's links to image-text pairs: text, URL, licence, language.

Reading pages belongs to ``wat``; duplicates across segments belong to ``dedup``.
"""
