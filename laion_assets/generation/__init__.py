"""Generation: a small DALL-E, trained on a subset, whose samples CLIP ranks."""
