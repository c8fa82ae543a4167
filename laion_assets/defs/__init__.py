"""The Dagster side: assets, jobs, automation and checks over the domain packages.

No rule of the dataset lives here. A module that domain code needs does not belong here either:
domain packages import no Dagster.
"""
