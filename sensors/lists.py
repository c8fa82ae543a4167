"""Changed removal lists and blocklists, told to Dagster as new versions of the assets outside."""

import json

import dagster as dg

from laion_assets.assets.outside import observations, read_lists
from laion_assets.removals.lists import ListError
from resources.lake import LakeResource


@dg.sensor(
    name="lists_sensor",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=__doc__,
)
def lists_sensor(
    context: dg.SensorEvaluationContext, lake: LakeResource
) -> dg.SensorResult | dg.SkipReason:
    try:
        lists = read_lists(lake.open())
    except ListError as error:
        # The lists in force stay those that could be read.
        raise dg.Failure(f"a list cannot be understood: {error}") from error
    seen = json.loads(context.cursor) if context.cursor else {}
    changed = observations(lists, seen)
    if not changed:
        return dg.SkipReason("no list has changed")
    return dg.SensorResult(
        asset_events=changed, cursor=json.dumps(lists.data_versions, sort_keys=True)
    )
