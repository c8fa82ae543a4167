"""The lake: partitions in a folder or an object store, each replaced as a whole or not at all."""
