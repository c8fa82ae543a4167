"""LAION Assets: Common Crawl in; a CLIP-filtered image-text dataset, its indices and tables out."""

__version__ = "0.1.0"
