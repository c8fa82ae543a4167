"""The downloader's policy as a resource."""

from __future__ import annotations

import dagster as dg

from laion_assets.download.options import DownloadOptions


class DownloaderResource(DownloadOptions, dg.ConfigurableResource[DownloadOptions]):
    """Limits, politeness and image format of the guarded download."""
