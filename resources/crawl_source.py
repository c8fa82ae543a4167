"""The crawl source as a resource."""

from __future__ import annotations

from laion_assets.crawl.source import CrawlSource, CrawlSourceOptions
from resources.options import OptionsResource


class CrawlSourceResource(CrawlSourceOptions, OptionsResource[CrawlSourceOptions]):
    """Common Crawl, or anything that serves its layout."""

    def open(self) -> CrawlSource:
        return CrawlSource(self.options())
