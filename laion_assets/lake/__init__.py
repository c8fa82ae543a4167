"""The lake: partitions in a folder or an object store, each replaced as a whole or not at all.

Everything outside this package imports from here. What does not belong in it: what the assets
are, and what their files hold.
"""

from laion_assets.lake.base import Abandoned, Lake, Lease
from laion_assets.lake.content import MANIFEST
from laion_assets.lake.local import LocalLake, is_remote
from laion_assets.lake.object_store import (
    CarelessStoreError,
    ChangedError,
    DamagedError,
    ObjectStoreError,
    UnavailableError,
)
from laion_assets.lake.options import LakeOptions
from laion_assets.lake.partition import (
    LakeError,
    Manifest,
    NotPublishedError,
    PartitionBusyError,
    Staging,
)
from laion_assets.lake.verify import (
    Choice,
    Damage,
    Partition,
    Verified,
    find_damage,
    set_aside,
)
from laion_assets.lake.whole import DamagedFilesError, link_others

__all__ = [
    "MANIFEST",
    "Abandoned",
    "CarelessStoreError",
    "ChangedError",
    "Choice",
    "Damage",
    "DamagedError",
    "DamagedFilesError",
    "Lake",
    "LakeError",
    "LakeOptions",
    "Lease",
    "LocalLake",
    "Manifest",
    "NotPublishedError",
    "ObjectStoreError",
    "Partition",
    "PartitionBusyError",
    "Staging",
    "UnavailableError",
    "Verified",
    "find_damage",
    "is_remote",
    "link_others",
    "local_lake",
    "open_lake",
    "set_aside",
]


def open_lake(options: LakeOptions) -> Lake:
    """Open the lake that the options name, wherever it is."""
    if is_remote(options.root):
        from laion_assets.lake.remote import RemoteLake

        return RemoteLake(options)
    return LocalLake(options)


def local_lake(options: LakeOptions) -> LocalLake:
    """Open a lake for something that works only on a folder.

    Raises :class:`LakeError`, with what to do, if it is in an object store or does not exist.
    """
    lake = LocalLake(options)
    if not lake.root.is_dir():
        raise LakeError(
            f"the lake {lake} does not exist: name the deployment's settings file by --config"
        )
    return lake
