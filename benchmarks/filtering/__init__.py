"""Cost of scoring, tagging and filtering per million embedded pairs."""
