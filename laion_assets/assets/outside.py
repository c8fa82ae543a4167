"""What comes from outside the graph and may change at any time: removals and blocklists.

Both are folders of list files in the lake (``removals/*.txt``, ``blocklists/*.txt``). Their data
version is their content, so that a changed list makes what was built with it stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from laion_assets.lake import Lake
from laion_assets.removals.lists import Entries, load
from resources.lake import LakeResource

LEDGER_POOL: Final = "dedup_ledger"
DOWNLOAD_POOL: Final = "download"
EMBED_POOL: Final = "embed"


@dataclass(frozen=True)
class Lists:
    removals: Entries
    blocklists: Entries

    @property
    def data_versions(self) -> dict[str, str]:
        return {"removals": self.removals.digest, "blocklists": self.blocklists.digest}


def read_lists(lake: Lake) -> Lists:
    """Raises ``ListError`` naming file and line if an entry cannot be understood."""
    return Lists(load(lake.root / "removals"), load(lake.root / "blocklists"))


def observations(lists: Lists, seen: Mapping[str, str]) -> list[dg.AssetObservation]:
    """One for each list whose data version is not the one seen before."""
    entries = {"removals": len(lists.removals), "blocklists": len(lists.blocklists)}
    return [
        dg.AssetObservation(
            asset, metadata={"entries": entries[asset]}, tags={DATA_VERSION_TAG: version}
        )
        for asset, version in lists.data_versions.items()
        if seen.get(asset) != version
    ]


@dg.observable_source_asset(
    group_name="outside",
    description="URLs, hosts and image hashes to take out: `removals/*.txt` in the lake.",
)
def removals(lake: LakeResource) -> dg.DataVersion:
    return dg.DataVersion(read_lists(lake.open()).removals.digest)


@dg.observable_source_asset(
    group_name="outside",
    description="Known-bad image hashes and URLs: `blocklists/*.txt` in the lake.",
)
def blocklists(lake: LakeResource) -> dg.DataVersion:
    return dg.DataVersion(read_lists(lake.open()).blocklists.digest)
