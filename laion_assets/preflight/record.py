"""The record that a deployment's checks have passed, in its lake, and what is asked without it.

The lake is what all machines of a deployment share. A record is of the settings that a run works
by: when one of them changes, the checks are to be passed again. A later failure takes nothing
back, since it may be of another machine.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from laion_assets.download.addresses import parse_endpoint
from laion_assets.files import write_json
from laion_assets.lake import Lake, open_lake
from laion_assets.settings import Settings

PLACE: Final = "preflight"
"""Name under which the record is published in the lake, as an asset of all segments is."""
_FILE: Final = "check.json"
_SECTIONS: Final = frozenset(
    {
        *("lake", "crawl_source", "lists", "work", "pairs", "download", "clip", "safety"),
        *("subset", "subsets"),
    }
)


def in_real_world(settings: Settings) -> bool:
    """Whether anything is asked of other machines than this one: the crawl source, or the hosts of
    lists.

    Whom a list's URLs name is not known before it is read. So a deployment with lists is of the
    real world, unless their files are here and `[download] connect_to` has hosts here, as the
    sample world's are, and none elsewhere.
    """
    source = settings.crawl_source
    places = [place for of in settings.lists for place in of.files]
    if not all(map(is_here, (source.collinfo_url, source.data_url, *places))):
        return True
    hosts = [parse_endpoint(endpoint)[0] for endpoint in settings.download.connect_to.values()]
    return bool(places) and not (hosts and all(ip_address(host).is_loopback for host in hosts))


def is_here(url: str) -> bool:
    """Whether a URL or path is of this machine."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return True
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https"):
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Record(BaseModel, frozen=True):
    """How the last check ended, or the last that passed."""

    settings: str
    """Digest of the settings that were checked."""
    at: str
    machine: str
    failed: tuple[str, ...] = ()
    """What was found wrong, a line each; empty if the checks passed."""

    def passed(self, settings: str) -> bool:
        """Whether the checks have passed with the settings of this digest."""
        return self.settings == settings and not self.failed


def record(settings: Settings, failed: Sequence[str]) -> Lake:
    """Publish in the lake what failed, or that nothing did; return the lake.

    A failure does not replace a record that the same settings have passed; that is then published
    again. So this always tries what the lake needs of its file system or store. Raises what
    opening the lake and publishing in it raise.
    """
    lake = open_lake(settings.lake)
    new = Record(
        settings=_digest(settings),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=platform.node(),
        failed=tuple(failed),
    )
    known = _read(lake)
    kept = known if new.failed and known and known.passed(new.settings) else new
    with lake.publish(PLACE, inputs={}, code_version=kept.settings) as staging:
        write_json(staging.path / _FILE, kept.model_dump(mode="json"))
    return lake


def unchecked(settings: Settings) -> str:
    """Why nothing may be asked of other machines yet, and what to do; empty if it may be.

    Raises what reading the lake raises.
    """
    if not settings.discovery.require_check or not in_real_world(settings):
        return ""
    known, digest = _read(open_lake(settings.lake)), _digest(settings)
    if known and known.passed(digest):
        return ""
    missing = "these settings have not been checked"
    if known and known.settings == digest:
        missing = f"the check of {known.at} on {known.machine} failed: {'; '.join(known.failed)}"
    return (
        f"nothing is asked of the real world yet: {missing}. Run `laion-assets check` where"
        " runs work, or set require_check = false in [discovery]"
    )


def _read(lake: Lake) -> Record | None:
    """The lake's record; None if there is none, or one that another version wrote."""
    try:
        return Record.model_validate_json((lake.folder(PLACE) / _FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _digest(settings: Settings) -> str:
    text = json.dumps(settings.model_dump(mode="json", include=set(_SECTIONS)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
