"""Cost of one more segment when the ledger already holds ten, a hundred or a thousand."""
