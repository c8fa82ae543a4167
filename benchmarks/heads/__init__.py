"""Cost of heads per million images."""
