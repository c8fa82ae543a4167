"""A small crawl in Common Crawl's own layout, with every case that the rules mention."""
