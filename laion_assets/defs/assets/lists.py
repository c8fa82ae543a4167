"""Removals and blocklists: what comes from outside the graph and may change at any time.

Both are folders of list files in the lake (``removals/*.txt``, ``blocklists/*.txt``). They have
the segments' partitions. A partition is observed again only when a change of the list concerns it:
when the segment holds what is listed, or lacks what is no longer listed. So a changed list makes
exactly those partitions stale. The data version is the digest of the entries in force.
"""

from collections.abc import Iterable
from functools import partial
from typing import Final

import dagster as dg

from laion_assets.defs.internals import DATA_VERSION_TAG
from laion_assets.defs.partitions import partition_key
from laion_assets.defs.publishing import Publication
from laion_assets.defs.removal.survey import survey
from laion_assets.lake import Lake
from laion_assets.layout import BLOCKLISTS, LISTS, REMOVALS, SegmentKey
from laion_assets.removals.active import FOLDERS, Lists, new_since, read_lists
from laion_assets.removals.ledger import RemovalCounts, events_file, note_removals
from resources.lake import LakeResource

BEFORE_TAG: Final = "laion_assets/lists_before/"
"""Tag of a run that observes, with the list's name: the digest of the text observed before."""


def observation(name: str, version: str, key: SegmentKey | None = None) -> dg.AssetObservation:
    return dg.AssetObservation(
        name, partition=str(partition_key(key)) if key else None, tags={DATA_VERSION_TAG: version}
    )


def observations(lists: Lists, keys: Iterable[SegmentKey]) -> list[dg.AssetObservation]:
    """Observations that mark these partitions stale against both lists."""
    return [observation(name, lists.digests[name], key) for key in keys for name in LISTS]


def first_observations(instance: dg.DagsterInstance, lists: Lists) -> list[dg.AssetObservation]:
    """Observations that tell Dagster a version of each list that has none.

    Later observations are compared with what an asset was made with, so there must be a first.
    """
    return [
        observation(name, lists.digests[name])
        for name in LISTS
        if not instance.fetch_observations(dg.AssetKey(name), limit=1).records
    ]


def begin_observing(context: dg.AssetExecutionContext, lake: Lake) -> None:
    """Record :func:`first_observations` in a run."""
    lists = read_lists(lake.current(*FOLDERS))
    for event in first_observations(context.instance, lists):
        context.log_event(event)


def note_taken_out(
    made: Publication, lists: Lists, taken: RemovalCounts, *, returns: bool = False
) -> None:
    """Note in the ledger what ``lists`` took out of a partition that has just been published.

    If the lists have changed since they were read and the change concerns the segment, the
    observations say so: whoever looked before this was published did not see it. ``returns``: see
    :func:`laion_assets.removals.ledger.note_removals`.
    """
    context, lake, key = made.context, made.store, made.key
    assert key is not None
    note = partial(
        note_removals,
        asset=made.asset,
        key=key,
        removed=taken,
        run_id=context.run.run_id,
        returns=returns,
    )
    events = lake.update(events_file(made.asset, key), note)
    for name in LISTS:
        n = sum(event.samples for event in events if event.list == name)
        if n:
            context.log.info(f"{name}: {n:,} samples noted in the removal ledger")
    now = read_lists(lake.current(*FOLDERS))
    if now.digests == lists.digests:
        return
    if survey(lake, now, new=now.without(lists), keys=[key]).keys:
        for event in observations(now, [key]):
            context.log_event(event)


def build(segments: dg.MultiPartitionsDefinition) -> list[dg.SourceAsset]:
    return [
        _list(
            REMOVALS,
            "URLs, hosts, image hashes and samples to take out: `removals/*.txt` in the lake.",
            segments,
        ),
        _list(
            BLOCKLISTS,
            "Known-bad image hashes, URL hashes, URLs and hosts: `blocklists/*.txt` in the lake.",
            segments,
        ),
    ]


def _list(name: str, description: str, segments: dg.MultiPartitionsDefinition) -> dg.SourceAsset:
    @dg.observable_source_asset(
        name=name, group_name="outside", partitions_def=segments, description=description
    )
    def of_name(context: dg.OpExecutionContext, lake: LakeResource) -> dg.DataVersionsByPartition:
        store = lake.open()
        root = store.current(*FOLDERS)
        lists = read_lists(root)
        before = context.run.tags.get(BEFORE_TAG + name)
        new = new_since(root, name, before) if before else lists[name]
        found = survey(store, lists, new=Lists(**{name: new}))
        for key in found.keys:
            held = ", ".join(
                [
                    *(f"{asset} {n:,}" for asset, n in found.samples.get(key, {}).items()),
                    *(f"{asset} is damaged" for asset in sorted(found.damaged.get(key, ()))),
                ]
            )
            context.log.info(f"{key}: {held or 'lacks what is no longer listed'}")
        return dg.DataVersionsByPartition(
            {str(partition_key(key)): lists.digests[name] for key in found.keys}
        )

    return of_name
