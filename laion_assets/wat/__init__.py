"""HTML pages, streamed out of WAT files.

What a page's links mean (which become pairs, how a URL is resolved) belongs to ``pairs``.
"""

from laion_assets.wat.metadata import Link
from laion_assets.wat.pages import NoPagesError, Page, read_pages

__all__ = ["Link", "NoPagesError", "Page", "read_pages"]
