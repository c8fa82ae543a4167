"""What scoring, tagging and filtering cost for each million embedded pairs."""
