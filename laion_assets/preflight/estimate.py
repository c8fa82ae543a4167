"""Estimate of a run before it starts: hours, bytes and requests of some segments of one crawl.

The settings say how much is taken and how images are stored, :mod:`laion_assets.preflight.cost`
what that costs. Nothing is asked of the web but the crawl's list of WAT files.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Final

import numpy as np

from laion_assets.crawl.source import CrawlSource, CrawlSourceError
from laion_assets.preflight.cost import (
    SEGMENTS,
    Amounts,
    Assumptions,
    Line,
    Rates,
    estimate,
    hours_on_one_machine,
)
from laion_assets.settings import Settings

_SIZE_AT_QUALITY: Final = {75: 0.41, 85: 0.54, 90: 0.68, 95: 1.0}
"""Size of a JPEG relative to quality 95, as `Assumptions.quality` states it."""
_USUAL_SIDE: Final = 256
_LISTS: Final = 2
"""Requests for `collinfo.json` and `wat.paths.gz`."""


@dataclass(frozen=True)
class Machine:
    """What the run has to work with."""

    cores: int
    gpus: int

    @classmethod
    def this_one(cls) -> Machine:
        """This machine; without torch installed it counts as one without a GPU."""
        return cls(len(os.sched_getaffinity(0)), _gpus())


def _gpus() -> int:
    if find_spec("torch") is None:
        return 0
    import torch

    has_one = torch.accelerator.current_accelerator(check_available=True) is not None
    return torch.accelerator.device_count() if has_one else 0


@dataclass(frozen=True)
class Extent:
    """How much of a crawl is taken."""

    segments: int
    wat_files: int
    assumed: str = ""
    """Why the WAT files are assumed and not counted; empty if the crawl source listed them."""


def extent_of(settings: Settings, crawl: str, segments: int | None) -> Extent:
    """Count the WAT files that the settings take of a crawl's first segments.

    ``segments`` is None for as many as ``[discovery]`` takes. Of a source that cannot be read, the
    usual number is assumed.
    """
    source = CrawlSource(settings.crawl_source.model_copy(update={"attempts": 1}))
    try:
        listed = source.segments(crawl)
    except CrawlSourceError as error:
        return usual_extent(settings, segments, str(error))
    chosen = listed[: _wanted(settings, segments, len(listed))]
    return Extent(len(chosen), sum(len(source.taken(segment)) for segment in chosen))


def usual_extent(settings: Settings, segments: int | None, why: str = "not counted") -> Extent:
    """What the settings take of a crawl of the usual size."""
    source, usual = settings.crawl_source, round(Assumptions.wat_files / SEGMENTS)
    files = min(source.wat_fraction * usual, source.wat_files_per_segment or usual)
    wanted = _wanted(settings, segments, SEGMENTS)
    return Extent(wanted, wanted * math.ceil(files), why)


def _wanted(settings: Settings, segments: int | None, listed: int) -> int:
    policy = settings.discovery
    return segments or policy.segments or max(1, round(listed * policy.fraction))


def assumptions(settings: Settings, extent: Extent, machine: Machine) -> Assumptions:
    """The cost model's assumptions, with what the settings and the machine decide."""
    download = settings.download
    usual = Assumptions()
    quality, image_kb = 1.0, usual.image_kb * (download.image_size / _USUAL_SIDE) ** 2
    if download.encode_format == "jpg":
        sizes = _SIZE_AT_QUALITY
        quality = float(np.interp(download.encode_quality, list(sizes), list(sizes.values())))
    if download.resize_mode == "no":
        quality, image_kb = 1.0, usual.fetched_kb
    return Assumptions(
        wat_files=extent.wat_files,
        machine_cores=machine.cores,
        gpus=0 if settings.clip.device == "cpu" else machine.gpus,
        concurrency=download.concurrency,
        fetch_processes=download.fetch_processes,
        quality=quality,
        image_kb=image_kb,
    )


@dataclass(frozen=True)
class Estimate:
    """What a run takes. Hours are those of one machine, bytes and requests of the whole run."""

    extent: Extent
    of: Assumptions
    rates: Rates

    @cached_property
    def lines(self) -> list[Line]:
        """The stages, in order."""
        return estimate(self.of, self.rates)

    @property
    def hours(self) -> float:
        """Hours from the beginning to the end, one stage after another."""
        return hours_on_one_machine(self.of, self.rates)

    @property
    def comes_in(self) -> float:
        """Bytes from the network."""
        return sum(line.comes_in for line in self.lines)

    @property
    def stored(self) -> float:
        """Bytes that stay in the lake."""
        return sum(line.stored for line in self.lines)

    @property
    def disk(self) -> float:
        """Bytes of disk that the making of one segment takes."""
        return self.stored / self.extent.segments

    @property
    def crawl_requests(self) -> float:
        """Requests to the crawl source."""
        return self.of.wat_files + _LISTS

    @property
    def image_requests(self) -> float:
        """Requests to images' hosts, redirects and robots.txt not counted."""
        return Amounts.of(self.of).urls * (1 + self.of.asked_again)


def estimated(settings: Settings, extent: Extent, machine: Machine) -> Estimate:
    """Estimate a run of this extent by this deployment on this machine."""
    return Estimate(extent, assumptions(settings, extent, machine), Rates.shipped())
