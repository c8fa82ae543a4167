"""The crawl source as a resource."""

from __future__ import annotations

import dagster as dg

from laion_assets.crawl.source import CrawlSource, CrawlSourceOptions


class CrawlSourceResource(CrawlSourceOptions, dg.ConfigurableResource[CrawlSource]):
    """Common Crawl, or anything that serves its layout."""

    def open(self) -> CrawlSource:
        # A plain copy of the options: a resource cannot be pickled into worker processes.
        return CrawlSource(CrawlSourceOptions.model_validate(self.model_dump()))
