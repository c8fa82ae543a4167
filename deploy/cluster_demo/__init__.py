"""Many machines on one: see docs/operations.md."""
