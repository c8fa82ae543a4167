"""Where crawls come from: Common Crawl's layout, over any transport fsspec knows."""
