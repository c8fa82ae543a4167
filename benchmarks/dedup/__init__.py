"""What one more segment costs when the ledger holds ten, a hundred, a thousand already."""
