"""Near-duplicates: recall by kind of copy, and what one more segment costs."""
