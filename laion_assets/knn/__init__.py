"""faiss indices over a subset's embeddings."""
