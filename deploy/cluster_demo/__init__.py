"""A demo of many machines on one host: see docs/operations.md."""
