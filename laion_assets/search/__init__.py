"""The search service and its page: clip-retrieval's HTTP API over the lake's index."""
