"""Lists of what must not be in the dataset: requested removals, and blocklists of known-bad items.

Finding the rows that entries name belongs to the packages that hold the rows.
"""
