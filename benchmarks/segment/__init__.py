"""A whole segment: all its assets in one process, and the same done by peers with glue between."""
