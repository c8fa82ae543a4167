"""Source of crawls: Common Crawl's layout, over any transport that fsspec knows."""
