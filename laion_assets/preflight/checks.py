"""Checks of a deployment before it works: what would fail later, and how to mend it.

Each check looks at one thing on this machine, by the code that will depend on it, and makes nothing
but a connection to the crawl source and, if they are not here yet, a copy of the model's weights.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import urllib3

from laion_assets.clip.thresholds import UnknownThresholdError
from laion_assets.crawl.source import CrawlSource, CrawlSourceError
from laion_assets.download.addresses import Resolve, system_resolve
from laion_assets.filtering.recipe import Recipe
from laion_assets.lake import LakeError, ObjectStoreError, is_remote
from laion_assets.preflight.estimate import (
    Extent,
    Machine,
    estimated,
    extent_of,
    usual_extent,
)
from laion_assets.preflight.record import in_real_world, is_here, record
from laion_assets.safety.prompts import load_prompts
from laion_assets.settings import Settings
from laion_assets.url_lists.crawl import ListCrawl
from laion_assets.url_lists.files import UrlListError, UrlListUnreachableError

_CLOCK_S: Final = 300.0
"""Seconds that the clock may be wrong. S3 refuses requests from 900 on."""
_ANSWER_S: Final = 10.0
_ELSEWHERE_V6: Final = ("2000::1", 9)
"""An address of the internet. Connecting a datagram socket to it sends nothing."""

Verdict = Literal["ok", "note", "fails"]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    """``note`` is worth knowing; ``fails`` means that a run would fail or do harm."""
    found: str
    fix: str = ""
    """What to do about it; empty if there is nothing to do, or if ``found`` says it."""


class Checks:
    """The checks of one deployment on this machine; ``resolve`` looks a name up."""

    def __init__(self, settings: Settings, resolve: Resolve = system_resolve) -> None:
        self._settings, self._resolve = settings, resolve
        self._source = CrawlSource(settings.crawl_source.model_copy(update={"attempts": 1}))

    def run(self) -> Iterator[Finding]:
        """Yield the findings, in the order in which people can mend them."""
        checks: Sequence[tuple[str, Callable[[], tuple[Verdict, str, str]]]] = (
            ("settings", self._rules),
            ("contact", self._contact),
            ("resolver", self._resolver),
            ("crawl source", self._crawl),
            ("lists", self._lists),
            ("clock", self._clock),
            ("IPv6", self._ipv6),
            ("open files", self._downloader),
            ("lake", self._lake),
            ("disk", self._disk),
            ("GPU", self._gpu),
            ("model", self._model),
        )
        for name, check in checks:
            yield Finding(name, *check())

    @cached_property
    def _real(self) -> bool:
        return in_real_world(self._settings)

    @property
    def _recipes(self) -> Sequence[Recipe]:
        return self._settings.subset, *self._settings.subsets.values()

    @cached_property
    def _newest(self) -> str | CrawlSourceError:
        """Name of the newest crawl; the error if the list cannot be read."""
        try:
            listed = self._source.crawls()
            if not listed:
                raise CrawlSourceError(f"{self._source.options.collinfo_url} lists no crawl")
        except (CrawlSourceError, FileNotFoundError) as error:
            return CrawlSourceError(str(error))
        return listed[0].name

    @cached_property
    def _extent(self) -> Extent:
        """One segment, as this deployment takes it."""
        if isinstance(self._newest, CrawlSourceError):
            return usual_extent(self._settings, 1)
        return extent_of(self._settings, self._newest, 1)

    def _rules(self) -> tuple[Verdict, str, str]:
        settings = self._settings
        try:
            load_prompts(settings.safety.prompts)
            for recipe in self._recipes:
                recipe.threshold_of(settings.clip.key)
        except (UnknownThresholdError, OSError, ValueError) as error:
            return "fails", str(error.args[0] if error.args else error), ""
        return "ok", f"valid, with a threshold for {settings.clip.key}", ""

    def _contact(self) -> tuple[Verdict, str, str]:
        agent = self._settings.download.user_agent_header
        if self._settings.download.contact:
            return "ok", f"hosts are sent {agent!r}", ""
        if not self._real:
            return "ok", "all that is asked is on this machine: nobody is disturbed", ""
        return (
            "fails",
            f"hosts would be sent {agent!r}: whom the requests disturb cannot reach you",
            'set [download] contact = "https://your.site/crawler", or an e-mail address',
        )

    def _resolver(self) -> tuple[Verdict, str, str]:
        if not self._real:
            return "ok", "no name of the internet is needed", ""
        fix = "mend the name servers in /etc/resolv.conf; a real crawl needs a caching one nearby"
        begun = time.monotonic()
        hosts = [host for host in self._hosts if self._looked_up(host)]
        if lost := [host for host in self._hosts if host not in hosts]:
            return "fails", f"no address is found for {', '.join(lost)}", fix
        if wrong := self._looked_up(f"{uuid.uuid4().hex}.invalid"):
            return (
                "fails",
                f"a name that does not exist is at {wrong[0]}: dead hosts would look alive",
                "use name servers that say so when a name does not exist, or turn the provider's"
                " search page off",
            )
        what = f"{', '.join(hosts)} found" if hosts else "a name that does not exist is refused"
        return "ok", f"{what} in {time.monotonic() - begun:.2f} s", ""

    @property
    def _hosts(self) -> list[str]:
        """Names of other machines in the URLs of the crawl source and of lists' files."""
        options = self._settings.crawl_source
        urls = [options.collinfo_url, options.data_url]
        urls += [place for listed in self._settings.lists for place in listed.files]
        parts = [urlsplit(url) for url in urls if not is_here(url)]
        found = [part.hostname for part in parts if part.scheme in ("http", "https")]
        return list(dict.fromkeys(host for host in found if host))

    def _looked_up(self, host: str) -> Sequence[str]:
        try:
            return self._resolve(host)
        except (OSError, UnicodeError):
            return ()

    def _crawl(self) -> tuple[Verdict, str, str]:
        options, newest = self._settings.crawl_source, self._newest
        if isinstance(newest, CrawlSourceError):
            return "fails", str(newest), "check the network, and [crawl_source] in the settings"
        try:
            segments = len(self._source.segments(newest))
        except CrawlSourceError as error:
            return "note", f"{newest} is listed, but: {error}", "wait, or name [discovery] only"
        if segments > options.segments_per_crawl:
            return (
                "fails",
                f"{newest} has {segments} segments, and partitions are made for only"
                f" {options.segments_per_crawl}",
                f"set [crawl_source] segments_per_crawl = {segments}",
            )
        return "ok", f"the newest crawl is {newest}, with {segments} segments", ""

    def _lists(self) -> tuple[Verdict, str, str]:
        found = []
        for options in self._settings.lists:
            try:
                files = ListCrawl(options).files()
            except (UrlListError, UrlListUnreachableError, OSError) as error:
                fix = f'mend files of the [[lists]] named "{options.name}"'
                return "fails", f"{options.crawl}: {error}", fix
            found.append(f"{options.crawl} has {len(files)} files")
        return "ok", "; ".join(found) or "the settings have none", ""

    def _clock(self) -> tuple[Verdict, str, str]:
        url = self._settings.crawl_source.collinfo_url
        if not url.startswith(("http://", "https://")):
            return "note", "not compared: the crawl source has no clock", ""
        try:
            answer = urllib3.request("HEAD", url, timeout=_ANSWER_S, retries=False)
            theirs = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
        except (urllib3.exceptions.HTTPError, ValueError, TypeError):
            return "note", f"not compared: no date came from {urlsplit(url).netloc}", ""
        wrong = time.time() - theirs
        if abs(wrong) > _CLOCK_S:
            return (
                "fails",
                f"{abs(wrong):,.0f} s {'fast' if wrong > 0 else 'slow'}: certificates and signed"
                " requests will be refused",
                "let the clock follow a time server (timedatectl set-ntp true)",
            )
        return "ok", f"within {max(abs(wrong), 1):.0f} s of the crawl source's", ""

    def _ipv6(self) -> tuple[Verdict, str, str]:
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
                probe.connect(_ELSEWHERE_V6)
        except OSError:
            return (
                "note",
                "no way to IPv6: images of hosts that have nothing else are refused",
                "give the machine an IPv6 address, if those few matter",
            )
        return "ok", "there is a way to IPv6", ""

    def _downloader(self) -> tuple[Verdict, str, str]:
        from laion_assets.download.fetch import Fetcher

        options = self._settings.download
        # What one process may have open is the limit, so the largest share decides.
        largest = options.share(0)

        async def opened() -> None:
            async with Fetcher(largest, resolve=self._resolve):
                pass

        try:
            asyncio.run(opened())
        except (ValueError, OSError) as error:
            return "fails", f"the downloader cannot start: {error}", ""
        return "ok", f"enough for {options.concurrency} images at the same time", ""

    def _lake(self) -> tuple[Verdict, str, str]:
        # Publishing in it tries all that it needs of its file system or store.
        try:
            lake = record(self._settings, ["it was not finished"])
        except (LakeError, ObjectStoreError, OSError) as error:
            fix = "let [lake] root be a folder or a bucket that the user of the runs may write to"
            return "fails", str(error), fix
        return "ok", f"{lake} can be written", ""

    def _disk(self) -> tuple[Verdict, str, str]:
        options = self._settings.lake
        folder = Path(options.cache if is_remote(options.root) else options.root).absolute()
        on = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(on).free
        need = estimated(self._settings, self._extent, Machine(cores=1, gpus=1)).disk
        found = f"{free / 1e9:,.1f} GB free at {folder}, a segment takes about {need / 1e9:,.1f} GB"
        if self._extent.assumed:
            return "note", f"{found} if the crawl is of the usual size", ""
        if free < need:
            return (
                "fails",
                found,
                "use a larger disk, or take less of each segment: [crawl_source] wat_fraction",
            )
        return "ok", found, ""

    def _gpu(self) -> tuple[Verdict, str, str]:
        if find_spec("torch") is None:
            return _NO_TORCH
        from laion_assets.clip.model import ClipLoadError, choose_device

        asked = self._settings.clip.device
        try:
            device = choose_device(asked)
        except ClipLoadError as error:
            return "fails", f"[clip] device: {error}", ""
        if device.type == "cpu" and asked == "auto" and self._real:
            hours = estimated(self._settings, self._extent, Machine.this_one()).hours
            return (
                "note",
                f"none: embedding is most of the {hours:,.0f} hours that a segment takes here",
                "see `laion-assets estimate CRAWL --gpus 1`, and take a machine that has one",
            )
        return "ok", f"{device} is used", ""

    def _model(self) -> tuple[Verdict, str, str]:
        if find_spec("torch") is None or find_spec("open_clip") is None:
            return _NO_TORCH
        from laion_assets.clip.model import ClipLoadError, load_clip
        from laion_assets.clip.precision import fallback

        try:
            model = load_clip(self._settings.clip)
            model.encode_texts(["a picture"])
            for recipe in self._recipes:
                recipe.threshold_of(model.key, model.version)
        except (ClipLoadError, RuntimeError, UnknownThresholdError) as error:
            return "fails", str(error), ""
        if problem := fallback(self._settings.clip.precision, model.precision):
            return "fails", f"{model.key} cannot embed: {problem}", ""
        return "ok", f"{model.key} is loaded on {model.device} in {model.precision}", ""


_NO_TORCH: Final[tuple[Verdict, str, str]] = (
    "fails",
    "not looked at: torch and open_clip are not installed on this machine",
    "run the check where runs work, with laion-assets[work]",
)
