"""Lists of what must not be in the dataset: removals asked for, and blocklists of known-bad."""
