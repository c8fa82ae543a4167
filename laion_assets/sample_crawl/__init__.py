"""A small crawl in Common Crawl's own layout, with every case the rules speak of."""
