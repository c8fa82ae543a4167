"""Looks up runs by their tags, many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

import dagster as dg

SENSOR_TAG: Final = "dagster/sensor_name"
"""Name of the tag in which Dagster keeps the sensor that requested a run."""
_AT_ONCE: Final = 200
"""Values in one query."""


def runs_by_tag(
    instance: dg.DagsterInstance, tag: str, values: Sequence[str]
) -> Iterator[tuple[str, list[dg.RunRecord]]]:
    """Yield each value, in the order given, with the runs tagged with it, newest first.

    One query covers some hundred values; queries that the caller does not get to are not made.
    """
    for start in range(0, len(values), _AT_ONCE):
        some = list(values[start : start + _AT_ONCE])
        found: defaultdict[str, list[dg.RunRecord]] = defaultdict(list)
        for record in instance.get_run_records(dg.RunsFilter(tags={tag: some})):
            found[record.dagster_run.tags[tag]].append(record)
        yield from ((value, found[value]) for value in some)
