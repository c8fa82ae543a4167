"""The release: what is published of a dataset, in files that others' tools load."""
