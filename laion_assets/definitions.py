"""The deployment's asset graph, for Dagster. :mod:`laion_assets.defs.build` shows it on one screen.

Importing this module builds nothing and reads no file: Dagster calls :func:`defs`.
"""

from __future__ import annotations

import dagster as dg

from laion_assets.defs.build import build_defs
from laion_assets.settings import load_settings


@dg.definitions
def defs() -> dg.Definitions:
    """The graph of the settings file that the environment names, or of the sample world."""
    return build_defs(load_settings())
