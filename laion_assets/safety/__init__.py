"""Safety tags over embeddings, by published rules."""
