"""What a change of the lists concerns (`survey`), the runs that rebuild it (`remake`), and what is
put right in Dagster (`interrupted`, `forget`).

How a stage leaves out listed rows does not belong here, but in the stage's package; the lists
themselves are in :mod:`laion_assets.removals`.
"""
