"""Imports of the server from which the processes that make pairs are forked."""

from __future__ import annotations

import contextlib

import pyarrow as pa

from laion_assets.pairs import segment  # noqa: F401

# For the first array of a process, pyarrow imports pandas, if that is installed.
pa.array([])
# Imported when a language is first asked for, because the base installation lacks it.
with contextlib.suppress(ImportError):
    import pycld2  # noqa: F401
