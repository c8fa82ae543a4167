"""open_clip models, and the embedding of shards."""
