"""What comes from outside the graph and may change at any time: removals and blocklists.

Both are folders of list files in the lake (``removals/*.txt``, ``blocklists/*.txt``). They have
the segments' partitions, and a partition is observed anew only when a change of the list concerns
it: when the segment holds what is listed, or lacks what is listed no more. So a changed list makes
exactly those partitions stale. The data version is the digest of the entries in force.
"""

from collections.abc import Collection, Iterable
from functools import partial
from typing import Final

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from laion_assets.defs.jobs import LISTS
from laion_assets.defs.partitions import partition_key
from laion_assets.defs.removal.survey import survey
from laion_assets.lake import Lake
from laion_assets.removals.active import FOLDERS, REASONS, Lists, new_since, read_lists
from laion_assets.removals.ledger import Taken, events_file, note_taken
from laion_assets.segments import SegmentKey
from laion_assets.settings import Settings
from resources.lake import LakeResource

LEDGER_POOL: Final = "dedup_ledger"
DOWNLOAD_POOL: Final = "download"
EMBED_POOL: Final = "embed"
INDEX_POOL: Final = "index_merge"

BEFORE_TAG: Final = "laion_assets/lists_before/"
"""Tag of a run that observes, with the list's name: the digest of the text observed before."""


def observation(name: str, version: str, key: SegmentKey | None = None) -> dg.AssetObservation:
    return dg.AssetObservation(
        name, partition=str(partition_key(key)) if key else None, tags={DATA_VERSION_TAG: version}
    )


def concerned(lists: Lists, keys: Iterable[SegmentKey]) -> list[dg.AssetObservation]:
    """That the partitions are not as the lists would have them."""
    return [observation(name, lists.digests[name], key) for key in keys for name in LISTS]


def begin_observing(context: dg.AssetExecutionContext, lake: Lake) -> None:
    """Tell Dagster a version of each list that has none.

    Later observations are compared with what an asset was made with, so there must be a first.
    """
    versions = read_lists(lake.current(*FOLDERS)).digests
    for name in LISTS:
        if not context.instance.fetch_observations(dg.AssetKey(name), limit=1).records:
            context.log_event(observation(name, versions[name]))


def tell_lists(
    context: dg.AssetExecutionContext,
    lake: Lake,
    key: SegmentKey,
    lists: Lists,
    taken: Taken,
    *,
    returns: bool = False,
) -> None:
    """Note in the ledger what ``lists`` took out of a partition that has just been published.

    If the lists have changed since they were read and the change concerns the segment, that is
    told too: whoever looked for it before this was published did not see it. ``returns``: see
    :func:`laion_assets.removals.ledger.note_taken`.
    """
    asset = context.asset_key.path[-1]
    note = partial(
        note_taken,
        asset=asset,
        key=key,
        taken=taken,
        run_id=context.run.run_id,
        returns=returns,
    )
    events = lake.update(events_file(asset, key), note)
    for name in REASONS:
        n = sum(event.samples for event in events if event.list == name)
        if n:
            context.log.info(f"{name}: {n:,} samples noted in the removal ledger")
    now = read_lists(lake.current(*FOLDERS))
    if now.digests == lists.digests:
        return
    if survey(lake, now, new=now.without(lists), keys=[key]).keys:
        for event in concerned(now, [key]):
            context.log_event(event)


def build(
    segments: dg.MultiPartitionsDefinition, _: Settings
) -> Collection[dg.SourceAsset | dg.AssetsDefinition]:
    return [
        _list(
            "removals",
            "URLs, hosts, image hashes and samples to take out: `removals/*.txt` in the lake.",
            segments,
        ),
        _list(
            "blocklists",
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
            told = ", ".join(f"{asset} {n:,}" for asset, n in found.samples.get(key, {}).items())
            context.log.info(f"{key}: {told or 'lacks what is listed no more'}")
        return dg.DataVersionsByPartition(
            {str(partition_key(key)): lists.digests[name] for key in found.keys}
        )

    return of_name
